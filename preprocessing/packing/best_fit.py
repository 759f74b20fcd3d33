"""Best-fit packing: segments of several documents fill one sequence, with little padding left."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pyarrow as pa

from kebiolm.data.shard_format import SCHEMA, make_rows

# These columns count positions from the beginning of their row.
_POSITIONS = ("document_starts", "mention_starts", "mention_ends")


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Group lengths so that no group's sum is above the capacity: best fit decreasing.

    The longest are placed first, each into the fullest group in which it still fits. The result follows from the
    arguments alone.

    Args:
        lengths: 0 < length <= capacity.
        capacity: most that the lengths of a group may add up to.

    Returns:
        Groups of indices into `lengths`, each index once.
    """
    groups: list[list[int]] = []
    open_by_room: dict[int, deque[int]] = defaultdict(deque)
    rooms = 0  # bit r is set where a group with room for r more is open: the lowest bit that is high enough fits best
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[index])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            group = open_by_room[room].popleft()
            if not open_by_room[room]:
                rooms ^= 1 << room
        else:
            room, group = capacity, len(groups)
            groups.append([])
        groups[group].append(index)
        open_by_room[room - length].append(group)
        rooms |= 1 << (room - length)
    return groups


def pack_segments(segments: pa.RecordBatch, max_length: int) -> pa.RecordBatch:
    """Join segments to sequences of at most `max_length` pieces.

    Args:
        segments: rows as in `kebiolm.data.shard_format.SCHEMA`, each one segment of at most `max_length` pieces.
        max_length: most pieces of a sequence, special ones included.

    Returns:
        Rows of several segments each, in the same columns.
    """
    lengths = segments["input_ids"].value_lengths().to_numpy()
    groups = best_fit(lengths, max_length)
    order = np.fromiter(chain.from_iterable(groups), dtype=np.int64, count=len(lengths))
    # First segment of each group in this order, and the position of each segment in its sequence.
    firsts = np.cumsum([0, *map(len, groups)])
    segment_ends = np.cumsum(lengths[order])
    segment_starts = segment_ends - lengths[order]
    segment_starts -= np.repeat(segment_starts[firsts[:-1]], np.diff(firsts))

    columns = {}
    for name in SCHEMA.names:
        column = segments[name].take(pa.array(order))
        values, counts = column.flatten(), column.value_lengths().to_numpy()
        if name in _POSITIONS:
            values = values.to_numpy() + np.repeat(segment_starts, counts)
        ends = np.concatenate([[0], np.cumsum(counts)])[firsts]
        columns[name] = (values, np.diff(ends))
    return make_rows(columns)
