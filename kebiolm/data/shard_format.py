"""Packed shards: the one place that knows their columns, file names and manifest, for writer and reader alike.

A shards folder describes itself; a training job needs this one path:

    train-00003-of-00012.arrow     packed sequences, Arrow IPC, one record batch, read through memory maps
    heldout-00000-of-00001.arrow   the same of the documents for evaluation
    entity_vocab.tsv, tokenizer/   what the rows and piece ids mean
    manifest.json                  settings, counts and hashes, written last: without it the folder is not finished
    README.md, dataset_info.json   for people and `datasets.load_dataset`; no manifest names them, so they may be edited
    job.json, work/                of the job that makes the folder; work/ is gone when it is done
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kebiolm.data import entity_vocab
from kebiolm.data.entity_vocab import EntityVocab
from kebiolm.errors import UserError
from kebiolm.files import atomic_path, describe_file, read_manifest, sha256_of_json, verify_file

FORMAT, VERSION, MADE_BY = "kebiolm-shards", 1, "kebiolm pack"
TRAIN, HELDOUT = "train", "heldout"
SPLITS = (TRAIN, HELDOUT)
TOKENIZER_FOLDER = "tokenizer"
WORK_FOLDER = "work"
OUTSIDE, BEGIN, INSIDE = 0, 1, 2  # values of bio_labels

_MEND = "run `kebiolm pack` again, or copy the folder again"
_MANIFEST_FIELDS = ("settings", "counts", "files", "tokenizer", "entity_vocab")

SCHEMA = pa.schema(
    [
        pa.field(name, pa.list_(pa.field("item", item, nullable=False)), nullable=False)
        for name, item in (
            ("input_ids", pa.int32()),
            ("word_starts", pa.uint8()),
            ("bio_labels", pa.uint8()),
            ("document_starts", pa.int32()),
            ("document_ids", pa.string()),
            ("mention_starts", pa.int32()),
            ("mention_ends", pa.int32()),
            ("mention_entities", pa.int32()),
        )
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedSequence:
    """One row of the training input: segments of several documents, [CLS] pieces [SEP] each, one after the other.

    L = pieces with the special ones, D = segments, N = mentions within the cap, which holds for each segment. Arrays of
    a sequence that was read from a shard are read-only views of the memory map.
    """

    input_ids: np.ndarray
    """[L] int32, piece ids."""
    word_starts: np.ndarray
    """[L] uint8, 1 where a word begins and at special pieces."""
    bio_labels: np.ndarray
    """[L] uint8, 0 = O, 1 = B, 2 = I; of all mentions, also those beyond the cap; special pieces are O."""
    document_starts: np.ndarray
    """[D] int32, position of each segment's [CLS]; ascending, the first is 0."""
    document_ids: tuple[str, ...]
    """D ids; a document that was cut has several segments."""
    mention_starts: np.ndarray
    """[N] int32, position of a mention's first piece; ascending."""
    mention_ends: np.ndarray
    """[N] int32, position after a mention's last piece."""
    mention_entities: np.ndarray
    """[N] int32, row of the entity vocabulary; `entity_vocab.NIL_ROW` for a concept outside it."""

    def __len__(self) -> int:
        return len(self.input_ids)


def shard_name(split: str, number: int, of: int) -> str:
    """File name of shard `number` of `of`; by name the files stand in the order of the numbers."""
    return f"{split}-{number:05d}-of-{of:05d}.arrow"


def make_rows(columns: Mapping[str, tuple[np.ndarray | pa.Array, np.ndarray]]) -> pa.RecordBatch:
    """Sequences as rows of `SCHEMA`.

    Args:
        columns: of each field its values over all rows, and how many of them each row has.
    """
    arrays = []
    for field in SCHEMA:
        values, lengths = columns[field.name]
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        assert offsets[-1] == len(values) < 2**31, field.name
        items = values if isinstance(values, pa.Array) else pa.array(values, field.type.value_type)
        arrays.append(pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), items, type=field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def write_shard(path: Path, rows: pa.RecordBatch) -> dict[str, Any]:
    """Write one file of sequences, whole or not at all; returns the manifest's entry: {"bytes", "sha256", "rows"}."""
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
    ):
        writer.write_batch(rows)
    return {**describe_file(path), "rows": rows.num_rows}


