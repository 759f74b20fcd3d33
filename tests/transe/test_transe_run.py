from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from kebiolm.cli import app
from kebiolm.data import knowledge_base, shard_format
from kebiolm.data.entity_vocab import FILE_NAME, EntityVocab
from kebiolm.data.shard_format import PackedShards
from kebiolm.errors import UserError
from kebiolm.files import describe_file, write_json
from kebiolm.transe.run import RunSettings, run, run_from_text
from kebiolm.transe.start_vectors import load_transe, read_text_vectors
from kebiolm.transe.train import TransESettings

SETTINGS = RunSettings(training=TransESettings(dim=8, epochs=20, batch_size=32, learning_rate=1e-2), heldout=0.1)


def write_kb(folder: Path, triples: list[tuple[str, str, str]]) -> Path:
    """A knowledge base folder of its three tables."""
    cuis = sorted({cui for subject, _, object_ in triples for cui in (subject, object_)})
    columns = {name: [row[i] for row in triples] for i, name in enumerate(("subject", "relation", "object"))}
    concepts = [
        {"cui": cui, "preferred_name": cui, "semantic_types": [], "semantic_type_names": [], "definition": None}
        for cui in cuis
    ]
    names = [{"name": cui.lower(), "cui": cui, "is_preferred": True} for cui in cuis]
    tables = {
        knowledge_base.TRIPLES_FILE: pa.table(columns, schema=knowledge_base.TRIPLES_SCHEMA),
        knowledge_base.CONCEPTS_FILE: pa.Table.from_pylist(concepts, schema=knowledge_base.CONCEPTS_SCHEMA),
        knowledge_base.NAMES_FILE: pa.Table.from_pylist(names, schema=knowledge_base.NAMES_SCHEMA),
    }
    folder.mkdir()
    for name, table in tables.items():
        pq.write_table(table, folder / name)
    files = {name: describe_file(folder / name) | {"rows": table.num_rows} for name, table in tables.items()}
    manifest = {"format": knowledge_base.FORMAT, "version": knowledge_base.VERSION, "files": files}
    write_json(folder / "manifest.json", manifest)
    return folder


def write_shards(folder: Path, cuis: list[str]) -> Path:
    """A shards folder without sequences: TransE reads its entity vocabulary only."""
    folder.mkdir()
    EntityVocab.build(dict.fromkeys(cuis, 1)).save(folder / FILE_NAME)
    manifest = {"format": shard_format.FORMAT, "version": shard_format.VERSION, "settings": {"max_length": 512}}
    manifest |= {"counts": {}, "tokenizer": {}, "entity_vocab": {}}
    write_json(folder / "manifest.json", manifest | {"files": {FILE_NAME: describe_file(folder / FILE_NAME)}})
    return folder


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    triples = {(f"C{i:02}", name, f"C{(i + step) % 30:02}") for i in range(30) for name, step in (("r", 1), ("q", 3))}
    inverse = {(object_, f"inverse_{name}", subject) for subject, name, object_ in triples}
    return write_kb(tmp_path_factory.mktemp("transe") / "kb", sorted(triples | inverse))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # C00 to C19 of the knowledge base, and two concepts of which it says nothing.
    return write_shards(tmp_path_factory.mktemp("transe") / "shards", [f"C{i:02}" for i in range(20)] + ["C90", "C91"])


def vocab(shards: Path) -> EntityVocab:
    return EntityVocab.load(shards / FILE_NAME)


