"""From what a sample costs to what a corpus will: pure arithmetic, every figure with its range."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from preprocessing.annotation.job import AnnotationJob
from preprocessing.annotation.link_stage import LEAST_BUCKETS, TEXTS_PER_BUCKET
from preprocessing.watch.plan_measure import SampleCosts

SLICE_DOCUMENTS = AnnotationJob.__dataclass_fields__["slice_documents"].default

# English abstracts and the word pieces of a biomedical vocabulary; used where no tokenizer is given.
CHARACTERS_PER_PIECE = 5.1
MAX_LENGTH, FILL_RATE, SEQUENCES_PER_SHARD = 512, 0.98, 16384
_SPECIAL_PIECES = 2
# Bytes of a shard: a piece has an id, a word flag and a label, a mention three numbers, a segment a number and an id.
_PIECE_BYTES, _MENTION_BYTES, _SEGMENT_BYTES = 6, 12, 18
_LINK_BYTES = 24  # two halves of a digest, concept, score

# Memory of Ray 2.60 itself, measured: its processes on a node, and what it adds to a worker; and what the driver holds
# of each document while it looks for repeated ids.
RAY_NODE_BYTES, RAY_WORKER_BYTES = 400e6, 45e6
DRIVER_BYTES, ID_BYTES = 200e6, 220

# What a sample cannot tell of the exponent, below and above; and of the speed, as a share of it.
_LEAST_EXPONENT_DOUBTS = (0.15, 0.05)
_LEAST_SPEED_DOUBT = 0.1
_LEAST_POINTS = 4


@dataclass(frozen=True, kw_only=True)
class Range:
    """An estimate and the bounds that it will probably not leave."""

    low: float
    likely: float
    high: float

    def __mul__(self, factor: float) -> Range:
        return Range(low=self.low * factor, likely=self.likely * factor, high=self.high * factor)

    def __add__(self, other: Range | float) -> Range:
        if not isinstance(other, Range):
            other = Range(low=other, likely=other, high=other)
        return Range(low=self.low + other.low, likely=self.likely + other.likely, high=self.high + other.high)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Heaps' law from the end of a sample on: V(n) = texts * (n / mentions) ^ exponent.

    Attributes:
        mentions: of the sample.
        texts: distinct texts of the sample.
        exponent: between 0 (nothing new) and 1 (every mention is new).
        doubt_below: by how much the exponent may be lower.
        doubt_above: by how much it may be higher.
    """

    mentions: float
    texts: float
    exponent: float
    doubt_below: float
    doubt_above: float

    def texts_at(self, mentions: float) -> Range:
        """Distinct texts among this many mentions; never more than there are mentions."""
        factor = mentions / self.mentions
        values = [
            min(mentions, self.texts * factor ** min(max(self.exponent + doubt, 0.0), 1.0))
            for doubt in (-self.doubt_below, 0.0, self.doubt_above)
        ]
        low, likely, high = sorted(values)
        return Range(low=low, likely=likely, high=high)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a corpus will need.

    Attributes:
        docs: documents.
        workers: workers in all.
        mentions: found mentions.
        texts: distinct texts, each searched for once.
        core_hours: of all stages together.
        link_core_hours: of linking alone, part of the former.
        wall_hours: with that many workers on as many free cores.
        node_bytes: workers on one node -> its memory.
        driver_bytes: memory of the driver beside.
        work_bytes: disk for the work files, which are removed at the end.
        annotated_bytes: disk for the annotated documents.
        sequences: of 512 positions.
        shard_bytes: disk for the shards.
        work_files: files of the job while it runs.
        annotated_files: files that stay.
        shard_files: files of the shards.
    """

    docs: int
    workers: int
    mentions: float
    texts: Range
    core_hours: Range
    link_core_hours: Range
    wall_hours: Range
    node_bytes: dict[int, float]
    driver_bytes: float
    work_bytes: Range
    annotated_bytes: float
    sequences: float
    shard_bytes: float
    work_files: int
    annotated_files: int
    shard_files: int


def fit_growth(curve: tuple[tuple[float, float], ...]) -> Growth | None:
    """Fit Heaps' law to the end of a curve of (mentions, distinct texts); None for a sample without mentions.

    The exponent is the curve's slope, in logarithms, over its last threefold; it is doubted by how much the threefold
    before was steeper or flatter, and more below than above, because the curves of abstracts bend downwards: from 200
    and 400 of 1,092 abstracts the likely number was 22% and 14% too high, and the true one within the range.
    """
    if len(curve) < _LEAST_POINTS:
        return None
    points = np.log(np.array(curve))
    to_end = points[-1, 0] - points[:, 0]
    step = math.log(10) / 2
    last, before = points[to_end <= step], points[(to_end >= step) & (to_end <= 2 * step)]
    if min(len(last), len(before)) < 2:
        return None
    exponent = _slope(last)
    mentions, texts = curve[-1]
    bend = abs(_slope(before) - exponent)
    below, above = (max(least, bend) for least in _LEAST_EXPONENT_DOUBTS)
    return Growth(mentions=mentions, texts=texts, exponent=exponent, doubt_below=below, doubt_above=above)


def seconds_per_document(costs: SampleCosts) -> Range:
    """NER's seconds for a document: the mean over slices, more or less two standard errors, and at least a tenth."""
    speeds = np.array(costs.find_s) / np.array(costs.slice_documents)
    likely = sum(costs.find_s) / sum(costs.slice_documents)
    doubt = 2 * float(speeds.std(ddof=1)) / math.sqrt(len(speeds)) if len(speeds) > 1 else 0.5 * likely
    doubt = max(doubt, _LEAST_SPEED_DOUBT * likely)
    return Range(low=max(likely - doubt, 0.0), likely=likely, high=likely + doubt)


