"""Write a Parquet table piece by piece."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_GROUP = 1 << 20


class TableFile:
    """A Parquet file with row groups of 1,048,576 rows, whatever the sizes of the pieces that are written."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._waiting = [schema.empty_table()]
        self.num_rows, self._written = 0, 0

    def write(self, piece: pa.RecordBatch) -> None:
        """Append rows."""
        self._waiting.append(pa.Table.from_batches([piece]))
        self.num_rows += piece.num_rows
        while self.num_rows - self._written >= ROWS_PER_GROUP:
            self._write_group()

    def __enter__(self) -> TableFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A table without rows has one row group without rows.
        if kind is None and (self._written < self.num_rows or not self.num_rows):
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        rows = pa.concat_tables(self._waiting)
        self._waiting = [rows.slice(ROWS_PER_GROUP)]
        rows = rows.slice(0, ROWS_PER_GROUP).combine_chunks()
        self._writer.write_table(rows, row_group_size=ROWS_PER_GROUP)
        self._written += rows.num_rows
