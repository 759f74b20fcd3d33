"""RRF files as batches of rows, from which unwanted rows are dropped and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kebiolm.console import progress
from kebiolm.files import describe_file
from preprocessing.umls.rrf import RowCounts, RrfFile, read_rows

UNKNOWN_CUI = "unknown CUI"


@dataclass(kw_only=True)
class FileReport:
    """What became of the rows of one file: read = rejected + dropped + kept."""

    input: dict[str, Any]
    """Bytes and SHA-256 of the file; rows_listed, what MRFILES.RRF says."""
    rows: RowCounts
    dropped: Counter[str] = field(default_factory=Counter)
    kept: int = 0

    def counts(self) -> dict[str, Any]:
        """The counts as the manifest has them."""
        rejected, dropped = (
            {reason: count for reason, count in sorted(counter.items()) if count}
            for counter in (self.rows.rejects, self.dropped)
        )
        return {"read": self.rows.read, "rejected": rejected, "dropped": dropped, "kept": self.kept}


class Batch:
    """Some rows of a file, from which unwanted rows are dropped step by step; each falls to the first reason."""

    def __init__(self, rows: pa.Table, report: FileReport) -> None:
        self.rows, self.report = rows, report

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        return self.rows[column]

    def trim(self, column: str) -> None:
        """Remove white space around a column's values."""
        trimmed = pc.utf8_trim_whitespace(self[column])
        self.rows = self.rows.set_column(self.rows.column_names.index(column), column, trimmed)

    def drop(self, reason: str, is_bad: pa.ChunkedArray) -> None:
        """Remove and count the rows where the mask is true."""
        kept = self.rows.filter(pc.invert(is_bad))
        if kept.num_rows < self.rows.num_rows:
            self.report.dropped[reason] += self.rows.num_rows - kept.num_rows
        self.rows = kept

    def drop_empty(self, reason: str, *columns: str) -> None:
        """Remove and count the rows where one of the columns is the empty string."""
        for column in columns:
            self.drop(reason, pc.equal(self[column], ""))

    def look_up(self, column: str, concepts: ConceptRows) -> None:
        """Replace a column of CUIs by rows of the concepts table; unknown CUIs are removed and counted."""
        rows = concepts.rows(self[column])
        self.rows = self.rows.set_column(self.rows.column_names.index(column), column, pa.array(rows))
        self.drop(UNKNOWN_CUI, pc.less(self[column], 0))


class ConceptRows:
    """CUI -> row of the concepts table, for whole columns.

    A binary search, because Arrow's `index_in` builds its hash table of all concepts again at every call, which for
    the millions of concepts of a full UMLS costs seconds per batch.
    """

    def __init__(self, cuis: pa.Array) -> None:
        self.cuis = _as_bytes(cuis)

    def __len__(self) -> int:
        return len(self.cuis)

    def rows(self, column: pa.ChunkedArray) -> np.ndarray:
        """[N] CUIs -> [N] int32 rows, -1 where the CUI is not a concept."""
        wanted = _as_bytes(column)
        rows = np.searchsorted(self.cuis, wanted).astype(np.int32)
        found = self.cuis[np.minimum(rows, len(self) - 1)] == wanted
        return np.where(found, rows, np.int32(-1))


class Reader:
    """Reads the files of one UMLS folder and keeps a report of each."""

    def __init__(self) -> None:
        self.reports: dict[str, FileReport] = {}

    def batches(self, file: RrfFile, columns: Sequence[str]) -> Iterator[Batch]:
        """Stream the columns of a file, with progress; the caller completes the file's report."""
        report = FileReport(
            input=describe_file(file.path) | {"file": file.path.name, "rows_listed": file.rows_listed},
            rows=RowCounts(),
        )
        self.reports[file.name] = report
        with progress(f"Reading {file.name}", total=file.rows_listed, unit="rows") as advance:
            done = 0
            for table in read_rows(file, columns, report.rows):
                yield Batch(table, report)
                advance(report.rows.read - done)
                done = report.rows.read
            advance(report.rows.read - done)


def _as_bytes(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Strings as a NumPy array of fixed-width bytes, which sorts like the strings."""
    return np.array(column.cast(pa.binary()).to_numpy(zero_copy_only=False), dtype=np.bytes_)
