"""A folder that is whole passes; every kind of damage is found, and all of them at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from kebiolm.data import shard_format
from kebiolm.data.knowledge_base import CONCEPTS_FILE, TRIPLES_FILE
from kebiolm.errors import UserError
from kebiolm.files import describe_file, write_json
from preprocessing.annotation.store import DOCUMENT_SCHEMA
from preprocessing.document import Document, Mention
from preprocessing.watch.verify import find_problems, verify
from tests.preprocessing.watch.conftest import CONCEPTS, TEXT, example_documents, write_concepts, write_finished


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], Any], name: str = "manifest.json") -> None:
    manifest = json.loads((folder / name).read_text(encoding="utf-8"))
    edit(manifest)
    write_json(folder / name, manifest)


def record_anew(folder: Path, name: str) -> None:
    """Make the manifest fit the bytes of a file that was changed, so that only its rows are wrong."""
    edit_manifest(folder, lambda manifest: manifest["files"][name].update(describe_file(folder / name)))


def problems_of(tmp_path: Path, kb: Path, *documents: Document, with_kb: bool = False) -> list[str]:
    folder = write_finished(tmp_path / "broken", [(documents, [])], kb)
    return find_problems(folder, kb=kb if with_kb else None)


def mention(start: int, end: int, cui: str = "C0000001", score: float = 1.0) -> Mention:
    return Mention(start=start, end=end, cui=cui, score=score)


def test_whole_folders_pass(annotated: Path, kb: Path, sample_shards: Path, small_kb: Path) -> None:
    assert find_problems(annotated) == find_problems(annotated, kb=kb) == []
    assert find_problems(sample_shards) == find_problems(small_kb) == []


def test_the_command_prints_and_gives_a_status(annotated: Path) -> None:
    out = StringIO()
    console = Console(file=out, width=200)
    assert verify(annotated, console=console) == 0 and "all is as its manifest says" in out.getvalue()
    (annotated / "part-00001.parquet").unlink()
    assert verify(annotated, console=console) == 1 and "part-00001.parquet: no such file" in out.getvalue()


def test_all_damaged_files_are_listed(annotated: Path) -> None:
    (annotated / "part-00000.parquet").write_bytes(b"cut")
    (annotated / "part-00001.rejects.parquet").unlink()
    data = bytearray((annotated / "part-00001.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (annotated / "part-00001.parquet").write_bytes(data)
    shutil.copy(annotated / "part-00000.rejects.parquet", annotated / "part-00002.parquet")
    problems = "\n".join(find_problems(annotated))
    for expected in (
        "part-00000.parquet: 3 bytes",
        "part-00000.parquet: cannot be read",
        "part-00001.rejects.parquet: no such file",
        "part-00001.parquet: SHA-256",
        "part-00002.parquet: a file that the manifest does not name",
    ):
        assert expected in problems


@pytest.mark.parametrize(
    ("name", "edit", "expected"),
    [
        ("manifest.json", lambda m: m["counts"].update(documents_in=99), "documents_in 99 is not documents_out 30"),
        ("manifest.json", lambda m: m["counts"].update(mentions_linked=1), "mentions_linked is 1, the parts' sum is"),
        ("manifest.json", lambda m: m["rejects_by_reason"].update(odd=1), "3 rejects, but 4 by reason"),
        ("manifest.json", lambda m: m["files"]["part-00000.parquet"].update(rows=5), "12 rows, not 5 as recorded"),
        ("manifest.json", lambda m: m["files"].update({"../x": {}}), "../x: no file of this folder"),
        (
            "part-00000.json",
            lambda m: m["counts"].update(mentions_linked=3),
            "mentions_linked is 3, part-00000.parquet",
        ),
        ("part-00000.json", lambda m: m["rejects_by_reason"].update(odd=0), "differs from the rows of"),
        ("part-00001.json", lambda m: m.clear(), "no readable manifest of a part"),
        ("part-00001.json", lambda m: m["files"]["part-00001.parquet"].update(bytes=1), "records another"),
    ],
)
def test_counts_that_do_not_add_up(annotated: Path, name: str, edit: Callable[[Any], Any], expected: str) -> None:
    edit_manifest(annotated, edit, name)
    assert any(expected in problem for problem in find_problems(annotated))


@pytest.mark.parametrize(
    ("mentions", "expected"),
    [
        ([mention(0, 7), mention(5, 9)], "overlap or are out of order"),
        ([mention(30, 37), mention(0, 7)], "overlap or are out of order"),
        ([mention(len(TEXT) - 2, len(TEXT) + 1)], "outside their text"),
        ([mention(5, 5)], "outside their text"),
        ([mention(-1, 5)], "outside their text"),
        ([mention(0, 7, score=0.85)], "scores outside (0.85, 1]"),
        ([mention(0, 7, score=1.5)], "scores outside"),
        ([mention(0, 7, score=float("nan"))], "scores outside"),
        ([mention(0, 7, cui="C9999999")], "1 CUIs are not in the knowledge base; the first is C9999999"),
    ],
)
def test_wrong_mentions(tmp_path: Path, kb: Path, mentions: list[Mention], expected: str) -> None:
    document = Document(doc_id="bad", text=TEXT, mentions=tuple(mentions))
    problems = problems_of(tmp_path, kb, *example_documents(3), document, with_kb=True)
    assert len(problems) == 1 and expected in problems[0]
    assert "first in document bad" in problems[0] or "CUIs" in problems[0]


def test_a_text_is_measured_in_characters(tmp_path: Path, kb: Path) -> None:
    document = Document(doc_id="1", text="β" * 5, mentions=(mention(0, 6),))
    assert "outside their text" in problems_of(tmp_path, kb, document)[0]
    shutil.rmtree(tmp_path / "broken")
    assert problems_of(tmp_path, kb, replace(document, mentions=(mention(0, 5),))) == []


def test_an_id_in_two_parts(tmp_path: Path, kb: Path) -> None:
    documents = example_documents(4)
    folder = write_finished(tmp_path / "twice", [(documents[:3], []), ([documents[3], documents[1]], [])], kb)
    assert find_problems(folder) == ["part-00000.parquet: 1 ids have several documents; the first is d1"]


def test_another_knowledge_base(annotated: Path, tmp_path: Path) -> None:
    concepts = {**CONCEPTS, "C0000004": ("Fever", ())}
    problems = find_problems(annotated, kb=write_concepts(tmp_path / "other", concepts))
    assert len(problems) == 1 and "not to this one" in problems[0]


def test_other_columns(annotated: Path) -> None:
    name = "part-00001.parquet"
    table = pq.read_table(annotated / name)
    pq.write_table(table.drop_columns("text"), annotated / name)
    record_anew(annotated, name)
    assert f"{name}: columns doc_id, mentions, not those of its format" in find_problems(annotated)


def test_empty_fields_of_mentions(annotated: Path) -> None:
    name = "part-00001.parquet"
    table = pq.read_table(annotated / name)
    mentions = table["mentions"].combine_chunks()
    fields = dict(zip(("start", "end", "cui", "score"), mentions.flatten().flatten(), strict=True))
    fields["end"] = pc.if_else(pc.equal(fields["start"], 24), None, fields["end"])
    values = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    table = table.set_column(2, "mentions", pa.ListArray.from_arrays(mentions.offsets, values))
    pq.write_table(table.cast(DOCUMENT_SCHEMA), annotated / name)
    record_anew(annotated, name)
    assert any("empty field (18; the first in document d12)" in problem for problem in find_problems(annotated))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (("input_ids", 1, 10**6), "pieces outside the vocabulary (1; the first in sequence 1)"),
        (("bio_labels", 0, 3), "BIO labels that are none"),
        (("document_starts", 2, 5), "segments that begin nowhere"),
        (("mention_entities", 0, 10**6), "entities outside the vocabulary"),
        (("mention_ends", 0, 4000), "mentions outside their sequence"),
        (("document_ids", 0, "of the held-out"), "documents are held out, too"),
    ],
)
def test_wrong_shards(sample_shards: Path, tmp_path: Path, damage: tuple[str, int, Any], expected: str) -> None:
    column, row, value = damage
    folder = tmp_path / "shards"
    shutil.copytree(sample_shards, folder)
    name = min(path.name for path in folder.glob("train-*.arrow"))
    rows = pa.ipc.open_file(pa.OSFile(str(folder / name))).read_all().to_pylist()
    if column == "document_ids":
        heldout = min(folder.glob("heldout-*.arrow"))
        value = pa.ipc.open_file(pa.OSFile(str(heldout))).read_all().to_pylist()[0]["document_ids"][0]
    rows[row][column][0] = value
    table = pa.Table.from_pylist(rows, schema=shard_format.SCHEMA).combine_chunks()
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    record_anew(folder, name)
    problems = find_problems(folder)
    assert any(expected in problem and name in problem for problem in problems), problems


def test_wrong_counts_of_shards(sample_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(sample_shards, folder)
    edit_manifest(folder, lambda m: m["counts"]["train"].update(fill_rate=0.5, mentions_in=1, pieces=2))
    edit_manifest(folder, lambda m: m["entity_vocab"].update(sha256="0"))
    problems = "\n".join(find_problems(folder))
    for expected in ("fill_rate of train", "mentions_in of train", "pieces of train is 2", "not the vocabulary"):
        assert expected in problems


def test_wrong_knowledge_bases(small_kb: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kb"
    shutil.copytree(small_kb, folder)
    concepts, triples = pq.read_table(folder / CONCEPTS_FILE), pq.read_table(folder / TRIPLES_FILE)
    pq.write_table(concepts.take([1, 0, *range(2, 7)]), folder / CONCEPTS_FILE)
    pq.write_table(triples.set_column(2, "object", pa.array(["C9999999"])), folder / TRIPLES_FILE)
    for name in (CONCEPTS_FILE, TRIPLES_FILE):
        record_anew(folder, name)
    edit_manifest(folder, lambda m: m["counts"].update(concepts=8))
    edit_manifest(folder / "linker", lambda m: m["files"]["names.arrow"].update(sha256="0"))
    problems = "\n".join(find_problems(folder))
    for expected in (
        "concepts.parquet: 1 rows repeat the one before or are out of order",
        "triples.parquet: 1 CUIs that are no concept",
        "manifest.json: concepts is 8, concepts.parquet has 7 rows",
        "linker/names.arrow: its own manifest and the knowledge base's differ",
    ):
        assert expected in problems


@pytest.mark.parametrize("kind", ["absent", "empty", "unfinished", "unknown", "old"])
def test_folders_that_cannot_be_verified(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    if kind != "absent":
        folder.mkdir()
    if kind == "unfinished":
        write_json(folder / "job.json", {"format": "kebiolm-annotation-job"})
    if kind == "unknown":
        (folder / "manifest.json").write_text("[1]", encoding="utf-8")
    if kind == "old":
        write_json(folder / "manifest.json", {"format": "kebiolm-annotated", "version": 1})
    with pytest.raises(UserError):
        find_problems(folder)


def test_a_knowledge_base_is_only_for_annotated_documents(small_kb: Path) -> None:
    with pytest.raises(UserError, match="--kb"):
        find_problems(small_kb, kb=small_kb)
