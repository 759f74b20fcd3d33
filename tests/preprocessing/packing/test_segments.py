"""Cutting documents: sentence ends, word borders, mentions that stay whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.packing.align import AlignedMentions, TokenizedDocument
from preprocessing.packing.segments import Segment, segment_document, sentence_ends


def make_document(words: list[list[str]], mentions: list[tuple[int, int]] = ()) -> tuple[TokenizedDocument, str]:
    """A document whose words are given as lists of pieces; mentions are piece spans."""
    text, starts, word_starts = "", [], []
    for word in words:
        text += " " if text else ""
        for number, piece in enumerate(word):
            starts.append(len(text))
            word_starts.append(int(number == 0))
            text += piece
    aligned = AlignedMentions(
        spans=np.array(mentions, dtype=np.int32).reshape(-1, 2),
        sources=np.arange(len(mentions)),
        unaligned=0,
        overlapping=0,
    )
    document = TokenizedDocument(
        doc_id="1",
        input_ids=np.arange(len(starts), dtype=np.int32),
        word_starts=np.array(word_starts, dtype=np.uint8),
        piece_starts=np.array(starts, dtype=np.int64),
        mentions=aligned,
        mention_entities=np.arange(len(mentions), dtype=np.int32) + 3,
    )
    return document, text


def ranges(segments: list[Segment]) -> list[tuple[int, int]]:
    """Pieces that each segment holds; `make_document` numbers them."""
    return [(int(segment.input_ids[0]), int(segment.input_ids[-1]) + 1) for segment in segments]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Grown with E. Coli at 0.5 mg. Then (p < 0.05). [Also] this.", 3),
        ("Seen in Fig. 2 vs. Placebo, i.e. None at all.", 1),
        ('He said "no." Then left.', ['He said "no."', "Then left."]),
        ("Dose of 5.2 mg/kg i.v. was given", 1),
        ("", 1),
    ],
)
def test_sentence_ends(text: str, sentences: list[str] | int):
    borders = [0, *sentence_ends(text), len(text)]
    found = [text[start:end].strip() for start, end in pairwise(borders)]
    assert found == sentences if isinstance(sentences, list) else len(found) == sentences


WORDS = [[word] for word in ["Aa", "bb", "cc", ".", "Dd", "ee", ".", "Ff", "gg", "hh", "ii", "jj", "kk"]]


def test_a_short_document_is_one_segment():
    document, text = make_document(WORDS, [(1, 3)])
    segments, broken = segment_document(document, text, max_pieces=13, unit="document")
    assert ranges(segments) == [(0, 13)] and broken == 0
    assert segments[0].mention_spans.tolist() == [[1, 3]]


def test_cuts_at_the_last_sentence_end_that_fits():
    document, text = make_document([["A"], ["b."], ["C"], ["d."], ["E"], ["f"]])
    segments, _ = segment_document(document, text, max_pieces=5, unit="document")
    assert ranges(segments) == [(0, 4), (4, 6)]


def test_cuts_at_a_word_border_where_no_sentence_ends():
    document, text = make_document([["a"], ["b"], ["c", "d", "e"], ["f"]])
    segments, _ = segment_document(document, text, max_pieces=4, unit="document")
    assert ranges(segments) == [(0, 2), (2, 6)]


def test_a_mention_is_not_cut():
    document, text = make_document([["A"], ["b."], ["C"], ["d"], ["e"]], [(1, 4)])
    segments, broken = segment_document(document, text, max_pieces=4, unit="document")
    # The sentence end after piece 1 lies inside the mention.
    assert ranges(segments) == [(0, 4), (4, 5)] and broken == 0
    segments, broken = segment_document(document, text, max_pieces=3, unit="document")
    assert ranges(segments) == [(0, 1), (1, 4), (4, 5)] and broken == 0
    assert [segment.mention_spans.tolist() for segment in segments] == [[], [[0, 3]], []]


def test_a_mention_longer_than_a_segment_is_counted():
    document, text = make_document([["a"], ["b", "c", "d", "e", "f"], ["g"]], [(1, 6), (6, 7)])
    segments, broken = segment_document(document, text, max_pieces=3, unit="document")
    assert broken == 1
    assert sum(len(segment.mention_spans) for segment in segments) == 1
    assert np.concatenate([segment.input_ids for segment in segments]).tolist() == list(range(7))


def test_unit_sentence():
    document, text = make_document([["A"], ["b."], ["C"], ["d"], ["e"], ["f."], ["G"]])
    segments, _ = segment_document(document, text, max_pieces=3, unit="sentence")
    assert ranges(segments) == [(0, 2), (2, 5), (5, 6), (6, 7)]


def test_an_empty_document_has_no_segment():
    document, text = make_document([])
    assert segment_document(document, text, max_pieces=3, unit="document") == ([], 0)
    assert segment_document(document, text, max_pieces=3, unit="sentence") == ([], 0)


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(
        st.lists(st.sampled_from(["a", "Bc", "d.", "E", "."]), min_size=1, max_size=5), min_size=1, max_size=30
    ),
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), max_size=10),
    max_pieces=st.integers(1, 12),
    unit=st.sampled_from(["document", "sentence"]),
)
def test_nothing_is_lost_or_moved(words, steps, max_pieces, unit):
    size, spans, position = sum(map(len, words)), [], 0
    for gap, length in steps:
        if position + gap + length <= size:
            spans.append((position + gap, position + gap + length))
            position += gap + length
    document, text = make_document(words, spans)
    segments, broken = segment_document(document, text, max_pieces=max_pieces, unit=unit)
    assert np.concatenate([segment.input_ids for segment in segments]).tolist() == list(range(size))
    assert all(0 < len(segment.input_ids) <= max_pieces and segment.word_starts[0] == 1 for segment in segments)
    found = [
        (int(segment.input_ids[start]), int(segment.input_ids[end - 1]) + 1, int(entity))
        for segment in segments
        for (start, end), entity in zip(segment.mention_spans, segment.mention_entities, strict=True)
    ]
    expected = [(start, end, number + 3) for number, (start, end) in enumerate(spans)]
    assert set(found) <= set(expected) and len(found) + broken == len(expected)
    assert {span for span in expected if span[1] - span[0] <= max_pieces} <= set(found)
