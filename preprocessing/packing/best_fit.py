"""Best-fit packing: segments of several documents fill one sequence, with little padding left."""

from __future__ import annotations

from collections import defaultdict, deque

import numpy as np

from kebiolm.data.shard_format import BEGIN, INSIDE, OUTSIDE, PackedSequence
from preprocessing.packing.segments import Segment

NUM_SPECIAL_PIECES = 2  # [CLS] before and [SEP] after each segment


class SequencePacker:
    """Packs a stream of segments into sequences, one bounded window of segments after the other.

    Inside a window the longest segments are placed first, each into the fullest sequence in which it still fits
    ("best fit decreasing"). Pieces and mentions are both limited, so a mention loses its place among the `max_mentions`
    only where its segment alone has more.

    Args:
        max_length: most pieces of a sequence, special ones included.
        max_mentions: most mentions of a sequence that are listed with their entity.
        window: segments that are packed together. The order of the output follows from the input alone.
        cls_id: piece id of [CLS].
        sep_id: piece id of [SEP].
    """

    def __init__(self, *, max_length: int, max_mentions: int, window: int, cls_id: int, sep_id: int) -> None:
        self._max_length, self._max_mentions, self._window = max_length, max_mentions, window
        self._cls_id, self._sep_id = cls_id, sep_id
        self._waiting: list[Segment] = []

    def add(self, segment: Segment) -> list[PackedSequence]:
        """Take one segment; returns the finished sequences of a window whenever one is full."""
        assert 0 < len(segment.input_ids) <= self._max_length - NUM_SPECIAL_PIECES
        self._waiting.append(segment)
        return self.finish() if len(self._waiting) == self._window else []

    def finish(self) -> list[PackedSequence]:
        """Pack what is waiting."""
        segments, self._waiting = self._waiting, []
        return [self._join(group) for group in self._group(segments)]

    def _group(self, segments: list[Segment]) -> list[list[Segment]]:
        groups: list[list[Segment]] = []
        # Open sequences by (pieces left, mentions left). The flags repeat which keys exist, so that one argmax over
        # them finds the tightest fit without a walk over the open sequences.
        open_by_room: dict[tuple[int, int], deque[int]] = defaultdict(deque)
        is_open = np.zeros((self._max_length + 1, self._max_mentions + 1), dtype=bool)
        for segment in sorted(segments, key=lambda segment: -len(segment.input_ids)):
            pieces = len(segment.input_ids) + NUM_SPECIAL_PIECES
            mentions = min(len(segment.mention_spans), self._max_mentions)
            fitting = is_open[pieces:, mentions:]
            more_pieces, more_mentions = divmod(int(fitting.argmax()), fitting.shape[1])
            if fitting[more_pieces, more_mentions]:
                room = (pieces + more_pieces, mentions + more_mentions)
                index = open_by_room[room].popleft()
                is_open[room] = bool(open_by_room[room])
            else:
                room, index = (self._max_length, self._max_mentions), len(groups)
                groups.append([])
            groups[index].append(segment)
            room = (room[0] - pieces, room[1] - mentions)
            open_by_room[room].append(index)
            is_open[room] = True
        return groups

    def _join(self, segments: list[Segment]) -> PackedSequence:
        """Put segments one after the other, each between [CLS] and [SEP]."""
        lengths = np.array([len(segment.input_ids) + NUM_SPECIAL_PIECES for segment in segments])
        document_starts = (np.cumsum(lengths) - lengths).astype(np.int32)
        input_ids = np.empty(lengths.sum(), dtype=np.int32)
        word_starts = np.ones(len(input_ids), dtype=np.uint8)
        bio_labels = np.full(len(input_ids), OUTSIDE, dtype=np.uint8)
        spans, entities = [], []
        for segment, start, length in zip(segments, document_starts, lengths, strict=True):
            end = start + length
            input_ids[start], input_ids[end - 1] = self._cls_id, self._sep_id
            input_ids[start + 1 : end - 1] = segment.input_ids
            word_starts[start + 1 : end - 1] = segment.word_starts
            placed = segment.mention_spans + (start + 1)
            for first, last in placed:
                bio_labels[first] = BEGIN
                bio_labels[first + 1 : last] = INSIDE
            spans.append(placed[: self._max_mentions])
            entities.append(segment.mention_entities[: self._max_mentions])
        all_spans = np.concatenate(spans).astype(np.int32)
        return PackedSequence(
            input_ids=input_ids,
            word_starts=word_starts,
            bio_labels=bio_labels,
            document_starts=document_starts,
            document_ids=tuple(segment.doc_id for segment in segments),
            mention_starts=all_spans[:, 0],
            mention_ends=all_spans[:, 1],
            mention_entities=np.concatenate(entities).astype(np.int32),
        )
