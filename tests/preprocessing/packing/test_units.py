"""Units of work: which parts go together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.packing.units import group_sizes


@pytest.mark.parametrize(
    ("sizes", "most", "groups"),
    [
        ([], 10, []),
        ([0], 10, [[0]]),
        ([4, 4, 4], 8, [[0, 1], [2]]),
        ([20, 1, 1], 10, [[0], [1, 2]]),
        ([1, 20, 1], 10, [[0], [1], [2]]),
        ([0, 0, 10, 0, 1], 10, [[0, 1, 2, 3], [4]]),
    ],
)
def test_groups(sizes: list[int], most: int, groups: list[list[int]]):
    assert [list(group) for group in group_sizes(sizes, most)] == groups


@given(st.lists(st.integers(0, 12), max_size=30), st.integers(1, 20))
def test_every_part_is_in_one_group_and_groups_are_not_small(sizes: list[int], most: int):
    groups = group_sizes(sizes, most)
    assert [part for group in groups for part in group] == list(range(len(sizes)))
    totals = [sum(sizes[part] for part in group) for group in groups]
    assert all(total <= most or len(group) == 1 for total, group in zip(totals, groups, strict=True))
    assert all(sum(totals[place : place + 2]) > most for place in range(len(totals) - 1))
