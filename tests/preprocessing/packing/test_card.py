"""The dataset card: Hugging Face's own library opens a shards folder, offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from kebiolm.data.shard_format import SCHEMA, PackedShards
from preprocessing.document import Document
from preprocessing.packing.pack import pack
from preprocessing.packing.settings import PackSettings
from tests.preprocessing.packing.test_pack import make_documents

# `datasets` reads the environment when it is imported, so it runs in a process of its own.
OPEN = """
import json, sys
from datasets import DatasetInfo, load_dataset
opened = load_dataset(sys.argv[1])
info = DatasetInfo.from_directory(sys.argv[1])
print(json.dumps({
    "splits": {name: split.num_rows for name, split in opened.items()},
    "described": {name: split.num_examples for name, split in info.splits.items()},
    "equal_features": all(split.features == info.features for split in opened.values()),
    "types": {name: str(feature.feature.dtype) for name, feature in info.features.items()},
    "rows": opened["train"][:],
}))
"""


def open_with_datasets(folder: Path, cache: Path) -> dict:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "HF_DATASETS_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_load_dataset_opens_the_folder(
    write_annotated: Callable[[Iterable[Document]], Path], tiny_tokenizer_folder: Path, tmp_path: Path
):
    pytest.importorskip("datasets")
    out, annotated = tmp_path / "shards", write_annotated(make_documents(60))
    # Two shards; `work` is a folder that one might have beside them.
    pack(annotated, tiny_tokenizer_folder, out, settings=PackSettings(max_length=64, heldout=0.2))
    shards = PackedShards.load(out)
    opened = open_with_datasets(out, tmp_path / "cache")
    assert opened["splits"] == opened["described"] == {"train": len(shards.train), "heldout": len(shards.heldout)}
    assert opened["equal_features"]
    assert opened["types"] == {field.name: str(field.type.value_type) for field in SCHEMA}
    for number, sequence in enumerate(shards.train):
        for name in SCHEMA.names:
            assert opened["rows"][name][number] == list(getattr(sequence, name)), name


def test_the_card_says_what_is_in_the_folder(
    write_annotated: Callable[[Iterable[Document]], Path], tiny_tokenizer_folder: Path, tmp_path: Path
):
    out, annotated = tmp_path / "shards", write_annotated(make_documents(40))
    manifest = pack(annotated, tiny_tokenizer_folder, out, settings=PackSettings(max_length=64, heldout=0, min_count=2))
    card = (out / "README.md").read_text(encoding="utf-8")
    counts = manifest["counts"]["train"]
    assert f"| sequences | {counts['sequences']:,} | 0 |" in card and f"| {counts['fill_rate']:.2%} | 0.00% |" in card
    assert "- min_count: 2" in card and manifest["tokenizer"]["vocab_sha256"] in card
    assert "do not publish" in card and "kebiolm pack" in card
    assert "heldout-*" not in card, "a split without files cannot be opened"
    for file in ("README.md", "dataset_info.json"):
        assert str(tmp_path) not in (out / file).read_text(encoding="utf-8")
    # People may add to a card.
    (out / "README.md").write_text(f"{card}\nOurs.\n", encoding="utf-8")
    assert PackedShards.load(out, verify=True).manifest == manifest
