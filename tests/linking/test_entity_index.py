"""Entity indexes: what they find, files of theirs that are refused, and the commands that make and use them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from kebiolm.cli import main
from kebiolm.errors import UserError
from kebiolm.files import describe_file
from kebiolm.linking import KeBioLM
from kebiolm.linking.entity_index import KINDS, EntityIndex, IndexSettings, manifest_path, move_to_gpu
from kebiolm.linking.linked_text import to_json
from kebiolm.model import KeBioLMConfig
from kebiolm.model.entity_memory import EntityTable
from tests.linking.hand_made_model import ENTITY_SIZE, HIDDEN_SIZE

pytest.importorskip("faiss", reason="faiss is not installed")

HIDDEN_ROWS, ENTITIES, SIZE = 3, 4003, 24
TEXTS = ["Aspirin treats severe HEADACHE and pain.", "the patient", "Pain."]


def clustered(rows: int) -> Tensor:
    """Vectors in clusters of about 40, as related concepts lie."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(rows // 40, SIZE, generator=generator)
    chosen = torch.randint(len(centres), (rows,), generator=generator)
    return centres[chosen] + 0.4 * torch.randn(rows, SIZE, generator=generator)


@pytest.fixture(scope="module")
def table() -> EntityTable:
    """Its hidden rows would win every mention if they were searched."""
    config = KeBioLMConfig(num_entities=ENTITIES, entity_size=SIZE, max_candidate_entities=100)
    table = EntityTable(config)
    with torch.no_grad():
        table.weight.copy_(clustered(ENTITIES))
        table.weight[:HIDDEN_ROWS] = 100
    return table.requires_grad_(False)


@pytest.fixture(scope="module")
def mentions(table: EntityTable) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randint(HIDDEN_ROWS, ENTITIES, (200,), generator=generator)
    return table.vectors[chosen] + 0.3 * torch.randn(200, SIZE, generator=generator)


def build(table: EntityTable, **settings: Any) -> EntityIndex:
    return EntityIndex.build(table.vectors, IndexSettings(**settings), first_row=HIDDEN_ROWS)


def through(index: EntityIndex | None, table: EntityTable, mentions: Tensor) -> Any:
    """What the model's entity table finds by an index, or by the exact search."""
    table.index = index
    try:
        return table(mentions, None)
    finally:
        table.index = None


def test_flat_is_the_exact_search(table: EntityTable, mentions: Tensor) -> None:
    exact, found = through(None, table, mentions), through(build(table, kind="flat"), table, mentions)
    torch.testing.assert_close(found.att, exact.att, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.topk_val, exact.topk_val, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.topk_idx, exact.topk_idx)
    assert found.lse.isnan().all()


