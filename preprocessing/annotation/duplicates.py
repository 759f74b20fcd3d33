"""Stage 2: which documents does a later record replace? The last record of an id is kept, whatever file it is in.

NLM's update files revise citations of earlier files and delete some; other collections repeat documents. Records count
in the order of the inputs (files of a folder by name, as NLM numbers them), so the last one is the newest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kebiolm.files import atomic_path
from preprocessing.annotation.read_stage import load_slice
from preprocessing.annotation.unit_files import describe_table, read_unit_manifest, write_unit_manifest

REPLACED, DELETED = "duplicate-id", "deleted-later"
DELETED_CITATION = "deleted-citation"  # the reject that a source gives for a citation that NLM deleted

MANIFEST_FILE, TABLE_FILE = "ids.json", "ids.parquet"
_ROWS_PER_GROUP = 10_000  # a part's few rows are read without the rest of the table
REPLACED_SCHEMA = pa.schema(
    [("part", pa.int32()), ("row", pa.int32()), ("reason", pa.string()), ("by_file", pa.int32())]
)


def find_replaced(work: Path, slices: Sequence[tuple[int, int]], made_from: str) -> dict[str, Any]:
    """Find the documents that a later record replaces, and write them as a table.

    Args:
        work: the job's work folder.
        slices: (file, slice) of each part, in the order of the inputs.
        made_from: fingerprint of the files as they were read.

    Returns:
        The manifest; the table has a row for each document that is set aside: its part and row there, the reason, and
        the input file of the record that replaces it.
    """
    # Per record: id, file, part, row (a deletion stands after its slice's documents), and whether it deletes.
    ids, files, parts, rows, deletes = [], [], [], [], []
    for part, (file_number, slice_number) in enumerate(slices):
        documents, rejects = load_slice(work / "read", file_number, slice_number, columns=["doc_id"])
        deleted = rejects.filter(pc.equal(rejects["reason"], DELETED_CITATION))
        count = documents.num_rows + deleted.num_rows
        ids += [*documents["doc_id"].chunks, *deleted["doc_id"].chunks]
        files.append(pa.repeat(pa.scalar(file_number, pa.int32()), count))
        parts.append(pa.repeat(pa.scalar(part, pa.int32()), count))
        rows.append(pa.array(np.arange(count, dtype=np.int32)))
        deletes.append(pa.array([False] * documents.num_rows + [True] * deleted.num_rows, pa.bool_()))
    records = pa.table(
        {
            "id": pa.chunked_array(ids, pa.string()),
            "file": pa.chunked_array(files, pa.int32()),
            "part": pa.chunked_array(parts, pa.int32()),
            "row": pa.chunked_array(rows, pa.int32()),
            "deletes": pa.chunked_array(deletes, pa.bool_()),
        }
    ).append_column("position", pa.array(np.arange(sum(map(len, parts)))))
    replaced = _replaced(records)
    with atomic_path(work / TABLE_FILE) as path:
        pq.write_table(replaced, path, row_group_size=_ROWS_PER_GROUP)
    files = {TABLE_FILE: describe_table(work / TABLE_FILE, replaced)}
    return write_unit_manifest(work / MANIFEST_FILE, made_from, {"set_aside": replaced.num_rows}, files)


def replaced_done(work: Path, made_from: str) -> dict[str, Any] | None:
    """The manifest of `find_replaced`, None where it must be done (again)."""
    return read_unit_manifest(work / MANIFEST_FILE, made_from)


def replaced_in_part(work: Path, part: int) -> dict[int, tuple[str, int]]:
    """Row of a part's document -> (reason, number of the input file whose record replaces it)."""
    table = pq.read_table(work / TABLE_FILE, schema=REPLACED_SCHEMA, filters=[("part", "=", part)])
    columns = (table[name].to_pylist() for name in ("row", "reason", "by_file"))
    return {row: (reason, by_file) for row, reason, by_file in zip(*columns, strict=True)}


def _replaced(records: pa.Table) -> pa.Table:
    last = records.group_by("id", use_threads=False).aggregate([("position", "max"), ("position", "count")])
    repeated = last.filter(pc.greater(last["position_count"], 1))
    earlier = records.filter(
        pc.and_(
            pc.is_in(records["id"], repeated["id"].combine_chunks()),
            pc.invert(pc.is_in(records["position"], repeated["position_max"].combine_chunks())),
        )
    )
    earlier = earlier.filter(pc.invert(earlier["deletes"])).join(repeated, "id", join_type="left outer")
    earlier = earlier.sort_by("position")
    by = records.take(earlier["position_max"])
    reason = pc.if_else(by["deletes"], DELETED, REPLACED)
    columns = {"part": earlier["part"], "row": earlier["row"], "reason": reason, "by_file": by["file"]}
    return pa.table(columns).cast(REPLACED_SCHEMA)
