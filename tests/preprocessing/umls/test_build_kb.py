from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kebiolm.cli import app
from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.errors import UserError
from kebiolm.files import sha256_of_file
from preprocessing.umls import rrf, rrf_blocks
from preprocessing.umls.build_kb import build_kb
from preprocessing.umls.concepts import FOREIGN_SOURCE, SPARE_DEFINITION
from preprocessing.umls.names import EMPTY_NAME, NOT_ENGLISH
from preprocessing.umls.rrf_batches import DUPLICATE, SUPPRESSED, UNKNOWN_CUI
from preprocessing.umls.rrf_rows import WRONG_FIELD_COUNT
from preprocessing.umls.triples import EMPTY_RELA, SELF_LOOP

CONSO = rrf.STANDARD_COLUMNS["MRCONSO.RRF"].split(",")
REL = rrf.STANDARD_COLUMNS["MRREL.RRF"].split(",")


def conso_row(cui: str, name: str, **fields: str) -> str:
    defaults = {"LAT": "ENG", "TS": "S", "STT": "PF", "ISPREF": "Y", "SAB": "X", "SUPPRESS": "N"}
    row = defaults | fields | {"CUI": cui, "STR": name}
    return "".join(f"{row.get(column, '')}|" for column in CONSO) + "\n"


def rel_row(subject: str, relation: str, object_: str, suppress: str = "N") -> str:
    row = {"CUI1": object_, "CUI2": subject, "RELA": relation, "REL": "RO", "SUPPRESS": suppress}
    return "".join(f"{row.get(column, '')}|" for column in REL) + "\n"


@pytest.fixture
def tiny_umls(tmp_path: Path) -> Path:
    """Three concepts, two triples, and a row for each reason to drop one."""
    folder = tmp_path / "umls"
    folder.mkdir()
    conso = [
        conso_row("C0000002", "zeta", TS="S"),
        conso_row("C0000002", "preferred two", TS="P"),
        conso_row("C0000001", "only spanish preferred", TS="P", LAT="SPA", SAB="SPASRC"),
        conso_row("C0000001", "beta"),
        conso_row("C0000001", "alpha"),
        conso_row("C0000001", " alpha "),
        conso_row("C0000001", "withdrawn", TS="P", SUPPRESS="O"),
        conso_row("C0000003", "variant", TS="P", STT="VO"),
        conso_row("C0000003", "a synonym", TS="S", STT="PF"),
        conso_row("C0000004", "  "),
    ]
    rel = [
        rel_row("C0000001", "may_treat", "C0000002"),
        rel_row("C0000002", "may_be_treated_by", "C0000001"),
        rel_row("C0000001", "may_treat", "C0000002"),
        rel_row("C0000001", "", "C0000002"),
        rel_row("C0000001", "isa", "C0000001"),
        rel_row("C0000001", "isa", "C0000009"),
        rel_row("C0000003", "isa", "C0000002", suppress="Y"),
    ]
    sty = ["C0000001|T121||||||\n", "C0000001|T200||Clinical Drug|||\n", "C0000001|T121||Pharmacologic Substance|||\n"]
    sty += ["C0000002|T047||Disease or Syndrome|||\n", "C0000009|T047||Disease or Syndrome|||\n"]
    definitions = ["C0000001||||AAA|first by alphabet|N||\n", "C0000001||||MSH|from MeSH|N||\n"]
    definitions += ["C0000002||||SPASRC|en otro idioma|N||\n", "C0000002||||AAA|old|O||\n"]
    files = {"MRCONSO.RRF": conso, "MRREL.RRF": rel, "MRSTY.RRF": sty, "MRDEF.RRF": definitions}
    for name, rows in files.items():
        (folder / name).write_text("".join(rows), encoding="utf-8")
    return folder


