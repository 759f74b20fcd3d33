"""What a knowledge base must satisfy: sorted tables without repeats, and only concepts that it has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kebiolm.data.knowledge_base import (
    CONCEPTS_FILE,
    CONCEPTS_SCHEMA,
    LINKER_FOLDER,
    NAMES_FILE,
    NAMES_SCHEMA,
    TRIPLES_FILE,
    TRIPLES_SCHEMA,
)
from preprocessing.watch.manifests import read_json

_SCHEMAS = {CONCEPTS_FILE: CONCEPTS_SCHEMA, NAMES_FILE: NAMES_SCHEMA, TRIPLES_FILE: TRIPLES_SCHEMA}
_COUNTS = {CONCEPTS_FILE: "concepts", NAMES_FILE: "names", TRIPLES_FILE: "triples"}
# Columns by which each table is sorted, no two rows alike, and those that must be concepts.
_KEYS = {CONCEPTS_FILE: ("cui",), NAMES_FILE: ("name", "cui"), TRIPLES_FILE: ("subject", "relation", "object")}
_CONCEPT_COLUMNS = {CONCEPTS_FILE: (), NAMES_FILE: ("cui",), TRIPLES_FILE: ("subject", "object")}
_ROWS_AT_ONCE = 1 << 20


class KnowledgeBaseCheck:
    """Checks a knowledge base table by table; a million rows and the CUIs are in memory at a time.

    Args:
        folder: the folder.
        manifest: its manifest.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self._folder, self._manifest = folder, manifest

    def file_problems(self, name: str) -> Iterator[str]:
        """What is wrong with the rows of one file."""
        if name not in _SCHEMAS:
            return
        with pq.ParquetFile(self._folder / name) as file:
            if not file.schema_arrow.equals(_SCHEMAS[name]):
                yield f"{name}: columns {', '.join(file.schema_arrow.names)}, not those of its format"
                return
            rows = self._manifest["files"][name].get("rows")
            if file.metadata.num_rows != rows:
                yield f"{name}: {file.metadata.num_rows:,} rows, not {rows} as recorded"
            yield from self._row_problems(name, file)

    def folder_problems(self) -> Iterator[str]:
        """What is wrong with the counts and with the link index."""
        for name, count in _COUNTS.items():
            recorded, rows = self._manifest["counts"].get(count), self._manifest["files"].get(name, {}).get("rows")
            if recorded != rows:
                yield f"manifest.json: {count} is {recorded}, {name} has {rows} rows"
        index = read_json(self._folder / LINKER_FOLDER / "manifest.json")
        if not isinstance(index.get("files"), dict):
            yield f"{LINKER_FOLDER}/manifest.json: no readable manifest of a link index"
            return
        for name, recorded in index["files"].items():
            described = self._manifest["files"].get(f"{LINKER_FOLDER}/{name}", {})
            if {key: described.get(key) for key in ("bytes", "sha256")} != {
                key: recorded.get(key) for key in ("bytes", "sha256")
            }:
                yield f"{LINKER_FOLDER}/{name}: its own manifest and the knowledge base's differ"
        if index.get("counts", {}).get("concepts") != self._manifest["counts"].get("concepts"):
            yield f"{LINKER_FOLDER}/manifest.json: the index has other concepts than the knowledge base"

    def _row_problems(self, name: str, file: pq.ParquetFile) -> Iterator[str]:
        concepts = None
        if _CONCEPT_COLUMNS[name]:
            concepts = pq.read_table(self._folder / CONCEPTS_FILE, columns=["cui"])["cui"].combine_chunks()
        unsorted = unknown = 0
        last: pa.RecordBatch | None = None
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[*_KEYS[name]]):
            keys = pa.Table.from_batches([batch] if last is None else [last, batch]).combine_chunks()
            unsorted += _count_unsorted([keys[column].combine_chunks() for column in _KEYS[name]])
            last = batch.slice(batch.num_rows - 1)
            for column in _CONCEPT_COLUMNS[name]:
                unknown += batch.num_rows - (pc.sum(pc.is_in(batch[column], value_set=concepts)).as_py() or 0)
        if unsorted:
            yield f"{name}: {unsorted:,} rows repeat the one before or are out of order"
        if unknown:
            yield f"{name}: {unknown:,} CUIs that are no concept of {CONCEPTS_FILE}"


def _count_unsorted(columns: list[pa.Array]) -> int:
    """Rows that do not come after the row before them, compared column by column."""
    size = len(columns[0]) - 1
    is_after, is_equal = (pa.array([start] * size, pa.bool_()) for start in (False, True))
    for column in columns:
        before, after = column.slice(0, size), column.slice(1)
        is_after = pc.or_(is_after, pc.and_(is_equal, pc.greater(after, before)))
        is_equal = pc.and_(is_equal, pc.equal(after, before))
    return size - (pc.sum(is_after).as_py() or 0)
