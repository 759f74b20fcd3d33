"""Sentences as inputs of the model, and the model's labels back as one label for each word.

A word's first piece carries its label, further pieces none (D21). A sentence that does not fit becomes several windows
of about equal length, each of whole words, so that no word is lost; or it is truncated as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from kebiolm.finetune.counted_warnings import CountedWarnings
from kebiolm.finetune.read_ner import NerSentence
from kebiolm.finetune.tasks import NerTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED_LABEL = -100
"""The target that `kebiolm.model.losses` leaves out; written here again because data code needs no torch."""

_BORDER_PIECES = 2
"""[CLS] and [SEP]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NerWindow:
    """One input: consecutive words of a sentence."""

    sentence: int
    """Number of the sentence in the split."""
    first_word: int
    """Number of the window's first word in the sentence."""
    input_ids: list[int]
    """At most `max_length`, [CLS] and [SEP] included."""
    first_pieces: list[int]
    """For each word of the window the position of its first piece in `input_ids`."""
    word_labels: list[int]
    """For each word of the window the id of its label."""

    @property
    def label_ids(self) -> list[int]:
        """For each position the id of its label, or -100 where the loss has no target."""
        labels = [IGNORED_LABEL] * len(self.input_ids)
        for position, label in zip(self.first_pieces, self.word_labels, strict=True):
            labels[position] = label
        return labels


def make_ner_windows(
    sentences: Sequence[NerSentence], tokenizer: PreTrainedTokenizerFast, task: NerTask, warnings: CountedWarnings
) -> list[NerWindow]:
    """Turn sentences into inputs.

    Args:
        sentences: of one split.
        tokenizer: the model's.
        task: its `labels`, `max_length` and `long_sentences`.
        warnings: counts sentences that do not fit and what became of them, words that the tokenizer drops (they are
            read as [UNK]) and words that fill a window alone and are cut.

    Returns:
        Windows in the order of sentences, and of words within one; without `truncate`, each word is in exactly one.
    """
    if not sentences:
        return []
    label_ids = {label: number for number, label in enumerate(task.labels)}
    capacity = task.max_length - _BORDER_PIECES
    encoded = tokenizer(
        [list(sentence.words) for sentence in sentences],
        is_split_into_words=True,
        add_special_tokens=False,
        verbose=False,
    )
    windows = []
    for number, sentence in enumerate(sentences):
        pieces = _pieces_of_words(encoded["input_ids"][number], encoded.word_ids(number), len(sentence.words))
        _read_empty_words(pieces, tokenizer.unk_token_id, sentence, warnings)
        if task.long_sentences == "truncate":
            pieces = _truncate(pieces, capacity, sentence, warnings)
        for first, last in _cut(pieces, capacity, sentence, warnings):
            ids = [tokenizer.cls_token_id]
            first_pieces = []
            for word in pieces[first:last]:
                first_pieces.append(len(ids))
                ids += word
            windows.append(
                NerWindow(
                    sentence=number,
                    first_word=first,
                    input_ids=[*ids, tokenizer.sep_token_id],
                    first_pieces=first_pieces,
                    word_labels=[label_ids[label] for label in sentence.labels[first:last]],
                )
            )
    return windows


def labels_of_words(
    windows: Sequence[NerWindow],
    predictions: Sequence[Sequence[int]],
    sentences: Sequence[NerSentence],
    task: NerTask,
) -> list[list[str]]:
    """Put the labels that were predicted for windows back together.

    Args:
        windows: as `make_ner_windows` returned them, in any order.
        predictions: for each window the predicted label id of each of its positions; what follows them (padding) is
            not read.
        sentences: the same as then.
        task: the same as then.

    Returns:
        For each sentence a label for each word; words that truncation left out are "O", so their entities count as
        missed.

    Raises:
        ValueError: windows are missing or given twice.
    """
    read: list[list[str | None]] = [[None] * len(sentence.words) for sentence in sentences]
    for window, predicted in zip(windows, predictions, strict=True):
        for word, position in enumerate(window.first_pieces, window.first_word):
            if read[window.sentence][word] is not None:
                raise ValueError(f"word {word} of sentence {window.sentence} has two predictions")
            read[window.sentence][word] = task.labels[int(predicted[position])]
    # Truncation keeps at least the first word of each sentence.
    needed = (of_sentence[:1] if task.long_sentences == "truncate" else of_sentence for of_sentence in read)
    missing = sum(label is None for of_sentence in needed for label in of_sentence)
    if missing:
        raise ValueError(f"{missing} words have no prediction")
    return [[label or "O" for label in of_sentence] for of_sentence in read]


def _pieces_of_words(ids: Sequence[int], word_ids: Sequence[int | None], num_words: int) -> list[list[int]]:
    pieces: list[list[int]] = [[] for _ in range(num_words)]
    for piece, word in zip(ids, word_ids, strict=True):
        if word is not None:
            pieces[word].append(piece)
    return pieces


def _read_empty_words(
    pieces: list[list[int]], unknown_id: int, sentence: NerSentence, warnings: CountedWarnings
) -> None:
    """Give a piece to words that the tokenizer drops, such as a zero-width space, so that each word has a label."""
    empty = [word for word, of_word in enumerate(pieces) if not of_word]
    for word in empty:
        pieces[word] = [unknown_id]
    warnings.add("words without pieces, read as [UNK]", sentence.where, len(empty))


def _truncate(
    pieces: list[list[int]], capacity: int, sentence: NerSentence, warnings: CountedWarnings
) -> list[list[int]]:
    """The words of which a piece fits; the last one may have lost some."""
    if sum(map(len, pieces)) <= capacity:
        return pieces
    kept: list[list[int]] = []
    room = capacity
    for of_word in pieces:
        if not room:
            break
        kept.append(of_word[:room])
        room -= len(kept[-1])
    warnings.add("sentences truncated at max_length", sentence.where)
    warnings.add("words behind max_length, predicted as O", sentence.where, len(pieces) - len(kept))
    return kept


def _cut(
    pieces: list[list[int]], capacity: int, sentence: NerSentence, warnings: CountedWarnings
) -> list[tuple[int, int]]:
    """First word of each window and the one after its last; windows of about equal length, so that all have context."""
    too_long = [word for word, of_word in enumerate(pieces) if len(of_word) > capacity]
    for word in too_long:
        pieces[word] = pieces[word][:capacity]
    warnings.add("words longer than max_length, of which the first pieces are read", sentence.where, len(too_long))
    total = sum(map(len, pieces))
    least_windows = -(-total // capacity)
    target = -(-total // least_windows)
    borders, length = [0], 0
    for word, of_word in enumerate(pieces):
        if length and (length >= target or length + len(of_word) > capacity):
            borders.append(word)
            length = 0
        length += len(of_word)
    borders.append(len(pieces))
    if len(borders) > 2:
        warnings.add("sentences longer than max_length, read in several windows", sentence.where)
    return list(pairwise(borders))