def test_tables_and_every_count(tiny_umls: Path, tmp_path: Path) -> None:
    manifest = build_kb(tiny_umls, tmp_path / "kb")
    kb = KnowledgeBase.load(tmp_path / "kb")
    assert kb.concepts().to_pylist() == [
        {
            "cui": "C0000001",
            "preferred_name": "alpha",
            "semantic_types": ["T121", "T200"],
            "semantic_type_names": ["Pharmacologic Substance", "Clinical Drug"],
            "definition": "from MeSH",
        },
        {
            "cui": "C0000002",
            "preferred_name": "preferred two",
            "semantic_types": ["T047"],
            "semantic_type_names": ["Disease or Syndrome"],
            "definition": None,
        },
        {
            "cui": "C0000003",
            "preferred_name": "variant",
            "semantic_types": [],
            "semantic_type_names": [],
            "definition": None,
        },
    ]
    assert [tuple(row.values()) for row in kb.names().to_pylist()] == [
        ("a synonym", "C0000003", False),
        ("alpha", "C0000001", True),
        ("beta", "C0000001", False),
        ("preferred two", "C0000002", True),
        ("variant", "C0000003", True),
        ("zeta", "C0000002", False),
    ]
    assert [tuple(row.values()) for row in kb.triples().to_pylist()] == [
        ("C0000001", "may_treat", "C0000002"),
        ("C0000002", "may_be_treated_by", "C0000001"),
    ]
    rows = manifest["counts"]["rows"]
    assert rows["MRCONSO.RRF"]["dropped"] == {
        DUPLICATE: 1,
        EMPTY_NAME: 1,
        NOT_ENGLISH: 1,
        SUPPRESSED: 1,
    }
    assert rows["MRREL.RRF"]["dropped"] == {
        DUPLICATE: 1,
        EMPTY_RELA: 1,
        SELF_LOOP: 1,
        SUPPRESSED: 1,
        UNKNOWN_CUI: 1,
    }
    # The first row of MRSTY has one field too many.
    assert rows["MRSTY.RRF"]["rejected"] == {WRONG_FIELD_COUNT: 1}
    assert rows["MRSTY.RRF"]["dropped"] == {UNKNOWN_CUI: 1}
    assert manifest["reject_examples"] == [{"file": "MRSTY.RRF", "line": 1, "reason": WRONG_FIELD_COUNT}]
    assert rows["MRDEF.RRF"]["dropped"] == {
        SPARE_DEFINITION: 1,
        FOREIGN_SOURCE: 1,
        SUPPRESSED: 1,
    }
    assert_counts_add_up(manifest)
    assert manifest["counts"]["concepts_without_semantic_type"] == 1
    assert manifest["counts"]["concepts_in_triples"] == 2


def assert_counts_add_up(manifest: dict) -> None:
    for name, counts in manifest["counts"]["rows"].items():
        parts = sum(counts["rejected"].values()) + sum(counts["dropped"].values()) + counts["kept"]
        assert counts["read"] == parts, name


def test_row_order_and_blocks_do_not_matter(tiny_umls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_kb(tiny_umls, tmp_path / "kb")
    fingerprint = KnowledgeBase.load(tmp_path / "kb").fingerprint
    for path in tiny_umls.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(reversed(lines)), encoding="utf-8")
    monkeypatch.setattr(rrf_blocks, "_BLOCK_BYTES", 128)
    build_kb(tiny_umls, tmp_path / "kb2")
    assert KnowledgeBase.load(tmp_path / "kb2").fingerprint == fingerprint


