"""Texts of all slices are linked once each, in buckets by digest, and found again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from preprocessing.annotation.find_stage import TEXTS_SCHEMA, text_digest
from preprocessing.annotation.link_stage import (
    LEAST_BUCKETS,
    TEXTS_PER_BUCKET,
    LinkTable,
    link_texts,
    linked_done,
    plan_buckets,
)
from preprocessing.annotation.store import part_name
from preprocessing.annotation.unit_files import write_arrow

PARTS = 3


class LengthLinker:
    """Links a text to the concept of its length, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def link_above(self, mentions: Sequence[str], threshold: float) -> Any:
        self.asked.update(mentions)
        lengths = np.array([len(mention) for mention in mentions], dtype=np.int32)
        return SimpleNamespace(
            concept=np.where(lengths % 2, lengths, -1).astype(np.int32), score=(lengths / 100).astype(np.float32)
        )


def write_texts(work: Path, part: int, digests: dict[str, tuple[int, int]]) -> None:
    ordered = sorted(digests, key=digests.__getitem__)
    columns = [[digests[text][half] for text in ordered] for half in (0, 1)]
    table = pa.table([*(pa.array(column, pa.uint64()) for column in columns), ordered], schema=TEXTS_SCHEMA)
    (work / "found").mkdir(exist_ok=True)
    write_arrow(work / "found" / f"{part_name(part)}.texts.arrow", table)


def look_up(table: LinkTable, digests: list[tuple[int, int]]) -> list[int]:
    high, low = (np.array([digest[half] for digest in sorted(digests)], dtype=np.uint64) for half in (0, 1))
    return table.look_up(high, low)[0].tolist()


def test_each_text_is_linked_once_and_found_again(tmp_path: Path) -> None:
    texts = ["a" * n for n in range(1, 200)]
    for part in range(PARTS):
        write_texts(tmp_path, part, {text: text_digest(text) for text in texts[part::2]})
    linker, buckets = LengthLinker(), plan_buckets(tmp_path, 300)
    assert buckets == LEAST_BUCKETS
    manifests = [
        link_texts(tmp_path, bucket, buckets, range(PARTS), linker, threshold=0.5, made_from="")
        for bucket in range(buckets)
    ]
    assert linker.asked == Counter(texts)
    assert sum(manifest["counts"]["texts"] for manifest in manifests) == 199
    assert sum(manifest["counts"]["texts_linked"] for manifest in manifests) == 100
    assert linked_done(tmp_path, 3, "") == manifests[3]
    assert linked_done(tmp_path, 3, "of other texts") is None
    table = LinkTable(tmp_path, buckets)
    by_digest = sorted(texts, key=text_digest)
    expected = [len(text) if len(text) % 2 else -1 for text in by_digest]
    assert look_up(table, [text_digest(text) for text in texts]) == expected
    assert look_up(table, []) == []


def test_texts_whose_digests_share_their_first_half_are_told_apart(tmp_path: Path) -> None:
    digests = {"a": (7, 1), "bbb": (7, 2), "ccccc": (7, 2**64 - 1), "ddddddd": (8, 0)}
    write_texts(tmp_path, 0, digests)
    link_texts(tmp_path, 0, 1, [0], LengthLinker(), threshold=0.5, made_from="")
    assert look_up(LinkTable(tmp_path, 1), list(digests.values())) == [1, 3, 5, 7]
    assert look_up(LinkTable(tmp_path, 1), [(7, 2)]) == [3]


@pytest.mark.parametrize(("texts", "buckets"), [(0, 16), (16 * TEXTS_PER_BUCKET, 16), (16 * TEXTS_PER_BUCKET + 1, 17)])
def test_buckets_stay_small(tmp_path: Path, texts: int, buckets: int) -> None:
    assert plan_buckets(tmp_path, texts) == buckets


def test_a_job_without_a_mention_is_no_mistake(tmp_path: Path) -> None:
    write_texts(tmp_path, 0, {})
    manifest = link_texts(tmp_path, 2, 16, [0], LengthLinker(), threshold=0.5, made_from="")
    assert manifest["counts"] == {"texts": 0, "texts_linked": 0}