def read_shard(path: Path, rows: int) -> pa.RecordBatch:
    """Memory-map one file of sequences.

    Raises:
        UserError: it is no such file, or has not this number of rows.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if reader.schema != SCHEMA or reader.num_record_batches != 1:
            raise UserError(path, got="other columns", expected=f"a shard of {FORMAT} version {VERSION}", mend=_MEND)
        batch = reader.get_batch(0)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(path, got=f"no Arrow file ({error})", expected="a packed shard", mend=_MEND) from None
    if batch.num_rows != rows:
        raise UserError(path, got=f"{batch.num_rows} sequences", expected=f"{rows} as in the manifest", mend=_MEND)
    return batch


class ShardSplit:
    """The sequences of one split, in file order; `split[i]` is a `PackedSequence`, where i is the sample id."""

    def __init__(self, paths: list[Path], rows: list[int]) -> None:
        self._shards = [_views(read_shard(path, count)) for path, count in zip(paths, rows, strict=True)]
        self._first_rows = [0, *accumulate(rows)]

    def __len__(self) -> int:
        return self._first_rows[-1]

    def __getitem__(self, index: int) -> PackedSequence:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a split of {len(self)}")
        shard = bisect_right(self._first_rows, index) - 1
        row = index - self._first_rows[shard]
        fields = {}
        for name, (offsets, values) in self._shards[shard].items():
            field = values[offsets[row] : offsets[row + 1]]
            fields[name] = field if isinstance(field, np.ndarray) else tuple(field.to_pylist())
        return PackedSequence(**fields)

    def __iter__(self) -> Iterator[PackedSequence]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, kw_only=True)
class PackedShards:
    """An opened shards folder."""

    path: Path
    manifest: dict[str, Any]
    train: ShardSplit
    heldout: ShardSplit
    entity_vocab: EntityVocab
    tokenizer_path: Path
    """Folder of the tokenizer that made the shards; see `kebiolm.data.tokenizer`."""
    fingerprint: str
    """SHA-256 over the hashes of all files that the manifest names."""

    @classmethod
    def load(cls, path: Path | str, *, verify: bool = False) -> PackedShards:
        """Open a shards folder through memory maps; nothing but the entity vocabulary is read into memory.

        Args:
            path: a folder made by `kebiolm pack`.
            verify: also compare the SHA-256 of every file, which reads them whole; sizes are always compared.

        Raises:
            UserError: the folder is something else or not finished, or a file of it is missing, cut short or altered.
        """
        path = Path(path)
        if (path / WORK_FOLDER).is_dir() and not (path / "manifest.json").exists():
            mend = f"run the same `{MADE_BY}` command again: it goes on where it stopped"
            raise UserError(path, got="a packing job that is not finished", expected="a shards folder", mend=mend)
        manifest = read_manifest(path, FORMAT, VERSION, made_by=MADE_BY)
        if missing := [field for field in _MANIFEST_FIELDS if not isinstance(manifest.get(field), dict)]:
            raise UserError(path / "manifest.json", got=f"no field {missing[0]!r}", expected="a whole one", mend=_MEND)
        files = manifest["files"]
        for name in sorted(files):
            verify_file(path, name, files[name], mend=_MEND, check_hash=verify)
        splits = {}
        for split in SPLITS:
            names = sorted(name for name in files if name.startswith(f"{split}-"))
            splits[split] = ShardSplit([path / name for name in names], [files[name]["rows"] for name in names])
        return cls(
            path=path,
            manifest=manifest,
            entity_vocab=EntityVocab.load(path / entity_vocab.FILE_NAME),
            tokenizer_path=path / TOKENIZER_FOLDER,
            fingerprint=sha256_of_json({name: files[name]["sha256"] for name in files}),
            **splits,
        )

    @property
    def max_length(self) -> int:
        """Most pieces that a sequence of this folder may have."""
        return self.manifest["settings"]["max_length"]


def _views(batch: pa.RecordBatch) -> dict[str, tuple[np.ndarray, Any]]:
    """(offsets, values) of each column, values as NumPy views except for strings."""
    views = {}
    for name, column in zip(SCHEMA.names, batch.columns, strict=True):
        is_text = pa.types.is_string(column.type.value_type)
        views[name] = (column.offsets.to_numpy(), column.values if is_text else column.values.to_numpy())
    return views
