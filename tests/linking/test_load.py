"""A folder whose parts are missing, broken, or do not belong together is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from kebiolm.data.entity_vocab import EntityVocab
from kebiolm.errors import UserError
from kebiolm.linking.load import load_model_folder


@pytest.fixture
def broken(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def _change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _drop_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["bert.mention_detector.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "weights cut short": (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), "unreadable weights"),
    "a weight is missing": (_drop_weight, "mention_detector.weight"),
    "weights of another size": (lambda f: _change_config(f, entity_size=5), "weights"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "config out of range": (lambda f: _change_config(f, num_context_layers=9), "num_context_layers"),
    "no tokenizer": (lambda f: (f / "vocab.txt").unlink(), "tokenizer"),
    "tokenizer too large": (lambda f: (f / "vocab.txt").open("a").write("zebra\n"), "pieces"),
    "no vocabulary": (lambda f: (f / "entity_vocab.tsv").unlink(), "entity_vocab.tsv"),
    "vocabulary of another model": (lambda f: EntityVocab.build({"C1": 1}).save(f / "entity_vocab.tsv"), "4 rows"),
}


@pytest.mark.parametrize("case", CASES)
def test_broken_folder(broken: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    breaks, words = CASES[case]
    breaks(broken)
    with pytest.raises(UserError, match=words) as caught:
        load_model_folder(broken)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_model_folder(tmp_path / "absent")


def test_loading_is_silent(model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model_folder(model_folder)
    assert capfd.readouterr() == ("", "")
