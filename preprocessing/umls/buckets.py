"""Rows put aside on disk in buckets, so that each bucket can be sorted in memory however many rows there are in all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from preprocessing.umls.columns import first_bytes, one_batch

_CUI_PREFIX = 3


class Buckets:
    """Rows of one schema, in buckets by a key of each row. Order within a bucket is the order in which rows came.

    A bucket is a file of Arrow record batches without a header, opened only to append to it: the number of buckets is
    not limited by that of open files.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir()
        self._folder, self._schema = folder, schema
        self._file_of: dict[Any, Path] = {}

    def add(self, rows: pa.RecordBatch, keys: pa.Array) -> None:
        """Append rows: keys [N], strings or integers, says in which bucket each goes."""
        if not rows.num_rows:
            return
        keys = keys.dictionary_encode()
        found = keys.dictionary.to_pylist()
        if len(found) > 1:
            codes = keys.indices.to_numpy()
            order = np.argsort(codes.astype(np.uint16) if len(found) < 1 << 16 else codes, kind="stable")
            rows, sizes = rows.take(pa.array(order)), np.bincount(codes)
        else:
            sizes = np.array([rows.num_rows])
        starts = np.cumsum(sizes) - sizes
        for key, start, size in zip(found, starts.tolist(), sizes.tolist(), strict=True):
            path = self._file_of.setdefault(key, self._folder / str(len(self._file_of)))
            with open(path, "ab") as file:
                file.write(rows.slice(start, size).serialize())

    def __iter__(self) -> Iterator[Any]:
        """The keys of the buckets that have rows, ascending."""
        return iter(sorted(self._file_of))

    def take(self, key: Any) -> pa.RecordBatch:
        """The rows of a bucket; its file is removed. No rows for a key that no row had."""
        path = self._file_of.pop(key, None)
        if path is None:
            return one_batch(self._schema.empty_table())
        batches = []
        with pa.OSFile(str(path)) as file:
            while file.tell() < file.size():
                batches.append(pa.ipc.read_record_batch(pa.ipc.read_message(file), self._schema))
        path.unlink()
        return one_batch(pa.Table.from_batches(batches))


def cui_bucket(cuis: pa.Array) -> pa.Array:
    """[N] CUIs -> [N] key of a bucket, the first three characters: up to 100,000 concepts; sorts like the CUIs."""
    return pa.array(first_bytes(cuis, _CUI_PREFIX))