@pytest.mark.parametrize(("kind", "floor"), [("ivf", 0.85), ("hnsw", 0.95)])
def test_recall(kind: str, floor: float, table: EntityTable, mentions: Tensor) -> None:
    exact, found = through(None, table, mentions), through(build(table, kind=kind), table, mentions)
    recall = np.mean([np.isin(*rows).mean() for rows in zip(exact.topk_idx, found.topk_idx, strict=True)])
    print(f"{kind}: recall@100 {recall:.3f}")
    assert recall >= floor
    assert found.topk_idx.min() >= HIDDEN_ROWS
    # The scores are exact whichever rows are found.
    torch.testing.assert_close(found.topk_val, (mentions @ table.vectors.T).gather(1, found.topk_idx))
    assert (found.topk_val.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_table_gives_the_same_bytes_and_they_load(
    kind: str, table: EntityTable, mentions: Tensor, tmp_path: Path
) -> None:
    first, again = (build(table, kind=kind) for _ in range(2))
    for index, name in ((first, "a"), (again, "b")):
        index.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = EntityIndex.load(tmp_path / "a", table.vectors, first_row=HIDDEN_ROWS)
    assert loaded.settings == first.settings
    for one, other in zip(loaded.search(mentions, 100), first.search(mentions, 100), strict=True):
        assert torch.equal(one, other)


def test_fewer_neighbours_are_never_wrong_ones(table: EntityTable, mentions: Tensor) -> None:
    values, rows = build(table, kind="ivf", nlist=100, nprobe=1).search(mentions, 100)
    found = rows >= HIDDEN_ROWS
    assert torch.equal(~found, rows == -1)
    assert 0 < found.sum() < found.numel() and found[:, 0].all()
    assert (found.long().diff(dim=1) <= 0).all()
    assert torch.equal(values == -torch.inf, ~found)
    assert all(len(set(row[row >= 0].tolist())) == (row >= 0).sum() for row in rows)
    expected = (mentions @ table.vectors.T).gather(1, rows.clamp(min=0))
    torch.testing.assert_close(values[found], expected[found])


def test_a_graph_finds_k_though_fewer_are_in_view(table: EntityTable, mentions: Tensor) -> None:
    _, rows = build(table, kind="hnsw", m=8, ef_construction=20, ef_search=1).search(mentions[:20], 100)
    assert rows.shape == (20, 100)
    assert rows.min() >= HIDDEN_ROWS
    assert all(len(set(row)) == 100 for row in rows.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_k_above_the_number_of_entities_and_no_mention(kind: str, table: EntityTable) -> None:
    few = table.vectors[:7]
    index = EntityIndex.build(few, IndexSettings(kind=kind), first_row=HIDDEN_ROWS)
    values, rows = index.search(table.vectors[5:6], 100)
    assert sorted(rows[0].tolist()) == [3, 4, 5, 6]
    assert values.shape == (1, 4)
    values, rows = index.search(few[:0], 100)
    assert values.shape == rows.shape == (0, 4)


def test_of_equal_scores_the_lower_row_comes_first() -> None:
    index = EntityIndex.build(torch.ones(50, 4), IndexSettings(kind="flat"))
    assert index.search(torch.ones(2, 4), 50)[1].tolist() == [list(range(50))] * 2


def test_half_precision(table: EntityTable, mentions: Tensor) -> None:
    half = table.vectors.half()
    index = EntityIndex.build(half, IndexSettings(kind="flat"), first_row=HIDDEN_ROWS)
    values, rows = index.search(mentions.half(), 10)
    expected = mentions.half().float() @ half[HIDDEN_ROWS:].float().T
    torch.testing.assert_close(values, expected.topk(10, dim=1).values, atol=1e-4, rtol=1e-5)
    assert rows.min() >= HIDDEN_ROWS


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "lsh"}, "--kind: got lsh; expected one of flat, ivf, hnsw"),
        ({"kind": "ivf", "nlist": 0}, "--nlist: got 0; expected 1 or more"),
        ({"kind": "hnsw", "m": 1}, "--m: got 1; expected 2 or more"),
        ({"kind": "hnsw", "ef_search": -1}, "--ef-search: got -1"),
        ({"kind": "hnsw", "nlist": 5}, "--nlist: got it with --kind hnsw; expected --kind ivf"),
        ({"kind": "ivf", "nlist": 5000}, "--nlist: got 5000; expected at most 4000"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str, table: EntityTable) -> None:
    with pytest.raises(UserError, match=words):
        build(table, **settings)


def _change_manifest(path: Path, **fields: object) -> None:
    manifest = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps(manifest | fields))