def test_file_is_aligned_with_the_vocabulary(kb: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "transe.safetensors"
    made = run(kb, shards, out, settings=SETTINGS)
    read = load_transe(out, vocab(shards))
    assert torch.equal(read.entity_embeddings, made.entity_embeddings)
    assert torch.equal(read.relation_embeddings, made.relation_embeddings)
    assert read.entity_embeddings.shape == (3 + 22, 8) and read.entity_embeddings.dtype == torch.float32
    with_triples = [vocab(shards).cui(row) for row in read.has_triples.nonzero().flatten().tolist()]
    assert sorted(with_triples) == [f"C{number:02d}" for number in range(20)]
    assert read.relations == ["inverse_q", "inverse_r", "q", "r"] and len(read.relation_embeddings) == 4
    # Special rows and concepts without triples start at zero, the others have length 1.
    torch.testing.assert_close(read.entity_embeddings.norm(dim=1), read.has_triples.float())
    counts = read.info["counts"]
    assert (counts["entities_with_triples"], counts["entities_without_triples"]) == (20, 2)
    assert counts["triples_used"] + counts["triples_heldout"] == 120 and counts["triples_heldout"] > 0
    assert 0 < read.info["metrics"]["mrr"] <= 1


def test_same_input_same_bytes(kb: Path, shards: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(kb, shards, tmp_path / name, settings=SETTINGS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_gaussian_start_of_entities_without_triples(kb: Path, shards: Path, tmp_path: Path) -> None:
    settings = RunSettings(training=SETTINGS.training, missing="gaussian")
    read = run(kb, shards, tmp_path / "out", settings=settings)
    assert (read.entity_embeddings[~read.has_triples].norm(dim=1) > 0.1).all()


def test_scope_of_the_triples(kb: Path, shards: Path, tmp_path: Path) -> None:
    among_shards = RunSettings(training=SETTINGS.training, entities="shards", heldout=0.0)
    counts = run(kb, shards, tmp_path / "out", settings=among_shards).info["counts"]
    assert (counts["entities_trained"], counts["triples_used"], counts["triples_heldout"]) == (20, 2 * (19 + 17), 0)


def test_file_of_another_vocabulary_is_refused(kb: Path, shards: Path, tmp_path: Path) -> None:
    run(kb, shards, tmp_path / "out", settings=SETTINGS)
    other = EntityVocab.build({"C00": 1})
    with pytest.raises(UserError, match=r"vectors for the shards' vocabulary .* \(4 rows\)"):
        load_transe(tmp_path / "out", other)


def test_files_that_are_something_else_are_refused(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    for name, got in (("absent", "no such file"), ("text", "an unreadable file"), ("other", "format None")):
        with pytest.raises(UserError, match=got):
            load_transe(tmp_path / name, vocab(shards))


def test_text_layout_round_trip(kb: Path, shards: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "vectors.txt", tmp_path / "from_text"
    made = run(kb, shards, tmp_path / "out", settings=SETTINGS, text=text)
    lines = text.read_text().splitlines()
    assert lines[0] == "20 8" and lines[1].startswith("C") and len(lines) == 21
    text.write_text("\n".join(["21 8", *lines[1:], "C77 " + " ".join("1" * 8)]) + "\n")  # a CUI the shards lack
    run_from_text(text, shards, out)
    read = load_transe(out, vocab(shards))
    assert torch.equal(read.entity_embeddings, made.entity_embeddings)
    assert torch.equal(read.has_triples, made.has_triples)
    assert read.relations == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: got ;"),
        ("two 2\n", '"count dim"'),
        ("1 2\nC1 0.5\n", ":2: got C1 0.5"),
        ("1 2\nC1 0.5 nan\n", ":2: got C1 0.5 nan"),
        ("1 2\nC1 0.5 x\n", "finite numbers"),
        ("1 2\n\n", ":2: got ;"),
        ("1 2\nC1 1 2\nC2 1 2\n", ":3: got C2 1 2"),
        ("2 2\nC1 1 2\n", "got 1 vectors; expected 2"),
    ],
)
def test_broken_text_files_are_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "vectors.txt").write_text(text)
    with pytest.raises(UserError) as caught:
        read_text_vectors(tmp_path / "vectors.txt")
    assert message in str(caught.value)


def test_no_triples_is_refused(kb: Path, tmp_path: Path) -> None:
    settings = RunSettings(entities="shards")
    strangers = write_shards(tmp_path / "strangers", ["C90", "C91"])
    with pytest.raises(UserError, match=r"no triple between two entities of the shards; .*--entities kb"):
        run(kb, strangers, tmp_path / "out", settings=settings)
    with pytest.raises(UserError, match="no triple between two of its concepts"):
        run(write_kb(tmp_path / "empty", []), strangers, tmp_path / "out", settings=RunSettings())
    assert not (tmp_path / "out").exists()


def test_outputs_are_checked_before_the_work(kb: Path, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="choose"):
            run(kb, shards, out, settings=SETTINGS)
    assert (tmp_path / "file").read_text() == "kept"
    run(kb, shards, tmp_path / "file", settings=SETTINGS, overwrite=True)
    load_transe(tmp_path / "file", vocab(shards))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--entities", "umls"], "--entities: got umls; expected kb or shards"),
        (["--missing", "ones"], "--missing: got ones"),
        (["--heldout", "1"], "--heldout: got 1.0"),
        (["--epochs", "0"], "epochs = 0"),
        (["--device", "tpu"], "--device: got tpu"),
        (["--from-text", "vectors.txt"], "got both"),
        (["--kb", "nowhere"], "nowhere"),
    ],
)
def test_bad_options_are_user_errors(kb: Path, shards: Path, tmp_path: Path, options: list[str], message: str) -> None:
    arguments = ["transe", "--kb", str(kb), "--shards", str(shards), "--out", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_command_prints_what_it_did(kb: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["transe", "--kb", str(kb), "--shards", str(shards), "--out", str(tmp_path / "out"), "--dim", "4"]
    result = CliRunner().invoke(app, [*arguments, "--epochs", "2", "--heldout", "0.1"], catch_exceptions=False)
    assert result.exit_code == 0
    shown = result.stdout + capfd.readouterr().out
    for text in ("held-out MRR", "Hits@10", "triples / s", "entities without triples (start zero)"):
        assert text in shown
    assert load_transe(tmp_path / "out", vocab(shards)).entity_embeddings.shape == (25, 4)
    assert json.dumps(load_transe(tmp_path / "out", vocab(shards)).info)


def test_real_parts_fit_together(sample_kb: Path, sample_shards: Path, tmp_path: Path) -> None:
    settings = RunSettings(training=TransESettings(dim=16, epochs=10, batch_size=256), heldout=0.05)
    run(sample_kb, sample_shards, tmp_path / "out", settings=settings)
    entity_vocab = PackedShards.load(sample_shards).entity_vocab
    read = load_transe(tmp_path / "out", entity_vocab)
    assert len(read.entity_embeddings) == len(entity_vocab)
    assert read.has_triples.sum() > 0.5 * len(entity_vocab)
    assert read.info["counts"]["triples_heldout"] > 0
