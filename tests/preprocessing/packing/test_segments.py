"""Cutting documents: sentence ends, word borders, mentions that stay whole, the cap on mentions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.packing.align import Pieces
from preprocessing.packing.segments import SegmentRows, cut_documents, make_segments, sentence_ends

CLS, SEP = 9002, 9003
Words = list[list[str]]


def make_documents(documents: list[Words]) -> tuple[Pieces, list[str]]:
    """Documents whose words are given as lists of pieces; the pieces are numbered over all documents."""
    texts, starts, ends, word_starts, sizes = [], [], [], [], []
    for words in documents:
        base, text = sum(map(len, texts)), ""
        for word in words:
            text += " " if text else ""
            for number, piece in enumerate(word):
                starts.append(base + len(text))
                word_starts.append(number == 0)
                text += piece
                ends.append(base + len(text))
        texts.append(text)
        sizes.append(sum(map(len, words)))
    pieces = Pieces(
        ids=np.arange(len(starts), dtype=np.int32),
        word_starts=np.array(word_starts, dtype=bool),
        starts=np.array(starts, dtype=int),
        ends=np.array(ends, dtype=int),
        document_starts=np.cumsum([0, *sizes]),
        text_starts=np.cumsum([0, *map(len, texts)]),
    )
    return pieces, texts


def segment(
    documents: list[Words],
    spans: list[tuple[int, int]] = (),
    *,
    max_pieces: int,
    unit: str = "document",
    max_mentions: int = 50,
) -> SegmentRows:
    """Cut documents and make their segments; mention number n has entity n + 3."""
    pieces, texts = make_documents(documents)
    mentions = np.array(spans, dtype=int).reshape(-1, 2)
    starts = cut_documents(pieces, mentions, texts, max_pieces=max_pieces, unit=unit)
    return make_segments(
        pieces,
        starts,
        pa.array([f"d{number}" for number in range(len(documents))], pa.string()),
        spans=mentions,
        entities=np.arange(len(mentions)) + 3,
        max_mentions=max_mentions,
        special_ids=(CLS, SEP),
    )


def ranges(made: SegmentRows) -> list[tuple[int, int]]:
    """Pieces that each segment holds; `make_documents` numbers them."""
    return [(ids[1], ids[-2] + 1) for ids in made.rows["input_ids"].to_pylist()]


def spans_of(made: SegmentRows) -> list[list[tuple[int, int]]]:
    """Spans of each segment's listed mentions, counted from its [CLS]."""
    columns = (made.rows[name].to_pylist() for name in ("mention_starts", "mention_ends"))
    return [list(zip(starts, ends, strict=True)) for starts, ends in zip(*columns, strict=True)]


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
    made = segment([WORDS], [(1, 3), (5, 6)], max_pieces=13)
    (row,) = made.rows.to_pylist()
    assert row == {
        "input_ids": [CLS, *range(13), SEP],
        "word_starts": [1] * 15,
        "bio_labels": [0, 0, 1, 2, 0, 0, 1, *[0] * 8],
        "document_starts": [0],
        "document_ids": ["d0"],
        "mention_starts": [2, 6],
        "mention_ends": [4, 7],
        "mention_entities": [3, 4],
    }
    assert (made.beyond_cap, made.broken) == (0, 0)


def test_mentions_that_touch_have_their_own_labels():
    made = segment([WORDS], [(0, 2), (2, 3), (3, 5)], max_pieces=13)
    assert made.rows["bio_labels"][0].as_py()[:7] == [0, 1, 2, 1, 1, 2, 0]


def test_cuts_at_the_last_sentence_end_that_fits():
    assert ranges(segment([[["A"], ["b."], ["C"], ["d."], ["E"], ["f"]]], max_pieces=5)) == [(0, 4), (4, 6)]


def test_cuts_at_a_word_border_where_no_sentence_ends():
    assert ranges(segment([[["a"], ["b"], ["c", "d", "e"], ["f"]]], max_pieces=4)) == [(0, 2), (2, 6)]


def test_a_word_that_was_cut_begins_anew():
    made = segment([[["a", "b", "c", "d"]]], max_pieces=3)
    assert made.rows["word_starts"].to_pylist() == [[1, 1, 0, 0, 1], [1, 1, 1]]


def test_a_mention_is_not_cut():
    words = [["A"], ["b."], ["C"], ["d"], ["e"]]
    made = segment([words], [(1, 4)], max_pieces=4)
    # The sentence end after piece 1 lies inside the mention.
    assert ranges(made) == [(0, 4), (4, 5)] and made.broken == 0
    made = segment([words], [(1, 4)], max_pieces=3)
    assert ranges(made) == [(0, 1), (1, 4), (4, 5)] and made.broken == 0
    assert spans_of(made) == [[], [(1, 4)], []]


