"""Stage 4: each distinct text of the whole job is linked once; the table of answers is looked up by digest.

The texts are shared out over buckets by their digest, so that buckets are linked in parallel, none is large, and all of
them together are one sorted table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kebiolm.files import atomic_path, write_json
from preprocessing.annotation.find_stage import TEXTS_SCHEMA
from preprocessing.annotation.store import part_name
from preprocessing.annotation.unit_files import (
    describe_table,
    map_arrow,
    read_unit_manifest,
    write_arrow,
    write_unit_manifest,
)
from preprocessing.linker.choice import Linker

TEXTS_PER_BUCKET = 400_000
# Also a small job is shared by all workers.
LEAST_BUCKETS = 16

BUCKETS_FILE = "links.json"
# `concept` is the number of a CUI in the link index, -1 where no concept scores above the threshold.
LINKS_SCHEMA = pa.schema(
    [("digest_high", pa.uint64()), ("digest_low", pa.uint64()), ("concept", pa.int32()), ("score", pa.float32())]
)


def plan_buckets(work: Path, texts: int) -> int:
    """Choose the number of buckets from the sum of the slices' distinct texts, and note it for `kebiolm status`."""
    buckets = max(LEAST_BUCKETS, math.ceil(texts / TEXTS_PER_BUCKET))
    write_json(work / BUCKETS_FILE, {"buckets": buckets})
    return buckets


def link_texts(
    work: Path, bucket: int, buckets: int, parts: Iterable[int], linker: Linker, *, threshold: float, made_from: str
) -> dict[str, Any]:
    """Link the distinct texts of one bucket.

    Args:
        work: the job's work folder.
        bucket: number of the bucket.
        buckets: how many there are.
        parts: numbers of all slices that were searched.
        linker: links texts.
        threshold: keep a concept where its score is strictly above this.
        made_from: fingerprint of all slices' texts and of the number of buckets.

    Returns:
        The unit's manifest.
    """
    pieces = [_texts_of_bucket(work / "found" / f"{part_name(part)}.texts.arrow", bucket, buckets) for part in parts]
    texts = pa.concat_tables([TEXTS_SCHEMA.empty_table(), *pieces]).combine_chunks()
    high, low = texts["digest_high"].to_numpy(), texts["digest_low"].to_numpy()
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    distinct = texts["text"].take(pa.array(order[is_first])).to_pylist()
    linked = linker.link_above(distinct, threshold)
    columns = (high[is_first], low[is_first], linked.concept, linked.score)
    table = pa.table([pa.array(column) for column in columns], schema=LINKS_SCHEMA)
    name = f"{bucket_name(bucket)}.arrow"
    with atomic_path(work / "links" / name) as path:
        write_arrow(path, table)
    counts = {"texts": len(distinct), "texts_linked": int((linked.concept >= 0).sum())}
    files = {name: describe_table(work / "links" / name, table)}
    return write_unit_manifest(work / "links" / f"{bucket_name(bucket)}.json", made_from, counts, files)


def bucket_name(bucket: int) -> str:
    """Stem of a bucket's file names."""
    return f"bucket-{bucket:04d}"


def linked_done(work: Path, bucket: int, made_from: str) -> dict[str, Any] | None:
    """The manifest of a bucket that was linked, None where it must be linked (again)."""
    return read_unit_manifest(work / "links" / f"{bucket_name(bucket)}.json", made_from)


class LinkTable:
    """The answers of all buckets, memory-mapped."""

    def __init__(self, work: Path, buckets: int) -> None:
        self._buckets = [map_arrow(work / "links" / f"{bucket_name(bucket)}.arrow") for bucket in range(buckets)]

    def look_up(self, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find texts by their digests.

        Args:
            high: [T] uint64, ascending.
            low: [T] uint64.

        Returns:
            Concepts [T] int32 (-1: none) and scores [T] float32.
        """
        concept, score = np.empty(len(high), np.int32), np.empty(len(high), np.float32)
        borders = np.searchsorted(high, _first_digests(len(self._buckets)))
        for table, start, stop in zip(self._buckets, borders, [*borders[1:], len(high)], strict=True):
            if start == stop:
                continue
            table_high, table_low, concepts, scores = (column.to_numpy() for column in table.columns)
            place = np.searchsorted(table_high, high[start:stop])
            # Two texts may agree in the first 64 bits; then the right one stands a little further on.
            while (further := (table_low[place] != low[start:stop]) & (table_high[place] == high[start:stop])).any():
                place = place + further
            assert (table_high[place] == high[start:stop]).all(), "every text was linked"
            concept[start:stop], score[start:stop] = concepts[place], scores[place]
        return concept, score


def _texts_of_bucket(path: Path, bucket: int, buckets: int) -> pa.Table:
    table = map_arrow(path)
    high = table["digest_high"].to_numpy()
    borders = np.searchsorted(high, _first_digests(buckets)[bucket : bucket + 2])
    start, stop = (*borders, len(high))[:2]
    return table.slice(start, stop - start)


def _first_digests(buckets: int) -> np.ndarray:
    """[buckets] uint64, the least first half of a digest of each bucket."""
    return np.array([(bucket << 64) // buckets for bucket in range(buckets)], dtype=np.uint64)
