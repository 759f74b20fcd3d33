"""Documents become segments: pieces that stay together in one sequence and attend to each other only.

A segment is kept as a row of the shards' own columns, as if it were a sequence of this one segment: packing then only
has to join rows, and segments that wait on disk need no format of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from kebiolm.data.shard_format import BEGIN, INSIDE, OUTSIDE, make_rows
from preprocessing.packing.align import Pieces

UNIT_DOCUMENT, UNIT_SENTENCE = "document", "sentence"
UNITS = (UNIT_DOCUMENT, UNIT_SENTENCE)

NUM_SPECIAL_PIECES = 2  # [CLS] before and [SEP] after each segment

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
class SegmentRows:
    """The rows of segments, and what became of their mentions."""

    rows: pa.RecordBatch
    """One segment a row, in the columns of `kebiolm.data.shard_format.SCHEMA`, [CLS] and [SEP] included."""
    beyond_cap: int
    """Mentions beyond the cap of their segment: BIO labels only."""
    broken: int
    """Mentions that a cut broke and that are therefore in no segment."""


def sentence_ends(text: str) -> list[int]:
    """Positions (characters, exclusive) at which a sentence ends, without the end of the text; a simple rule."""
    return [match.end() for match in _SENTENCE_END.finditer(text)]


def cut_documents(pieces: Pieces, spans: np.ndarray, texts: Sequence[str], *, max_pieces: int, unit: str) -> np.ndarray:
    """Cut documents into segments of at most `max_pieces` pieces.

    Args:
        pieces: of the texts.
        spans: [M, 2] the mentions' pieces.
        texts: D texts.
        max_pieces: longest segment, in pieces without the special ones.
        unit: "document": cut only where it is too long, at the last sentence end that fits, else at the last word
            border. "sentence": each sentence is a segment; too long ones are cut at word borders. No cut is made
            inside a mention, unless the mention alone is longer than a segment.

    Returns:
        [S + 1] the first piece of each segment, in text order, and the number of pieces; an empty document has none.
    """
    assert unit in UNITS and max_pieces > 0
    borders = pieces.document_starts.tolist()
    starts: list[int] = []
    for number, (first, last) in enumerate(pairwise(borders)):
        if unit == UNIT_DOCUMENT and last - first <= max_pieces:
            starts += [first] if last > first else []
        else:
            starts += _cuts(pieces, spans, number, texts[number], max_pieces=max_pieces, unit=unit)
    return np.array([*starts, borders[-1]])


def make_segments(
    pieces: Pieces,
    starts: np.ndarray,
    doc_ids: pa.Array,
    *,
    spans: np.ndarray,
    entities: np.ndarray,
    max_mentions: int,
    special_ids: tuple[int, int],
) -> SegmentRows:
    """Make the rows of segments.

    Args:
        pieces: of D documents, P pieces.
        starts: [S + 1] as `cut_documents` returns them.
        doc_ids: [D] strings.
        spans: [M, 2] the mentions' pieces.
        entities: [M] rows of the entity vocabulary.
        max_mentions: most mentions of a segment that are listed.
        special_ids: piece ids of [CLS] and [SEP].
    """
    lengths = np.diff(starts)
    segments = np.arange(len(lengths))
    segment_of_piece = np.repeat(segments, lengths)
    # All rows one after the other: where each row, and each piece, comes to stand among the special ones.
    row_lengths = lengths + NUM_SPECIAL_PIECES
    row_starts = starts[:-1] + NUM_SPECIAL_PIECES * segments
    places = np.arange(len(pieces.ids)) + NUM_SPECIAL_PIECES * segment_of_piece + 1

    input_ids = np.empty(row_lengths.sum(), dtype=np.int32)
    input_ids[row_starts], input_ids[row_starts + row_lengths - 1] = special_ids
    input_ids[places] = pieces.ids
    word_starts = np.ones(len(input_ids), dtype=np.uint8)
    word_starts[places] = pieces.word_starts
    word_starts[row_starts + 1] = 1  # also where a word longer than a whole segment was cut

    segment_of_mention = segment_of_piece[spans[:, 0]]
    is_whole = segment_of_mention == segment_of_piece[spans[:, 1] - 1]
    spans, entities, segment_of_mention = spans[is_whole], entities[is_whole], segment_of_mention[is_whole]
    bio_labels = np.full(len(input_ids), OUTSIDE, dtype=np.uint8)
    steps = np.zeros(len(pieces.ids) + 1, dtype=np.int8)
    steps[spans[:, 0]] += 1
    steps[spans[:, 1]] -= 1
    bio_labels[places[np.cumsum(steps[:-1]) > 0]] = INSIDE
    bio_labels[places[spans[:, 0]]] = BEGIN

    rank = np.arange(len(spans)) - np.searchsorted(segment_of_mention, segment_of_mention)
    is_listed = rank < max_mentions
    segment_of_mention = segment_of_mention[is_listed]
    mention_starts = places[spans[is_listed, 0]] - row_starts[segment_of_mention]
    mention_ends = mention_starts + np.diff(spans[is_listed])[:, 0]
    mentions_of_row = np.bincount(segment_of_mention, minlength=len(segments))

    document_of_segment = np.searchsorted(pieces.document_starts, starts[:-1], side="right") - 1
    one_each = np.ones(len(segments), dtype=np.int64)
    rows = make_rows(
        {
            "input_ids": (input_ids, row_lengths),
            "word_starts": (word_starts, row_lengths),
            "bio_labels": (bio_labels, row_lengths),
            "document_starts": (np.zeros(len(segments), dtype=np.int32), one_each),
            "document_ids": (doc_ids.take(pa.array(document_of_segment)), one_each),
            "mention_starts": (mention_starts.astype(np.int32), mentions_of_row),
            "mention_ends": (mention_ends.astype(np.int32), mentions_of_row),
            "mention_entities": (entities[is_listed].astype(np.int32), mentions_of_row),
        }
    )
    return SegmentRows(rows=rows, beyond_cap=int((~is_listed).sum()), broken=int((~is_whole).sum()))


def _cuts(pieces: Pieces, spans: np.ndarray, document: int, text: str, *, max_pieces: int, unit: str) -> Iterator[int]:
    """First piece of each segment of one document."""
    first, last = pieces.document_starts[document : document + 2]
    inside_mention = np.zeros(last - first + 1, dtype=bool)
    for start, end in spans[slice(*np.searchsorted(spans[:, 0], (first, last)))] - first:
        inside_mention[start + 1 : end] = True
    begins_word = np.append(pieces.word_starts[first:last], False)
    free, words = np.flatnonzero(~inside_mention), np.flatnonzero(~inside_mention & begins_word)
    ends = pieces.text_starts[document] + np.array(sentence_ends(text), dtype=np.int64)
    sentences = np.intersect1d(words, np.searchsorted(pieces.starts[first:last], ends, side="left"))
    if unit == UNIT_DOCUMENT:
        ranges: Iterable[tuple[int, int]] = [(0, last - first)]
        kinds = (sentences, words, free)
    else:
        ranges, kinds = pairwise([0, *sentences.tolist(), last - first]), (words, free)
    return (first + cut for start, end in ranges for cut in _cuts_between(start, end, max_pieces, kinds))


def _cuts_between(first: int, last: int, max_pieces: int, borders: tuple[np.ndarray, ...]) -> Iterator[int]:
    """Where ranges of at most `max_pieces` begin that make up first..last, each cut at the last border that fits.

    The kinds of borders are tried in the order in which they are given.
    """
    while last - first > max_pieces:
        yield first
        cut = first + max_pieces
        for kind in borders:
            fitting = kind[(kind > first) & (kind <= first + max_pieces)]
            if len(fitting):
                cut = int(fitting[-1])
                break
        first = cut
    if last > first:
        yield first
