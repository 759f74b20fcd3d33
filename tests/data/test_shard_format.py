"""Shards: what is written is read, and broken folders are refused in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from random_sequences import make_sequence, make_sequences, write_shards

from kebiolm.data.shard_format import (
    SCHEMA,
    PackedSequence,
    PackedShards,
    make_rows,
    read_shard,
    shard_name,
    write_shard,
)
from kebiolm.errors import UserError


def assert_equal(left: PackedSequence, right: PackedSequence) -> None:
    for field in fields(PackedSequence):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if field.name == "document_ids":
            assert a == b
        else:
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, err_msg=field.name)


def test_every_sequence_comes_back_over_file_borders(tiny_shards: PackedShards):
    assert (len(tiny_shards.train), len(tiny_shards.heldout)) == (30, 11)
    names = sorted(name for name in tiny_shards.manifest["files"] if name.startswith("train"))
    assert names[0] == "train-00000-of-00005.arrow" and len(names) == 5
    for index, sequence in enumerate(make_sequences(30)):
        assert_equal(tiny_shards.train[index], sequence)
    with pytest.raises(IndexError):
        tiny_shards.train[30]
    with pytest.raises(IndexError):
        tiny_shards.train[-1]


def test_arrays_are_read_only_views_of_the_file(tiny_shards: PackedShards):
    sequence = tiny_shards.train[8]
    assert not sequence.input_ids.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        sequence.input_ids[0] = 1


def test_a_sequence_without_mentions_and_an_empty_split(tmp_path: Path):
    bare = make_sequence(np.random.default_rng(0), [3])
    bare = PackedSequence(
        **{field.name: getattr(bare, field.name) for field in fields(bare)}
        | {name: np.zeros(0, np.int32) for name in ("mention_starts", "mention_ends", "mention_entities")}
    )
    shards = write_shards(tmp_path / "shards", [bare], [])
    assert len(shards.heldout) == 0
    assert_equal(shards.train[0], bare)


def test_rows_are_made_of_values_and_lengths(tmp_path: Path):
    sequences = make_sequences(5)
    columns = {}
    for name in SCHEMA.names:
        values = [getattr(sequence, name) for sequence in sequences]
        columns[name] = (np.concatenate(values), np.array([len(value) for value in values]))
    rows = make_rows(columns)
    rows.validate(full=True)
    entry = write_shard(tmp_path / "a.arrow", rows)
    assert entry["rows"] == 5 and entry["bytes"] == (tmp_path / "a.arrow").stat().st_size
    assert read_shard(tmp_path / "a.arrow", 5) == rows
    for row, sequence in zip(rows.to_pylist(), sequences, strict=True):
        assert {name: list(getattr(sequence, name)) for name in SCHEMA.names} == row
    none = make_rows({name: (values[:0], np.zeros(0, int)) for name, (values, _) in columns.items()})
    write_shard(tmp_path / "none.arrow", none)
    assert read_shard(tmp_path / "none.arrow", 0).num_rows == 0


def test_shards_sort_by_number():
    names = [shard_name("train", number, 12) for number in range(12)]
    assert names[3] == "train-00003-of-00012.arrow" and sorted(names) == names


def test_a_folder_that_is_not_finished_is_refused(copy: Path):
    (copy / "work").mkdir()
    assert len(PackedShards.load(copy).train) == 30, "killed after the manifest, which is the last"
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"a packing job that is not finished; .* run the same `kebiolm pack` command"):
        PackedShards.load(copy)


def test_the_same_sequences_give_the_same_bytes(tmp_path: Path):
    first = write_shards(tmp_path / "a", make_sequences(9), make_sequences(2, seed=1))
    second = write_shards(tmp_path / "b", make_sequences(9), make_sequences(2, seed=1))
    other = write_shards(tmp_path / "c", make_sequences(9, seed=5), make_sequences(2, seed=1))
    assert first.manifest == second.manifest
    assert first.fingerprint == second.fingerprint != other.fingerprint


@pytest.fixture
def copy(tiny_shards: PackedShards, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_shards.path, tmp_path / "copy"))


def test_a_shard_cut_short_is_refused(copy: Path):
    shard = copy / "train-00001-of-00005.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train-00001-of-00005\.arrow: got .* bytes; expected .* bytes \(cut short"):
        PackedShards.load(copy)


def test_a_shard_of_the_right_size_without_its_footer_is_refused(copy: Path):
    shard = copy / "train-00001-of-00005.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100] + bytes(100))
    with pytest.raises(UserError, match="no Arrow file"):
        PackedShards.load(copy)


def test_an_altered_byte_is_found_by_verify(copy: Path):
    shard = copy / "heldout-00000-of-00002.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="SHA-256"):
        PackedShards.load(copy, verify=True)


def test_a_missing_shard_is_refused(copy: Path):
    (copy / "train-00004-of-00005.arrow").unlink()
    with pytest.raises(UserError, match="no such file"):
        PackedShards.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "kebiolm-kb"}, "kebiolm-kb version 1; expected kebiolm-shards version 1"),
        ({"version": 99}, "version 99"),
        ({"tokenizer": None}, "no field 'tokenizer'"),
    ],
)
def test_foreign_manifests_are_refused(copy: Path, change: dict, message: str):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match=message) as error:
        PackedShards.load(copy)
    assert "\n" not in str(error.value)


def test_a_wrong_number_of_rows_is_refused(copy: Path):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["train-00000-of-00005.arrow"]["rows"] = 8
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="7 sequences; expected 8"):
        PackedShards.load(copy)


def test_a_folder_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        PackedShards.load(tmp_path / "nothing")
