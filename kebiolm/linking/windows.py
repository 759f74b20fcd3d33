"""Texts of any length become windows that fit the model; together they hold every piece of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Consecutive pieces of one text, without special ones."""

    text_index: int
    input_ids: list[int]
    offsets: list[tuple[int, int]]
    """Of each piece: its first character in the whole text, and the one after its last."""


def make_windows(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_pieces: int) -> list[Window]:
    """Tokenize texts and cut them where they are too long.

    Args:
        tokenizer: the model's.
        texts: may be empty strings; a text without pieces has no window.
        max_pieces: most pieces of a window, at least 1.

    Returns:
        Windows in the order of texts, and of the text within one.
    """
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    windows = []
    for index, text in enumerate(texts):
        ids, offsets = encoded["input_ids"][index], [tuple(pair) for pair in encoded["offset_mapping"][index]]
        first = 0
        for last in cut_positions(text, offsets, encoded.word_ids(index), max_pieces):
            windows.append(Window(text_index=index, input_ids=ids[first:last], offsets=offsets[first:last]))
            first = last
    return windows


def cut_positions(
    text: str, offsets: Sequence[tuple[int, int]], word_ids: Sequence[int | None], max_pieces: int
) -> list[int]:
    """Numbers of pieces at which windows end, the last one included.

    A window ends in its second half: after a sentence if there is one, else at white space, else at a word border, else
    where it is full; of equals the last.

    Args:
        text: the whole text.
        offsets: characters of each piece.
        word_ids: number of the word that each piece belongs to.
        max_pieces: most pieces of a window.
    """

    def worth(piece: int) -> tuple[int, int]:
        end, start = offsets[piece - 1][1], offsets[piece][0]
        if text[end:start].isspace():
            return (3 if text[end - 1] in ".!?" else 2), piece
        return int(word_ids[piece - 1] != word_ids[piece]), piece

    cuts, first = [], 0
    while len(offsets) - first > max_pieces:
        first = max(range(first + max_pieces // 2 + 1, first + max_pieces + 1), key=worth)
        cuts.append(first)
    return [*cuts, len(offsets)] if offsets else cuts