def test_gzip_gives_the_same_knowledge_base(tiny_umls: Path, tmp_path: Path) -> None:
    build_kb(tiny_umls, tmp_path / "kb")
    for path in list(tiny_umls.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    build_kb(tiny_umls, tmp_path / "kb_gz")
    assert KnowledgeBase.load(tmp_path / "kb_gz").fingerprint == KnowledgeBase.load(tmp_path / "kb").fingerprint


def test_parts_give_the_same_knowledge_base(tiny_umls: Path, tmp_path: Path) -> None:
    build_kb(tiny_umls, tmp_path / "kb")
    for path in list(tiny_umls.iterdir()):
        content = path.read_bytes()
        for ending, part in (("aa", content[:150]), ("ab", content[150:])):
            (tiny_umls / f"{path.name}.{ending}.gz").write_bytes(gzip.compress(part))
        path.unlink()
    manifest = build_kb(tiny_umls, tmp_path / "kb_parts")
    assert KnowledgeBase.load(tmp_path / "kb_parts").fingerprint == KnowledgeBase.load(tmp_path / "kb").fingerprint
    assert [part["file"] for part in manifest["inputs"]["MRSTY.RRF"]["parts"]] == ["MRSTY.RRF.aa.gz", "MRSTY.RRF.ab.gz"]
    # Of five rows of MRSTY the first has one field too many.
    assert manifest["reject_examples"] == [{"file": "MRSTY.RRF.aa", "line": 1, "reason": WRONG_FIELD_COUNT}]


def test_manifest_describes_inputs_and_files(sample_dir: Path, sample_kb: Path) -> None:
    manifest = KnowledgeBase.load(sample_kb).manifest
    for name in ("MRCONSO.RRF", "MRREL.RRF", "MRSTY.RRF", "MRDEF.RRF"):
        path = sample_dir / "umls" / name
        assert manifest["inputs"][name]["sha256"] == sha256_of_file(path)
        assert manifest["inputs"][name]["rows_listed"] == len(path.read_text(encoding="utf-8").splitlines())
    on_disk = {path.relative_to(sample_kb).as_posix() for path in sample_kb.rglob("*") if path.is_file()}
    assert on_disk - {"manifest.json"} == set(manifest["files"])
    assert any(name.startswith("linker/") for name in on_disk)
    assert_counts_add_up(manifest)


@pytest.mark.parametrize("name", ["MRCONSO.RRF", "MRREL.RRF", "MRSTY.RRF"])
def test_missing_file_stops_the_build_and_leaves_nothing(tiny_umls: Path, tmp_path: Path, name: str) -> None:
    (tiny_umls / name).unlink()
    with pytest.raises(UserError, match=f"{name}: got no such file"):
        build_kb(tiny_umls, tmp_path / "kb")
    assert {path.name for path in tmp_path.iterdir()} == {"umls"}


def test_cut_gzip_stops_the_build_and_leaves_nothing(tiny_umls: Path, tmp_path: Path) -> None:
    path = tiny_umls / "MRREL.RRF"
    path.with_name("MRREL.RRF.gz").write_bytes(gzip.compress(path.read_bytes() * 500)[:-50])
    path.unlink()
    with pytest.raises(UserError, match="cannot be read to its end"):
        build_kb(tiny_umls, tmp_path / "kb")
    assert {path.name for path in tmp_path.iterdir()} == {"umls"}


def test_definitions_are_optional(tiny_umls: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tiny_umls / "MRDEF.RRF").unlink()
    manifest = build_kb(tiny_umls, tmp_path / "kb")
    assert KnowledgeBase.load(tmp_path / "kb").concepts()["definition"].null_count == 3
    assert "MRDEF.RRF" not in manifest["counts"]["rows"]
    assert "no concept has a definition" in capsys.readouterr().out


def test_no_english_name_is_an_error(tiny_umls: Path, tmp_path: Path) -> None:
    (tiny_umls / "MRCONSO.RRF").write_text(conso_row("C0000001", "asma", LAT="SPA"))
    with pytest.raises(UserError, match="no name to keep"):
        build_kb(tiny_umls, tmp_path / "kb")


def test_no_relation_at_all_gives_no_triples(tiny_umls: Path, tmp_path: Path) -> None:
    (tiny_umls / "MRREL.RRF").write_text(rel_row("C0000001", "", "C0000002"))
    manifest = build_kb(tiny_umls, tmp_path / "kb")
    assert (manifest["counts"]["triples"], manifest["counts"]["relations"]) == (0, 0)
    assert KnowledgeBase.load(tmp_path / "kb").triples().num_rows == 0


def test_a_file_shorter_than_listed_is_said(tiny_umls: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    columns = rrf.STANDARD_COLUMNS["MRREL.RRF"]
    (tiny_umls / "MRFILES.RRF").write_text(f"MRREL.RRF|Relations|{columns}|16|1000|0|\n")
    build_kb(tiny_umls, tmp_path / "kb")
    assert "MRREL.RRF has 7 rows, MRFILES.RRF lists 1,000" in " ".join(capsys.readouterr().out.split())


def test_existing_folder_needs_overwrite(tiny_umls: Path, tmp_path: Path) -> None:
    build_kb(tiny_umls, tmp_path / "kb")
    with pytest.raises(UserError, match="--overwrite"):
        build_kb(tiny_umls, tmp_path / "kb")
    build_kb(tiny_umls, tmp_path / "kb", overwrite=True)


def test_the_umls_files_are_never_overwritten(tiny_umls: Path, tmp_path: Path) -> None:
    for out in (tiny_umls, tmp_path, tiny_umls / "kb"):
        with pytest.raises(UserError, match="the input"):
            build_kb(tiny_umls, out, overwrite=True)
    assert len(list(tiny_umls.iterdir())) == 4


@pytest.mark.parametrize("name", ["MRDEF.RRF", "MRDEF.RRF.gz", "MRREL.RRF", "MRREL.RRF.gz"])
def test_a_subset_without_definitions_or_relations(
    tiny_umls: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    table = name.removesuffix(".gz")
    (tiny_umls / table).unlink()
    (tiny_umls / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    manifest = build_kb(tiny_umls, tmp_path / "kb")
    warning = {"MRDEF.RRF": "no concept has a definition", "MRREL.RRF": "there are no triples"}[table]
    assert f"{table} is empty: {warning}" in " ".join(capsys.readouterr().out.split())
    assert manifest["counts"]["rows"][table] == {"read": 0, "rejected": {}, "dropped": {}, "kept": 0}
    kb = KnowledgeBase.load(tmp_path / "kb")
    assert kb.concepts()["definition"].null_count == (3 if table == "MRDEF.RRF" else 2)
    assert kb.triples().num_rows == (0 if table == "MRREL.RRF" else 2)


@pytest.mark.parametrize("name", ["MRCONSO.RRF", "MRSTY.RRF"])
def test_no_concepts_or_types_is_an_error(tiny_umls: Path, tmp_path: Path, name: str) -> None:
    (tiny_umls / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"{name}: got an empty file"):
        build_kb(tiny_umls, tmp_path / "kb")


def test_command_line(tiny_umls: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["kb", "build", "--umls", str(tiny_umls), "--out", str(tmp_path / "kb")])
    assert result.exit_code == 0, result.output
    assert "dropped: self-loop" in result.output
    assert KnowledgeBase.load(tmp_path / "kb").num_concepts == 3


def test_real_knowledge_base(real_data: Path, tmp_path: Path) -> None:
    umls = real_data / "kb" / "openkb"
    manifest = build_kb(umls, tmp_path / "kb")
    kb = KnowledgeBase.load(tmp_path / "kb")
    assert kb.num_concepts == 18_690
    assert manifest["counts"]["rows"]["MRCONSO.RRF"]["read"] == 100_698
    assert_counts_add_up(manifest)
    # The same facts read the plain way, row by row.
    names, triples = set(), set()
    with open(umls / "MRCONSO.RRF", encoding="utf-8", newline="\n") as file:
        for line in file:
            row = dict(zip(CONSO, line.split("|"), strict=False))
            if row["LAT"] == "ENG" and row["SUPPRESS"] == "N":
                names.add((row["STR"].strip(), row["CUI"]))
    cuis = {cui for _, cui in names}
    with open(umls / "MRREL.RRF", encoding="utf-8", newline="\n") as file:
        for line in file:
            row = dict(zip(REL, line.split("|"), strict=False))
            subject, relation, object_ = row["CUI2"], row["RELA"], row["CUI1"]
            if row["SUPPRESS"] == "N" and relation and subject != object_ and {subject, object_} <= cuis:
                triples.add((subject, relation, object_))
    assert list(zip(*kb.names().select(["name", "cui"]).to_pydict().values(), strict=True)) == sorted(names)
    assert list(zip(*kb.triples().to_pydict().values(), strict=True)) == sorted(triples)


class TestKnowledgeBaseReader:
    def test_preferred_names_and_types(self, sample_kb: Path) -> None:
        kb = KnowledgeBase.load(sample_kb)
        names = kb.preferred_names()
        assert len(names) == kb.num_concepts and list(names) == sorted(names)
        assert names["C0017861"] == "1,2,3-Propanetriol"
        types = kb.semantic_types()
        assert list(types) == sorted(names)
        assert types["C0011603"] == ("Disease or Syndrome",)
        assert sorted(len(names) for names in types.values())[-2:] == [1, 2]
        assert sum(kb.names()["is_preferred"].to_pylist()) == kb.num_concepts

    def test_folder_that_is_no_knowledge_base(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="kebiolm kb build"):
            KnowledgeBase.load(tmp_path)

    @pytest.mark.parametrize("name", ["names.parquet", "triples.parquet"])
    def test_changed_or_cut_file(self, sample_kb: Path, tmp_path: Path, name: str) -> None:
        copy = tmp_path / "kb"
        shutil.copytree(sample_kb, copy)
        raw = (copy / name).read_bytes()
        (copy / name).write_bytes(raw[:-10])
        with pytest.raises(UserError, match="cut short"):
            KnowledgeBase.load(copy)
        (copy / name).write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
        with pytest.raises(UserError, match="SHA-256"):
            KnowledgeBase.load(copy)
        (copy / name).unlink()
        with pytest.raises(UserError, match="no such file"):
            KnowledgeBase.load(copy, check_hash=False)