def _write_garbage(path: Path) -> None:
    path.write_bytes(b"no index")
    _change_manifest(path, file=describe_file(path))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda path: path.unlink(), "index: got no such file"),
    "no manifest": (lambda path: manifest_path(path).unlink(), "index.json: got no such file"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cut short"),
    "other bytes": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"), "SHA-256"),
    "not faiss's": (_write_garbage, "cannot read"),
    "manifest is not JSON": (lambda path: manifest_path(path).write_text("{"), "no manifest"),
    "manifest is a list": (lambda path: manifest_path(path).write_text("[]"), "no manifest"),
    "a part is missing": (lambda path: manifest_path(path).write_text('{"format": "x"}'), "no manifest"),
    "of a later version": (lambda path: _change_manifest(path, version=2), "version 2; expected .* version 1"),
    **{
        f"{name} {value}": (lambda path, name=name, value=value: _change_manifest(path, **{name: value}), words)
        for name, value, words in [
            ("table", None, r"json: got table None; expected table with rows \(int\), size"),
            ("table", {"rows": ENTITIES}, "got table .*; expected table with"),
            ("file", None, r"got file None; expected file with bytes \(int\), sha256 \(str\)"),
            ("file", {"bytes": "9", "sha256": "0"}, "got file .*'9'.*; expected file with"),
            ("settings", None, "got settings: None"),
            ("settings", ["flat"], r"got settings: \['flat'\]; expected the kind"),
            ("settings", {"kind": ["flat"]}, "got settings: {'kind'"),
            ("settings", {"kind": "lsh"}, "got settings: kind lsh"),
            ("settings", {"kind": "flat", "m": 32}, "got settings: 'm' with kind 'flat'"),
            ("settings", {"kind": "ivf", "cells": 5}, "got settings: 'cells' with kind 'ivf'"),
            ("settings", {"kind": "ivf", "nlist": "5"}, "got settings: nlist '5'"),
            ("settings", {"kind": "hnsw", "ef_search": None}, "got settings: ef_search None"),
            ("settings", {"kind": "hnsw", "m": 1}, "got settings: m 1"),
        ]
    },
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(case: str, table: EntityTable, tmp_path: Path) -> None:
    breaks, words = BROKEN[case]
    build(table, kind="flat").save(tmp_path / "index")
    breaks(tmp_path / "index")
    with pytest.raises(UserError, match=words) as caught:
        EntityIndex.load(tmp_path / "index", table.vectors, first_row=HIDDEN_ROWS)
    assert "\n" not in str(caught.value) and "kebiolm index" in str(caught.value)


def test_an_index_of_another_table(table: EntityTable, tmp_path: Path) -> None:
    build(table, kind="flat").save(tmp_path / "index")
    changed = table.vectors.clone()
    changed[1000, 3] += 1e-6
    for other, first_row, words in [
        (changed, HIDDEN_ROWS, "sha256"),
        (table.vectors[:-1], HIDDEN_ROWS, "rows 4003, not 4002"),
        (table.vectors[:, :-1], HIDDEN_ROWS, "size 24, not 23"),
        (table.vectors, 0, "first_row 3, not 0"),
    ]:
        with pytest.raises(UserError, match=rf"an index of another entity table \({words}"):
            EntityIndex.load(tmp_path / "index", other, first_row=first_row)


def test_faiss_is_not_installed(table: EntityTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"faiss: got a package that is not installed; .* pip install 'kebiolm.index.'"):
        build(table, kind="flat")


def test_the_index_moves_to_the_gpu_of_the_table() -> None:
    faiss = SimpleNamespace(
        get_num_gpus=lambda: 1,
        StandardGpuResources=lambda: "resources",
        index_cpu_to_gpu=lambda *arguments: arguments,
    )
    gpu = torch.device("cuda", 1)
    assert move_to_gpu(faiss, "index", "ivf", gpu) == ("resources", 1, "index")
    assert move_to_gpu(faiss, "index", "hnsw", gpu) == "index"
    assert move_to_gpu(faiss, "index", "ivf", torch.device("cpu")) == "index"
    assert move_to_gpu(SimpleNamespace(), "index", "flat", gpu) == "index"


# The commands, on the hand-made model of three concepts, of which two are equally far from each mention.


@pytest.fixture(scope="module")
def folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three are neighbours, so that the border is not between equals. Read only."""
    folder = Path(shutil.copytree(model_folder, tmp_path_factory.mktemp("three") / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_candidate_entities": 3}))
    return folder


@pytest.fixture(scope="module")
def exact(folder: Path) -> KeBioLM:
    return KeBioLM.from_pretrained(folder, device="cpu")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line; returns its status, and what it printed on stdout and stderr."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kebiolm", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err
        return caught.value.code or 0, printed.out, printed.err

    return run_command


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def encode(folder: Path, text_file: Path, tmp_path: Path, run: Any) -> Callable[..., Path]:
    """Runs `kebiolm encode` on the texts; returns the file that it wrote."""

    def run_command(ending: str, *options: object) -> Path:
        out = tmp_path / f"vectors{ending}"
        status, _, errors = run("encode", folder, "--file", text_file, "--out", out, *options)
        assert status == 0, errors
        return out

    return run_command


@pytest.mark.parametrize("kind", KINDS)
def test_index_and_link(kind: str, exact: KeBioLM, folder: Path, text_file: Path, run: Any) -> None:
    index = text_file.parent / kind / "entities.faiss"
    status, printed, errors = run("index", folder, "--kind", kind, "--out", index, "--queries", text_file)
    assert status == 0, errors
    assert "recall@3      1.000 on 4 mentions of texts.txt" in printed
    assert printed.count("s per 1,000 mentions") == 2
    status, printed, errors = run("link", folder, "--file", text_file, "--json", "--index", index)
    assert status == 0, errors
    found, expected = json.loads(printed)["texts"], to_json(exact.link(TEXTS))["texts"]
    for one, other in zip(found, expected, strict=True):
        for mention, expected in zip(one["mentions"], other["mentions"], strict=True):
            assert 0 < expected.pop("probability") < 1
            # The softmax over all entities is not known.
            assert mention.pop("probability") is None
            assert mention["score"] == pytest.approx(expected.pop("score"), abs=1e-5)
            assert mention["cui"] == expected["cui"]
    assert sum(len(text["mentions"]) for text in found) == 4


def test_index_without_texts(folder: Path, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "index"
    assert "on 1,000 entity vectors with noise" in run("index", folder, "--kind", "flat", "--out", out)[1]
    assert "a file that exists" in run("index", folder, "--kind", "flat", "--out", out)[2]
    assert run("index", folder, "--kind", "hnsw", "--out", out, "--overwrite")[0] == 0
    assert json.loads(manifest_path(out).read_text())["kind"] == "hnsw"


def test_texts_without_mentions_measure_nothing(folder: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "texts.txt").write_text("the patient\n")
    status, _, errors = run("index", folder, "--out", tmp_path / "index", "--queries", tmp_path / "texts.txt")
    assert (status, errors.count("\n")) == (2, 1)
    assert "no mention" in errors and not (tmp_path / "index").exists()


def test_an_index_of_another_model(folder: Path, tmp_path: Path, run: Any) -> None:
    assert run("index", folder, "--kind", "flat", "--out", tmp_path / "index")[0] == 0
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    weights = load_tensors(other / "model.safetensors")
    weights["bert.entity_linker.entity_embeddings.weight"][4] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    status, _, errors = run("link", other, "aspirin", "--index", tmp_path / "index")
    assert (status, errors.count("\n")) == (2, 1)
    assert "an index of another entity table" in errors and "kebiolm index" in errors


def test_neighbours_that_are_not_found_are_not_shown(folder: Path, exact: KeBioLM, tmp_path: Path) -> None:
    table = exact.model.entity_linker.entity_embeddings.vectors.detach()
    EntityIndex.build(table, IndexSettings(kind="ivf", nlist=3, nprobe=1), first_row=3).save(tmp_path / "index")
    linked = KeBioLM.from_pretrained(folder, device="cpu", index=tmp_path / "index").link(TEXTS)
    assert [mention.cui for text in linked for mention in text.mentions] == [
        mention.cui for text in exact.link(TEXTS) for mention in text.mentions
    ]
    # One cell has one concept here, so the attention has one neighbour.
    assert all((mention.score, mention.alternatives) == (1.0, ()) for text in linked for mention in text.mentions)


def test_a_mention_for_which_nothing_is_found_is_left_out(folder: Path) -> None:
    class FindsAspirin:
        def search(self, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
            is_aspirin = vectors.argmax(dim=1, keepdim=True) == 0
            rows = torch.where(is_aspirin, torch.tensor([3, -1, -1]), -1)
            return torch.where(rows >= 0, 1.0, -torch.inf), rows

    kebiolm = KeBioLM.from_pretrained(folder, device="cpu")
    kebiolm.model.entity_linker.entity_embeddings.index = FindsAspirin()
    assert [[m.text for m in text.mentions] for text in kebiolm.link(TEXTS)] == [["Aspirin"], [], []]
    assert [len(vectors) for vectors in kebiolm.encode_mentions(TEXTS)] == [1, 0, 0]
    assert np.isfinite(kebiolm.encode(TEXTS)).all()


@pytest.mark.parametrize("ending", [".npy", ".safetensors", ".jsonl"])
def test_encode_texts(ending: str, exact: KeBioLM, encode: Any) -> None:
    out = encode(ending)
    if ending == ".npy":
        vectors = np.load(out)
    elif ending == ".safetensors":
        vectors = load_file(out)["vectors"]
    else:
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        assert [line["text"] for line in lines] == TEXTS
        vectors = np.array([line["vector"] for line in lines])
    assert vectors.shape == (3, HIDDEN_SIZE)
    np.testing.assert_allclose(vectors, exact.encode(TEXTS), atol=1e-5)


def test_encoded_lines_keep_their_numbers(folder: Path, tmp_path: Path, run: Any) -> None:
    file, out = tmp_path / "lines.txt", tmp_path / "lines.safetensors"
    file.write_text(f"the patient\n\n  {TEXTS[0]}\r\n\n", encoding="utf-8")
    assert run("encode", folder, "--file", file, "--out", out, "--mentions")[0] == 0
    found = load_file(out)
    assert set(found["text"].tolist()) == {2}
    assert found["start"].min() >= 2
    assert run("encode", folder, "--file", file, "--out", tmp_path / "lines.npy")[0] == 0
    vectors = np.load(tmp_path / "lines.npy")
    assert vectors.shape[0] == 4 and not vectors[[1, 3]].any() and vectors[[0, 2]].any(axis=1).all()


def test_encode_with_an_index(folder: Path, tmp_path: Path, run: Any, encode: Any) -> None:
    assert run("index", folder, "--kind", "flat", "--out", tmp_path / "index")[0] == 0
    exact = np.load(encode(".npy"))
    flat = np.load(encode(".npy", "--overwrite", "--index", tmp_path / "index"))
    np.testing.assert_allclose(flat, exact, atol=1e-5)
    # One cell instead of all: other neighbours go into the text.
    assert run("index", folder, "--kind", "ivf", "--nlist", 3, "--nprobe", 1, "--out", tmp_path / "ivf")[0] == 0
    found = np.load(encode(".npy", "--overwrite", "--index", tmp_path / "ivf"))
    assert np.isfinite(found).all() and np.abs(found - exact).max() > 1e-4


@pytest.mark.parametrize("ending", [".safetensors", ".jsonl"])
def test_encode_mentions(ending: str, exact: KeBioLM, encode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kebiolm.linking.command._TEXTS_AT_ONCE", 2)
    out = encode(ending, "--mentions")
    if ending == ".safetensors":
        arrays = load_file(out)
        places = list(zip(*(arrays[name].tolist() for name in ("text", "start", "end")), strict=True))
        vectors = arrays["vectors"]
    else:
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        found = [(number, mention) for number, line in enumerate(lines) for mention in line["mentions"]]
        places = [(number, mention["start"], mention["end"]) for number, mention in found]
        vectors = np.array([mention["vector"] for _, mention in found])
    assert [TEXTS[text][start:end] for text, start, end in places] == ["Aspirin", "HEADACHE", "pain", "Pain"]
    assert vectors.shape == (4, ENTITY_SIZE)
    np.testing.assert_allclose(vectors, np.concatenate(exact.encode_mentions(TEXTS)), atol=1e-5)


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("vectors.txt", [], "the ending '.txt'; expected a file for vectors: .npy, .safetensors, .jsonl"),
        ("vectors.npy", ["--mentions"], "expected a file for vectors of mentions: .safetensors, .jsonl"),
        ("there.npy", [], "a file that exists"),
        ("folder.npy", ["--overwrite"], "got a folder"),
    ],
)
def test_outputs_that_are_refused(out: str, options: list[str], words: str, tmp_path: Path, run: Any) -> None:
    (tmp_path / "there.npy").write_text("")
    (tmp_path / "folder.npy").mkdir()
    status, _, errors = run("encode", tmp_path, "text", "--out", tmp_path / out, *options)
    assert (status, errors.count("\n")) == (2, 1)
    assert words in errors
