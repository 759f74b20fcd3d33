from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocessing.umls import table_file
from preprocessing.umls.buckets import Buckets, cui_bucket
from preprocessing.umls.table_file import TableFile

SCHEMA = pa.schema([("name", pa.string()), ("number", pa.int64())])


def batch(numbers: list[int]) -> pa.RecordBatch:
    return pa.record_batch({"name": [f"row {number}" for number in numbers], "number": numbers}, schema=SCHEMA)


def test_rows_come_back_in_order_from_their_buckets(tmp_path: Path) -> None:
    buckets = Buckets(tmp_path / "buckets", SCHEMA)
    for start in range(0, 100, 10):
        numbers = list(range(start, start + 10))
        buckets.add(batch(numbers), pa.array([number * 7 % 3 for number in numbers]))
    buckets.add(batch([100, 101]), pa.array([5, 5]))
    buckets.add(batch([]), pa.array([], pa.int64()))
    assert list(buckets) == [0, 1, 2, 5]
    taken = {key: buckets.take(key) for key in buckets}
    assert taken[5].to_pylist() == [{"name": "row 100", "number": 100}, {"name": "row 101", "number": 101}]
    for key in range(3):
        assert taken[key]["number"].to_pylist() == [number for number in range(100) if number * 7 % 3 == key]
    assert buckets.take(0).num_rows == 0
    assert list(buckets) == [] and list((tmp_path / "buckets").iterdir()) == []


def test_buckets_of_cuis_sort_like_the_cuis() -> None:
    cuis = ["C1", "C0100000", "C0099999", "CL123456", "", "MESH:1", "C00"]
    keys = dict(zip(cuis, cui_bucket(pa.array(cuis)).to_pylist(), strict=True))
    assert [keys[cui] for cui in sorted(cuis)] == sorted(keys.values())
    assert len({*cui_bucket(pa.array([f"C{number:07}" for number in range(100_000)])).to_pylist()}) == 1


@pytest.mark.parametrize("sizes", [[], [0], [3], [10], [4, 0, 17, 9, 30], [25, 5]])
def test_the_bytes_of_a_table_do_not_depend_on_its_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    monkeypatch.setattr(table_file, "ROWS_PER_GROUP", 10)
    numbers = list(range(sum(sizes)))
    with TableFile(tmp_path / "pieces", SCHEMA) as table:
        for start, size in zip(np.cumsum([0, *sizes]).tolist(), sizes, strict=False):
            table.write(batch(numbers[start : start + size]))
    assert table.num_rows == len(numbers)
    whole = pa.Table.from_batches([batch(numbers)])
    pq.write_table(whole, tmp_path / "whole", compression="zstd", row_group_size=10)
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
