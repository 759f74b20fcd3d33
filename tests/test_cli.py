"""The command line: help for every command, and one line for every mistake of a user, never a traceback."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kebiolm.cli import EXTRAS, app, main
from tests.training.launch import DEBUG_RECIPE

COMMANDS = ["kb build", "sample", "annotate", "annotate-eval", "pack", "shards show", "transe", "plan", "pretrain"]
COMMANDS += ["stop", "track show", "track sync", "export", "link", "encode", "index"]


def fail(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail as a user's mistake; returns its error line."""
    monkeypatch.setattr(sys, "argv", ["kebiolm", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    error = capfd.readouterr().err
    assert caught.value.code == 2
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "; expected " in lines[0]
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_missing_rrf_file(sample_dir: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    umls = tmp_path / "umls"
    shutil.copytree(sample_dir / "umls", umls)
    (umls / "MRREL.RRF").unlink()
    assert "MRREL.RRF" in fail(monkeypatch, capfd, "kb", "build", "--umls", umls, "--out", tmp_path / "kb")
    assert not (tmp_path / "kb").exists()


def test_missing_rrf_column(sample_dir: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    umls = tmp_path / "umls"
    shutil.copytree(sample_dir / "umls", umls)
    layout = umls / "MRFILES.RRF"
    layout.write_text(layout.read_text().replace(",RELA,", ",RELATION,"))
    assert "RELA" in fail(monkeypatch, capfd, "kb", "build", "--umls", umls, "--out", tmp_path / "kb")


def test_input_that_is_no_file(sample_kb: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    line = fail(
        monkeypatch, capfd, "annotate", tmp_path / "absent.xml", "--kb", sample_kb, "--model", "dictionary",
        "--out", tmp_path / "annotated",
    )  # fmt: skip
    assert "absent.xml" in line


def test_output_that_cannot_be_written(sample_dir: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    (tmp_path / "file").write_text("")
    line = fail(monkeypatch, capfd, "kb", "build", "--umls", sample_dir / "umls", "--out", tmp_path / "file" / "kb")
    assert "file" in line


def test_model_that_is_not_installed(sample_dir: Path, sample_kb: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    line = fail(
        monkeypatch, capfd, "annotate", sample_dir / "pubmed", "--kb", sample_kb, "--model", "en_core_sci_absent",
        "--out", tmp_path / "annotated",
    )  # fmt: skip
    assert "en_core_sci_absent" in line


def test_shard_cut_short(sample_shards: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(sample_shards, shards)
    shard = next(shards.glob("train-*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-200])
    assert "cut short" in fail(monkeypatch, capfd, "shards", "show", shards)
    arguments = ["pretrain", DEBUG_RECIPE, f"shards={shards}", f"output={tmp_path / 'run'}"]
    assert "cut short" in fail(monkeypatch, capfd, *arguments)


def test_tokenizer_that_does_not_match_the_shards(
    sample_shards: Path, tiny_tokenizer_folder: Path, tmp_path: Path, monkeypatch, capfd
) -> None:
    bert = tmp_path / "bert"
    shutil.copytree(tiny_tokenizer_folder, bert)
    (bert / "model.safetensors").touch()
    (bert / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 2000}))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"shards: {sample_shards}\noutput: {tmp_path / 'run'}\nmodel: {{init_from: {bert}}}\n")
    with open(recipe, "a", encoding="utf-8") as file:
        file.write(f"deepspeed: {DEBUG_RECIPE.parents[3] / 'deepspeed_configs' / 'zero1_fp32.json'}\n")
        file.write("optimization: {global_batch_size: 8}\n")
    assert "a tokenizer with" in fail(monkeypatch, capfd, "pretrain", recipe)


def test_overwrite_spares_folders_of_others(sample_dir: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    kb_build = ["kb", "build", "--umls", sample_dir / "umls", "--overwrite", "--out"]
    assert "did not make" in fail(monkeypatch, capfd, *kb_build, mine)
    assert "did not make" in fail(monkeypatch, capfd, "sample", mine, "--overwrite")
    assert "contains the input" in fail(monkeypatch, capfd, *kb_build, sample_dir)
    assert (mine / "thesis.txt").exists() and (sample_dir / "umls" / "MRCONSO.RRF").exists()


@pytest.mark.parametrize(
    ("command", "absent", "extra"),
    [
        (["annotate", "x.xml", "--kb", "kb", "--model", "dictionary", "--out", "out"], "spacy", "kebiolm[prep]"),
        (["annotate", "x.xml", "--kb", "kb", "--model", "dictionary", "--out", "out"], "ray", "kebiolm[prep]"),
        (["pretrain", str(DEBUG_RECIPE)], "pydantic", "kebiolm[train]"),
        (["link", "model", "text"], "torch", "kebiolm[model]"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(command: list[str], absent: str, extra: str) -> None:
    done = run_without(absent, command)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {absent}: got a package that is not installed; expected ")
    assert done.stderr.count("\n") == 1 and f"pip install '{extra}'" in done.stderr


def test_a_broken_module_of_ours_is_not_hidden() -> None:
    done = run_without("preprocessing.annotation.job", ["annotate", "x", "--kb", "k", "--model", "m", "--out", "o"])
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "preprocessing.annotation.job" in done.stderr


def run_without(module: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that cannot import a module."""
    code = f"import sys; sys.modules[{module!r}] = None; sys.argv[0] = 'kebiolm'; from kebiolm.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_every_optional_package_has_its_hint() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    text = (DEBUG_RECIPE.parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    wanted = [re.match(r"\w+", package)[0] for name in ("prep", "model", "train") for package in extras[name]]
    hints = {package: mend for packages, mend in EXTRAS.items() for package in packages}
    assert sorted(hints) == sorted(set(wanted) - {"kebiolm"})
    for name in ("prep", "model", "train"):
        packages = [re.match(r"\w+", package)[0] for package in extras[name]]
        assert all(f"'kebiolm[{name}]'" in hints[package] for package in packages if package != "kebiolm")


def test_unknown_setting(monkeypatch, capfd) -> None:
    assert "unknown key seeed (did you mean seed?)" in fail(monkeypatch, capfd, "pretrain", DEBUG_RECIPE, "seeed=1")


def test_bad_documents_are_counted_not_lost(sample_kb: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    """Bad XML, an empty abstract, invalid UTF-8 and a cut gzip end as rejects beside the good documents."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    good = b'{"id": "1", "text": "Glycerin helped."}\n'
    (inputs / "mixed.jsonl").write_bytes(good + b'{"id": "2", "text": ""}\n{"id": "3", "text": "\xff"}\n{"id": \n')
    (inputs / "broken.xml").write_text("<PubmedArticleSet><PubmedArticle><MedlineCitation>")
    (inputs / "cut.jsonl.gz").write_bytes(gzip.compress(good * 2000)[:-20])
    monkeypatch.setattr(
        sys, "argv",
        ["kebiolm", "annotate", str(inputs), "--kb", str(sample_kb), "--model", "dictionary", "--out",
         str(tmp_path / "annotated")],
    )  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    counts = json.loads((tmp_path / "annotated" / "manifest.json").read_text())["counts"]
    assert counts["documents_in"] == counts["documents_out"] + counts["rejects"]
    assert counts["documents_out"] >= 1
    assert counts["rejects"] >= 5
