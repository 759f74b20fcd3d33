"""Best fit: every segment once, within the limits, and as full as can be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kebiolm.data.shard_format import SCHEMA
from preprocessing.packing.best_fit import best_fit, pack_segments


def make_rows(sizes: list[tuple[int, int]]) -> pa.RecordBatch:
    """Segments of `length` positions with `mentions` mentions, all of whose values tell which segment it is."""
    rows = [
        {
            "input_ids": [number + 10] * length,
            "word_starts": [number % 2] * length,
            "bio_labels": [number % 3] * length,
            "document_starts": [0],
            "document_ids": [f"d{number}"],
            "mention_starts": list(range(mentions)),
            "mention_ends": list(range(1, mentions + 1)),
            "mention_entities": [number] * mentions,
        }
        for number, (length, mentions) in enumerate(sizes)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def test_the_tightest_fit_is_taken():
    # 7 and 6 open a group each; 3 fits only beside 7 and 6: beside 7 nothing is left over.
    assert best_fit([3, 6, 7], 10) == [[2, 0], [1]]
    assert best_fit([5, 5, 5, 5], 10) == [[0, 1], [2, 3]]
    assert best_fit([], 10) == []


@given(st.lists(st.integers(1, 30), max_size=60))
def test_groups_are_within_the_capacity_and_no_two_would_fit_together(lengths: list[int]):
    groups = best_fit(lengths, 30)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in group) for group in groups]
    assert all(0 < total <= 30 for total in sums)
    assert len(sums) < 2 or sum(sorted(sums)[:2]) > 30


@settings(deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(3, 32), st.integers(0, 3)), max_size=40))
def test_every_segment_is_packed_once_with_all_that_is_its_own(sizes: list[tuple[int, int]]):
    segments = make_rows(sizes)
    packed = pack_segments(segments, 32)
    packed.validate(full=True)
    originals, found = segments.to_pylist(), []
    for row in packed.to_pylist():
        assert len(row["input_ids"]) <= 32
        for name, (start, end) in zip(
            row["document_ids"], pairwise([*row["document_starts"], len(row["input_ids"])]), strict=True
        ):
            number = int(name[1:])
            original = originals[number]
            found.append(number)
            for column in ("input_ids", "word_starts", "bio_labels"):
                assert row[column][start:end] == original[column]
            mine = [place for place, position in enumerate(row["mention_starts"]) if start <= position < end]
            assert [row["mention_starts"][place] - start for place in mine] == original["mention_starts"]
            assert [row["mention_ends"][place] - start for place in mine] == original["mention_ends"]
            assert [row["mention_entities"][place] for place in mine] == original["mention_entities"]
        assert row["mention_starts"] == sorted(row["mention_starts"])
    assert sorted(found) == list(range(len(sizes)))


def test_rows_that_are_a_slice_are_packed_as_they_are():
    sizes = [(5, 1), (6, 2), (7, 0), (8, 3)]
    packed = pack_segments(make_rows(sizes).slice(1, 2), 32).to_pylist()
    assert [row["document_ids"] for row in packed] == [["d2", "d1"]]
    assert packed[0]["mention_entities"] == [1, 1] and packed[0]["mention_starts"] == [7, 8]


@pytest.mark.parametrize("seed", range(3))
def test_segments_of_usual_lengths_fill_sequences(seed: int):
    lengths = np.clip(np.random.default_rng(seed).normal(255, 90, 4000), 10, 512).astype(int)
    groups = best_fit(lengths, 512)
    assert lengths.sum() / (512 * len(groups)) >= 0.98
