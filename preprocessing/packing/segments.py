"""A document becomes segments: pieces that stay together in one sequence and attend to each other only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from preprocessing.packing.align import TokenizedDocument

UNIT_DOCUMENT, UNIT_SENTENCE = "document", "sentence"
UNITS = (UNIT_DOCUMENT, UNIT_SENTENCE)

# A sentence ends after . ! or ? (and closing quotes or brackets) before white space and something that can begin a
# sentence: a capital, a digit, an opening bracket or quote. A single capital before the full stop is an initial or a
# genus ("E. coli", "S. Typhimurium"), and a few abbreviations never end a sentence.
_SENTENCE_END = re.compile(
    r"""
    (?: [!?] | (?<!\b[A-Z]) (?<!\b(?:cf|Dr|Mr|No|St|vs)) (?<!\b(?:e\.g|Fig|i\.e|Mrs)) (?<!\bFigs) \. )
    ["')\]]*
    (?=\s+["'(\[]?[A-Z0-9])
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Segment:
    """Consecutive pieces of one document, without special ones, and the mentions inside them."""

    doc_id: str
    input_ids: np.ndarray
    """[n] int32"""
    word_starts: np.ndarray
    """[n] uint8"""
    mention_spans: np.ndarray
    """[M, 2] int32, relative to the segment's first piece."""
    mention_entities: np.ndarray
    """[M] int32, rows of the entity vocabulary."""


def sentence_ends(text: str) -> list[int]:
    """Positions (characters, exclusive) at which a sentence ends, without the end of the text; a simple rule."""
    return [match.end() for match in _SENTENCE_END.finditer(text)]


def segment_document(
    document: TokenizedDocument, text: str, *, max_pieces: int, unit: str
) -> tuple[list[Segment], int]:
    """Cut a document into segments of at most `max_pieces` pieces.

    Args:
        document: n pieces with their mentions.
        text: the text that the pieces come from.
        max_pieces: longest segment, in pieces without the special ones.
        unit: "document": cut only where it is too long, at the last sentence end that fits, else at the last word
            border. "sentence": each sentence is a segment; too long ones are cut at word borders. No cut is made
            inside a mention, unless the mention alone is longer than a segment.

    Returns:
        The segments in text order (none for an empty document), and the number of mentions that a cut broke and
        that are therefore in no segment.
    """
    assert unit in UNITS and max_pieces > 0
    spans, size = document.mentions.spans, len(document.input_ids)
    inside_mention = np.zeros(size + 1, dtype=bool)
    for first, last in spans:
        inside_mention[first + 1 : last] = True
    begins_word = np.append(document.word_starts, 0).astype(bool)
    free, words = np.flatnonzero(~inside_mention), np.flatnonzero(~inside_mention & begins_word)
    sentences = np.intersect1d(words, np.searchsorted(document.piece_starts, sentence_ends(text), side="left"))

    if unit == UNIT_DOCUMENT:
        cuts = _cuts_between(0, size, max_pieces, (sentences, words, free))
    else:
        borders = [0, *sentences.tolist(), size]
        cuts = [
            cut for first, last in pairwise(borders) for cut in _cuts_between(first, last, max_pieces, (words, free))
        ]
    segments = [_slice(document, first, last) for first, last in cuts]
    return segments, len(spans) - sum(len(segment.mention_spans) for segment in segments)


def _cuts_between(first: int, last: int, max_pieces: int, borders: tuple[np.ndarray, ...]) -> Iterator[tuple[int, int]]:
    """Pieces first..last as ranges of at most `max_pieces`, each cut at the last border that fits.

    The kinds of borders are tried in the order in which they are given.
    """
    while last - first > max_pieces:
        cut = first + max_pieces
        for kind in borders:
            fitting = kind[(kind > first) & (kind <= first + max_pieces)]
            if len(fitting):
                cut = int(fitting[-1])
                break
        yield first, cut
        first = cut
    if last > first:
        yield first, last


def _slice(document: TokenizedDocument, first: int, last: int) -> Segment:
    spans = document.mentions.spans
    here = (spans[:, 0] >= first) & (spans[:, 1] <= last)
    word_starts = document.word_starts[first:last].copy()
    word_starts[0] = 1  # also where a word longer than a whole segment was cut
    return Segment(
        doc_id=document.doc_id,
        input_ids=document.input_ids[first:last],
        word_starts=word_starts,
        mention_spans=spans[here] - np.int32(first),
        mention_entities=document.mention_entities[here],
    )