def make_plan(costs: SampleCosts, *, docs: int, workers: int, per_node: tuple[int, ...]) -> Plan:
    """Extrapolate.

    Args:
        costs: what the sample cost.
        docs: documents of the corpus.
        workers: workers in all.
        per_node: numbers of workers on one node for which memory is asked.
    """
    scale = docs / costs.documents
    mentions = costs.mentions * scale
    growth = fit_growth(costs.curve)
    texts = growth.texts_at(mentions) if growth else Range(low=0, likely=0, high=mentions)
    link_seconds = texts * (costs.link_s / max(costs.texts, 1))
    light = (costs.read_s + costs.join_s) * scale
    seconds = seconds_per_document(costs) * docs + link_seconds + light
    slices = math.ceil(docs / SLICE_DOCUMENTS)
    slice_texts = slices * growth.texts_at(mentions / slices).likely if growth else 0.0
    buckets = max(LEAST_BUCKETS, math.ceil(slice_texts / TEXTS_PER_BUCKET))
    # Each slice is a unit of finding and one of joining. The driver's work is added whole, though most of it is done
    # while workers work.
    alone = costs.driver_s / costs.units * (2 * slices + buckets) + costs.start_s
    sequences = _pieces(costs, scale) / (MAX_LENGTH * FILL_RATE)
    text_bytes = costs.text_bytes / max(costs.slice_texts, 1)
    return Plan(
        docs=docs,
        workers=workers,
        mentions=mentions,
        texts=texts,
        core_hours=seconds * (1 / 3600),
        link_core_hours=link_seconds * (1 / 3600),
        wall_hours=(seconds * (1 / workers) + alone) * (1 / 3600),
        node_bytes={number: node_bytes(costs, number) for number in sorted({*per_node})},
        driver_bytes=DRIVER_BYTES + ID_BYTES * docs,
        work_bytes=texts * _LINK_BYTES + (costs.slice_bytes + costs.mention_bytes) * scale + slice_texts * text_bytes,
        annotated_bytes=costs.part_bytes * scale,
        sequences=sequences,
        shard_bytes=_shard_bytes(costs, scale),
        work_files=slices * 6 + 2 * buckets,
        annotated_files=slices * 3 + 3,
        shard_files=math.ceil(sequences / SEQUENCES_PER_SHARD),
    )


def node_bytes(costs: SampleCosts, workers: int) -> float:
    """Memory of a node: each worker has its own model, all share one index."""
    return RAY_NODE_BYTES + workers * (costs.worker_bytes + RAY_WORKER_BYTES) + costs.index_bytes


def _pieces(costs: SampleCosts, scale: float) -> float:
    """Word pieces of the corpus with a [CLS] and a [SEP] for each document."""
    pieces = costs.characters / CHARACTERS_PER_PIECE if costs.pieces is None else costs.pieces
    return (pieces + _SPECIAL_PIECES * costs.documents) * scale


def _shard_bytes(costs: SampleCosts, scale: float) -> float:
    # At most all found mentions are linked.
    return _pieces(costs, scale) * _PIECE_BYTES + scale * (
        costs.mentions * _MENTION_BYTES + costs.documents * _SEGMENT_BYTES
    )


def _slope(points: np.ndarray) -> float:
    """Slope of the straight line nearest to points [N, 2]."""
    x, y = points[:, 0] - points[:, 0].mean(), points[:, 1] - points[:, 1].mean()
    return float((x * y).sum() / (x * x).sum())
