"""Held-out texts with their annotated mentions and those that the model found, ready to be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from kebiolm.data.entity_vocab import EntityVocab
from kebiolm.training.evaluation import Predictions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_EXAMPLES = 10
MAX_PIECES = 200

_PIECE_INSIDE_WORD = "##"
_NO_SPACE_BEFORE = re.compile(r"[.,;:!?%)\]}/'-]+")
_NO_SPACE_AFTER = re.compile(r"[(\[{/'-]$")


@dataclass(frozen=True, kw_only=True)
class ShownMention:
    """A mention in an example's text, annotated or found."""

    start: int
    """First character."""
    end: int
    """Character after the last one."""
    verdict: str
    """"right": span and concept agree with the other side; "concept": only the span does; "span": it is not there."""
    concepts: tuple[tuple[int, float], ...]
    """(row of the entity table, attention weight), best first; the annotated one alone, with weight 1."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """The beginning of one document of a held-out sequence."""

    title: str
    text: str
    """Joined word pieces: white space around punctuation, and the case of letters, may differ from the source."""
    annotated: tuple[ShownMention, ...]
    found: tuple[ShownMention, ...]


def make_examples(predictions: Predictions, tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    """Cut predictions into documents; those without any mention are left out.

    Args:
        predictions: of some whole sequences.
        tokenizer: the shards'.

    Returns:
        At most `MAX_EXAMPLES`.
    """
    batch = predictions.batch
    gold = {
        tuple(span): ((entity, 1.0),)
        for span, entity in zip(batch["mention_spans"].tolist(), batch["entity_labels"].tolist(), strict=True)
    }
    rows, weights = predictions.entity_rows.tolist(), predictions.entity_weights.tolist()
    found = {
        tuple(span): tuple(zip(of_span, with_weights, strict=True))
        for span, of_span, with_weights in zip(predictions.spans.tolist(), rows, weights, strict=True)
    }
    examples = []
    for row, document_index in enumerate(batch["document_index"]):
        tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][row].tolist())
        sample = int(batch["sample_ids"][row])
        for document, (start, end) in enumerate(_documents(document_index), start=1):
            text, places = _join(tokens, start, _end_of_word(tokens, start, end))
            annotated = _shown(gold, found, (row, start), places)
            detected = _shown(found, gold, (row, start), places)
            if annotated or detected:
                title = f"held-out sequence {sample}, document {document}"
                examples.append(Example(title=title, text=text, annotated=annotated, found=detected))
    return examples[:MAX_EXAMPLES]


def concept_title(vocab: EntityVocab, row: int) -> str:
    """A concept as people know it: its name, its CUI where it has none, or that it is outside the vocabulary."""
    if row < 0:
        return "a concept outside the entity vocabulary"
    return vocab.name(row) or vocab.cui(row)


def _documents(document_index: torch.Tensor) -> list[tuple[int, int]]:
    """[start, end) of each document of a row, without its [CLS] and [SEP]."""
    numbers, lengths = torch.unique_consecutive(document_index, return_counts=True)
    borders = [0, *lengths.cumsum(0).tolist()]
    return [(first + 1, last - 1) for number, (first, last) in zip(numbers, pairwise(borders), strict=True) if number]


def _end_of_word(tokens: list[str], start: int, end: int) -> int:
    """Where to cut a document that is too long."""
    cut = min(end, start + MAX_PIECES)
    while cut < end and tokens[cut].startswith(_PIECE_INSIDE_WORD):
        cut += 1
    return cut


def _join(tokens: list[str], start: int, end: int) -> tuple[str, list[tuple[int, int]]]:
    """Text of some pieces, and the characters [first, last) of each."""
    text, places = "", []
    for token in tokens[start:end]:
        is_inside = token.startswith(_PIECE_INSIDE_WORD)
        word = token.removeprefix(_PIECE_INSIDE_WORD)
        if text and not (is_inside or _NO_SPACE_BEFORE.fullmatch(word) or _NO_SPACE_AFTER.search(text)):
            text += " "
        places.append((len(text), len(text) + len(word)))
        text += word
    return text, places


def _shown(
    mentions: dict[tuple[int, ...], tuple[tuple[int, float], ...]],
    others: dict[tuple[int, ...], tuple[tuple[int, float], ...]],
    first_piece: tuple[int, int],
    places: list[tuple[int, int]],
) -> tuple[ShownMention, ...]:
    """The mentions of one side in the text that begins at a (row, position), compared with the other side's."""
    row, start = first_piece
    end = start + len(places)
    shown = []
    for span, concepts in sorted(mentions.items()):
        if span[0] != row or span[1] < start or span[2] > end:
            continue
        other = others.get(span)
        verdict = "span" if other is None else "right" if other[0][0] == concepts[0][0] else "concept"
        first, last = places[span[1] - start][0], places[span[2] - 1 - start][1]
        shown.append(ShownMention(start=first, end=last, verdict=verdict, concepts=concepts))
    return tuple(shown)