def test_a_mention_longer_than_a_segment_is_counted():
    made = segment([[["a"], ["b", "c", "d", "e", "f"], ["g"]]], [(1, 6), (6, 7)], max_pieces=3)
    assert made.broken == 1
    assert sum(map(len, spans_of(made))) == 1
    assert sum(made.rows["bio_labels"].flatten().to_pylist()) == 1, "a broken mention has no labels"
    assert [piece for pair in ranges(made) for piece in range(*pair)] == list(range(7))


def test_the_cap_holds_for_each_segment():
    document = [["a"], ["b"], ["c"], ["d"], ["e."], ["F"], ["g"], ["h"]]
    spans = [(0, 1), (1, 2), (2, 3), (5, 6), (6, 7), (7, 8), (8, 9), (10, 11)]
    made = segment([document, document], spans, max_pieces=5, max_mentions=2)
    assert ranges(made) == [(0, 5), (5, 8), (8, 13), (13, 16)]
    assert spans_of(made) == [[(1, 2), (2, 3)], [(1, 2), (2, 3)], [(1, 2), (3, 4)], []]
    assert made.rows["mention_entities"].to_pylist() == [[3, 4], [6, 7], [9, 10], []]
    assert made.beyond_cap == 2
    assert (made.rows["bio_labels"].flatten().to_numpy() == 1).sum() == 8, "the excess keeps its BIO labels"


def test_unit_sentence():
    document = [["A"], ["b."], ["C"], ["d"], ["e"], ["f."], ["G"]]
    made = segment([document, document], max_pieces=3, unit="sentence")
    assert ranges(made) == [(0, 2), (2, 5), (5, 6), (6, 7), (7, 9), (9, 12), (12, 13), (13, 14)]
    assert [names[0] for names in made.rows["document_ids"].to_pylist()] == ["d0"] * 4 + ["d1"] * 4


@pytest.mark.parametrize("unit", ["document", "sentence"])
def test_an_empty_document_has_no_segment(unit: str):
    assert segment([[]], max_pieces=3, unit=unit).rows.num_rows == 0
    assert segment([], max_pieces=3, unit=unit).rows.num_rows == 0
    made = segment([[], [["a"]], [], [["b"]], []], max_pieces=3, unit=unit)
    assert made.rows["document_ids"].to_pylist() == [["d1"], ["d3"]]


@settings(max_examples=200, deadline=None)
@given(
    documents=st.lists(
        st.lists(st.lists(st.sampled_from(["a", "Bc", "d.", "E", "."]), min_size=1, max_size=5), max_size=20),
        min_size=1,
        max_size=4,
    ),
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), max_size=15),
    max_pieces=st.integers(1, 12),
    max_mentions=st.integers(1, 4),
    unit=st.sampled_from(["document", "sentence"]),
)
def test_nothing_is_lost_or_moved(documents, steps, max_pieces, max_mentions, unit):
    borders = np.cumsum([0, *(sum(map(len, words)) for words in documents)])
    spans, position = [], 0
    for gap, length in steps:
        start, end = position + gap, position + gap + length
        # Mentions lie inside one document.
        if end <= borders[-1] and not ((borders > start) & (borders < end)).any():
            spans.append((start, end))
        position = end
    made = segment(documents, spans, max_pieces=max_pieces, max_mentions=max_mentions, unit=unit)
    rows = made.rows.to_pylist()
    assert [piece for row in rows for piece in row["input_ids"][1:-1]] == list(range(borders[-1]))
    for row in rows:
        assert 0 < len(row["input_ids"]) - 2 <= max_pieces
        assert row["word_starts"][:2] == [1, 1] and row["word_starts"][-1] == 1
        assert (row["input_ids"][0], row["input_ids"][-1]) == (CLS, SEP)
        first, last = row["input_ids"][1], row["input_ids"][-2]
        document = int(row["document_ids"][0][1:])
        assert borders[document] <= first <= last < borders[document + 1]
        inside = [(n, span) for n, span in enumerate(spans) if first <= span[0] and span[1] <= last + 1]
        listed = [(start - first + 1, end - first + 1, n + 3) for n, (start, end) in inside[:max_mentions]]
        assert listed == list(zip(row["mention_starts"], row["mention_ends"], row["mention_entities"], strict=True))
        labels = np.zeros(len(row["input_ids"]), int)
        for _, (start, end) in inside:
            labels[start - first + 1 : end - first + 1] = [1] + [2] * (end - start - 1)
        assert row["bio_labels"] == labels.tolist()
    listed_in_all = sum(len(row["mention_starts"]) for row in rows)
    assert listed_in_all + made.beyond_cap + made.broken == len(spans)
    assert made.broken <= sum(end - start > max_pieces for start, end in spans)
