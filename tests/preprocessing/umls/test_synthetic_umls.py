"""The made-up UMLS has the shape that it promises, and a knowledge base of it is what a plain reader finds."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from kebiolm.data.knowledge_base import KnowledgeBase
from preprocessing.umls import buckets, names, rrf_blocks, triples
from preprocessing.umls.build_kb import build_kb
from preprocessing.umls.rrf import STANDARD_COLUMNS
from tests.benchmarks.bench_kb_build import Plain, check_same, read_for_look_ups, read_plainly
from tests.benchmarks.synthetic_umls import generate_umls

SCALE = 1 / 4000


@pytest.fixture(scope="module")
def umls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "META"
    generate_umls(folder, scale=SCALE)
    return folder


@pytest.fixture(scope="module")
def kb(umls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic_kb") / "kb"
    build_kb(umls, folder)
    return folder


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    columns = STANDARD_COLUMNS[name].split(",")
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    rows = [line.split("|") for line in lines]
    assert {len(row) for row in rows} == {len(columns) + 1}
    return [dict(zip(columns, row, strict=False)) for row in rows]


def test_the_shape_of_names(umls: Path) -> None:
    rows = rows_of(umls, "MRCONSO.RRF")
    concepts = {row["CUI"] for row in rows}
    assert len(concepts) == round(4_300_000 * SCALE)
    assert [row["CUI"] for row in rows] == sorted(row["CUI"] for row in rows)
    assert 3.2 < len(rows) / len(concepts) < 4.3
    english = [row for row in rows if row["LAT"] == "ENG"]
    assert 0.6 < len(english) / len(rows) < 0.7
    assert len({row["LAT"] for row in rows}) >= 15
    assert 0.1 < sum(row["SUPPRESS"] != "N" for row in rows) / len(rows) < 0.2
    repeats = len(rows) - len({(row["CUI"], row["LAT"], row["STR"]) for row in rows})
    assert 0.07 < repeats / len(rows) < 0.16
    assert 25 < sum(len(row["STR"]) for row in english) / len(english) < 45


def test_the_shape_of_relations(umls: Path) -> None:
    rows = rows_of(umls, "MRREL.RRF")
    concepts = round(4_300_000 * SCALE)
    assert 9 < len(rows) / concepts < 14
    assert [row["CUI1"] for row in rows] == sorted(row["CUI1"] for row in rows)
    assert 0.45 < sum(not row["RELA"] for row in rows) / len(rows) < 0.6
    # Each relation stands there from both its concepts.
    pairs = Counter((row["CUI1"], row["CUI2"]) for row in rows if row["CUI1"] != row["CUI2"])
    assert all(pairs[second, first] == count for (first, second), count in pairs.items())


def test_the_same_seed_gives_the_same_files(umls: Path, tmp_path: Path) -> None:
    generate_umls(tmp_path / "again", scale=SCALE)
    generate_umls(tmp_path / "other", scale=SCALE, seed=1)
    for path in umls.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "other" / "MRCONSO.RRF").read_bytes() != (umls / "MRCONSO.RRF").read_bytes()


@pytest.mark.parametrize("read", [read_plainly, read_for_look_ups])
def test_the_knowledge_base_is_what_a_plain_reader_finds(umls: Path, kb: Path, read: Callable[[Path], Plain]) -> None:
    plain = read(umls)
    check_same(plain, kb)
    tables = KnowledgeBase.load(kb)
    counts = tables.manifest["counts"]
    assert all(counts["rows"][name]["read"] == len(rows_of(umls, name)) for name in STANDARD_COLUMNS)
    types = {cui: Counter(found) for cui, found in tables.semantic_types().items() if found}
    assert types == {cui: Counter(set(found)) for cui, found in plain.semantic_types.items()}
    concepts = tables.concepts().select(["cui", "definition"]).to_pylist()
    assert all(row["definition"] in plain.definitions[row["cui"]] for row in concepts if row["definition"] is not None)
    plain.names["C0000005"] = {"something else"}
    with pytest.raises(AssertionError):
        check_same(plain, kb)


def test_small_buckets_and_any_order_give_the_same_bytes(
    umls: Path, kb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffled = shutil.copytree(umls, tmp_path / "META")
    for name in STANDARD_COLUMNS:
        lines = (umls / name).read_text(encoding="utf-8").splitlines(keepends=True)
        random.Random(0).shuffle(lines)
        (shuffled / name).write_text("".join(lines), encoding="utf-8")
    monkeypatch.setattr(rrf_blocks, "_BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(buckets, "_CUI_PREFIX", 7)
    monkeypatch.setattr(names, "_NAMES_PER_BUCKET", 100)
    monkeypatch.setattr(triples, "_SUBJECTS_PER_BUCKET_BITS", 5)
    build_kb(shuffled, tmp_path / "kb")
    assert KnowledgeBase.load(tmp_path / "kb").fingerprint == KnowledgeBase.load(kb).fingerprint
    assert {path.name for path in (tmp_path / "kb").iterdir()} == {path.name for path in kb.iterdir()}
