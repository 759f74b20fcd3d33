"""RRF tables as batches of rows, from which unwanted rows are dropped and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kebiolm.console import progress
from preprocessing.umls.rrf import RrfFile
from preprocessing.umls.rrf_rows import RowCounts, read_rows

# Reasons that several tables share.
SUPPRESSED = "suppressed"
DUPLICATE = "duplicate"
UNKNOWN_CUI = "unknown CUI"


@dataclass(kw_only=True)
class FileReport:
    """What became of the rows of one table: read = rejected + dropped + kept."""

    rows_listed: int | None
    """What MRFILES.RRF says."""
    rows: RowCounts = field(default_factory=RowCounts)
    dropped: Counter[str] = field(default_factory=Counter)
    kept: int = 0

    @property
    def input(self) -> dict[str, Any]:
        """Name, bytes and SHA-256 of the file, or of each part of it."""
        listed = {"rows_listed": self.rows_listed}
        return self.rows.parts[0] | listed if len(self.rows.parts) == 1 else {"parts": self.rows.parts} | listed

    def counts(self) -> dict[str, Any]:
        """The counts as the manifest has them."""
        rejected, dropped = (
            {reason: count for reason, count in sorted(counter.items()) if count}
            for counter in (self.rows.rejects, self.dropped)
        )
        return {"read": self.rows.read, "rejected": rejected, "dropped": dropped, "kept": self.kept}


class Batch:
    """Some rows of a table, from which unwanted rows are dropped step by step."""

    def __init__(self, rows: pa.RecordBatch, report: FileReport) -> None:
        self.rows, self.report = rows, report

    def __getitem__(self, column: str) -> pa.Array:
        return self.rows[column]

    def trim(self, column: str) -> None:
        """Remove white space around a column's values."""
        trimmed = pc.utf8_trim_whitespace(self[column])
        self.rows = self.rows.set_column(self.rows.schema.names.index(column), column, trimmed)

    def is_empty(self, *columns: str) -> np.ndarray:
        """[N] bool: rows where one of the columns is the empty string."""
        return np.logical_or.reduce([np.asarray(pc.binary_length(self[column])) == 0 for column in columns])

    def drop(self, reasons: dict[str, np.ndarray], *, still_needed: Sequence[str] = ()) -> None:
        """Remove and count rows: reason -> [N] bool; each row falls to the first reason that holds for it.

        Columns that are not still needed are given up, which saves copying them; by default all are.
        """
        dropped = np.zeros(self.rows.num_rows, bool)
        for reason, is_bad in reasons.items():
            before = np.count_nonzero(dropped)
            dropped |= is_bad
            self.report.dropped[reason] += int(np.count_nonzero(dropped) - before)
        rows = self.rows.select(list(still_needed)) if still_needed else self.rows
        self.rows = rows.filter(pa.array(~dropped)) if dropped.any() else rows


class Reader:
    """Reads the tables of one UMLS folder and keeps a report of each."""

    def __init__(self, executor: Executor) -> None:
        self.reports: dict[str, FileReport] = {}
        self._executor = executor

    def batches(self, file: RrfFile, columns: Sequence[str]) -> Iterator[Batch]:
        """Stream the columns of a table, with progress; the caller completes the table's report."""
        report = self.reports[file.name] = FileReport(rows_listed=file.rows_listed)
        with progress(f"Reading {file.name}", total=file.rows_listed, unit="rows") as advance:
            done = 0
            for rows in read_rows(file, columns, report.rows, self._executor):
                yield Batch(rows, report)
                advance(report.rows.read - done)
                done = report.rows.read
            advance(report.rows.read - done)
