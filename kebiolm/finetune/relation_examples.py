"""Rows as inputs of the model: markers are single pieces, and their positions are known (sections 4.2.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import AddedToken

from kebiolm.errors import UserError
from kebiolm.finetune.counted_warnings import CountedWarnings
from kebiolm.finetune.read_relations import RelationRow
from kebiolm.finetune.tasks import RelationTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True, slots=True)
class RelationExample:
    """One input."""

    input_ids: list[int]
    """At most `max_length`, [CLS] and [SEP] included."""
    marker_positions: tuple[int, int]
    """Positions of the two entities' markers in text order; equal where one marker stands for both (D25)."""
    label: int
    """Id of the row's label."""


def add_markers(tokenizer: PreTrainedTokenizerFast, task: RelationTask) -> int:
    """Add a task's markers to the vocabulary, each as one piece, in sorted order (D24).

    Does nothing for markers that are there, so a fine-tuned model's tokenizer can be given as well.

    Args:
        tokenizer: changed in place.
        task: names the markers.

    Returns:
        Number of pieces added; the model's word embeddings must grow to `len(tokenizer)`.
    """
    # Not normalised: a lower-casing tokenizer would look for @gene$, and tell no marker from the same word in a text.
    return tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in task.all_markers])


def relation_labels(train: Sequence[RelationRow], task: RelationTask) -> tuple[str, ...]:
    """All labels in the order of their ids: the negative one first, else sorted; from the train split only (D27).

    Args:
        train: rows of the train split.
        task: names the negative label.

    Raises:
        UserError: the train split has fewer than two labels, or not the negative one.
    """
    found = {row.label for row in train}
    names = ", ".join(sorted(found))
    if len(found) < 2:
        mend = "give a train split with all labels"
        raise UserError(f"train split of {task.name}", got=f"the labels {names}", expected="at least two", mend=mend)
    if task.negative_label is None:
        return tuple(sorted(found))
    if task.negative_label not in found:
        raise UserError(
            f"train split of {task.name}",
            got=f"the labels {names}",
            expected=f"the negative label {task.negative_label} among them",
            mend="correct task.negative_label (null where all labels are positive)",
        )
    return (task.negative_label, *sorted(found - {task.negative_label}))


def make_relation_examples(
    rows: Sequence[RelationRow],
    tokenizer: PreTrainedTokenizerFast,
    task: RelationTask,
    labels: Sequence[str],
    warnings: CountedWarnings,
) -> list[RelationExample]:
    """Turn rows into inputs.

    Sentences longer than `max_length` lose their end, as in the paper. Where that takes a marker away, the other one
    stands for both entities; where it takes both, [CLS] does (D26).

    Args:
        rows: of one split.
        tokenizer: after `add_markers`.
        task: its `max_length`.
        labels: names by id, from `relation_labels`.
        warnings: counts truncated rows, and those that lose a marker.

    Returns:
        Examples in the order of rows.

    Raises:
        UserError: a row's label is none of `labels`; a marker is also a word of the vocabulary.
        ValueError: the tokenizer lacks a marker.
    """
    if not rows:
        return []
    marker_ids = _marker_ids(tokenizer, task)
    label_ids = {label: number for number, label in enumerate(labels)}
    encoded = tokenizer(
        [row.text for row in rows], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    capacity = task.max_length - 2
    examples = []
    for number, row in enumerate(rows):
        if row.label not in label_ids:
            mend = "give a train split with this label, or drop the row"
            expected = f"one of the train split's, {', '.join(labels)}"
            raise UserError(row.where, got=f"the label {row.label}", expected=expected, mend=mend)
        ids = encoded["input_ids"][number]
        positions = _marker_pieces(row, ids, encoded["offset_mapping"][number], marker_ids)
        kept = [position for position in positions if position < capacity]
        if len(ids) > capacity:
            warnings.add("sentences truncated at max_length", row.where)
        if len(kept) < len(positions):
            stands_in = "the other one stands for both entities" if kept else "[CLS] stands for both entities"
            warnings.add(f"markers cut off by max_length, {stands_in}", row.where, len(positions) - len(kept))
        examples.append(
            RelationExample(
                input_ids=[tokenizer.cls_token_id, *ids[:capacity], tokenizer.sep_token_id],
                # [CLS] comes first: piece n is at position n + 1.
                marker_positions=(kept[0] + 1, kept[-1] + 1) if kept else (0, 0),
                label=label_ids[row.label],
            )
        )
    return examples


def _marker_ids(tokenizer: PreTrainedTokenizerFast, task: RelationTask) -> set[int]:
    vocabulary = tokenizer.get_vocab()
    absent = [marker for marker in task.all_markers if marker not in vocabulary]
    if absent:
        raise ValueError(f"the tokenizer lacks {', '.join(absent)}: call add_markers first")
    return {vocabulary[marker] for marker in task.all_markers}


def _marker_pieces(
    row: RelationRow, ids: Sequence[int], offsets: Sequence[tuple[int, int]], marker_ids: set[int]
) -> list[int]:
    """Numbers of the pieces that are the row's first two markers."""
    pieces = [number for number, piece in enumerate(ids) if piece in marker_ids]
    found = [tuple(offsets[number]) for number in pieces]
    if found != list(row.marker_spans):
        expected = f"{len(row.marker_spans)} as in the text"
        mend = "choose markers that are no words of the model's vocabulary"
        raise UserError(row.where, got=f"{len(found)} markers in the tokenizer's pieces", expected=expected, mend=mend)
    return pieces[:2]
