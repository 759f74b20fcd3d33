"""Stream the pipe-separated tables of a UMLS release (Rich Release Format, RRF).

A table is one file, plain or .gz, without header; every field ends with "|". The order of columns comes from
MRFILES.RRF when the folder has one, else from the layout that UMLS publishes. A row that cannot be read does not
stop the build: it is counted with its reason, and the first ones are kept with their line for the manifest.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from kebiolm.errors import UserError

STANDARD_COLUMNS = {
    "MRCONSO.RRF": "CUI,LAT,TS,LUI,STT,SUI,ISPREF,AUI,SAUI,SCUI,SDUI,SAB,TTY,CODE,STR,SRL,SUPPRESS,CVF",
    "MRREL.RRF": "CUI1,AUI1,STYPE1,REL,CUI2,AUI2,STYPE2,RELA,RUI,SRUI,SAB,SL,RG,DIR,SUPPRESS,CVF",
    "MRSTY.RRF": "CUI,TUI,STN,STY,ATUI,CVF",
    "MRDEF.RRF": "CUI,AUI,ATUI,SATUI,SAB,DEF,SUPPRESS,CVF",
}
"""Columns of each table in the order in which UMLS publishes them (UMLS Reference Manual, chapter "Metathesaurus")."""

LAYOUT_FILE = "MRFILES.RRF"
WRONG_FIELD_COUNT = "wrong number of fields"
INVALID_UTF8 = "invalid UTF-8"
MAX_REJECT_EXAMPLES = 5

# Of MRFILES.RRF: FIL|DES|FMT|CLS|RWS|BTS|
_LAYOUT_NAME, _LAYOUT_COLUMNS, _LAYOUT_ROWS, _LAYOUT_FIELDS = 0, 2, 4, 6
# What follows the last "|" of a row; it must be empty.
_AFTER_LAST_FIELD = "after the last field"
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class RrfFile:
    """One table of a UMLS folder: where it is and how its rows are laid out."""

    name: str
    """Name without .gz, such as "MRCONSO.RRF"."""
    path: Path
    columns: tuple[str, ...]
    rows_listed: int | None
    """Rows that MRFILES.RRF says the file has; None when it says nothing."""


@dataclass(kw_only=True)
class RowCounts:
    """What became of the rows of one file; filled while the file is read."""

    good: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str | int]] = field(default_factory=list)
    """The first rejects: {"file", "line", "reason"}; never the row's text, which may be licensed."""

    @property
    def read(self) -> int:
        """All rows of the file, good or not."""
        return self.good + sum(self.rejects.values())

    def reject(self, file: RrfFile, line: int, reason: str) -> None:
        """Count one unreadable row."""
        self.rejects[reason] += 1
        if len(self.examples) < MAX_REJECT_EXAMPLES:
            self.examples.append({"file": file.name, "line": line, "reason": reason})


def find_file(folder: Path, name: str, needed_columns: Sequence[str], *, may_be_empty: bool = False) -> RrfFile:
    """Find a table, plain or .gz, and its layout.

    Args:
        folder: the META folder of a UMLS release or subset.
        name: "MRCONSO.RRF", "MRREL.RRF", "MRSTY.RRF" or "MRDEF.RRF".
        needed_columns: columns that the caller will read.
        may_be_empty: take a file without a byte for a table without rows; a UMLS subset has such files.

    Raises:
        UserError: the file is missing or empty, or the layout of MRFILES.RRF lacks a needed column.
    """
    path = _plain_or_gzip(folder, name)
    if path is None:
        got = "no such file, plain or .gz" if folder.is_dir() else f"no folder {folder}"
        mend = "give --umls the META folder that has the RRF files"
        raise UserError(folder / name, got=got, expected=f"the UMLS table {name}", mend=mend)
    if not may_be_empty and _is_empty(path):
        mend = "extract or download the file again, or make the UMLS subset again"
        raise UserError(path, got="an empty file", expected=f"rows of the UMLS table {name}", mend=mend)
    columns, rows_listed = _read_layout(folder, name)
    missing = [column for column in needed_columns if column not in columns]
    if missing:
        raise UserError(
            folder / LAYOUT_FILE,
            got=f"a layout of {name} without column {', '.join(missing)} ({','.join(columns)})",
            expected=f"columns {', '.join(needed_columns)}",
            mend=f"correct the line of {name}, or remove {LAYOUT_FILE} to use the standard layout of UMLS",
        )
    return RrfFile(name=name, path=path, columns=columns, rows_listed=rows_listed)


def has_file(folder: Path, name: str) -> bool:
    """Whether the folder has this table, plain or .gz."""
    return _plain_or_gzip(folder, name) is not None


def read_rows(file: RrfFile, columns: Sequence[str], counts: RowCounts) -> Iterator[pa.Table]:
    """Stream some columns of a table in file order.

    Args:
        file: what `find_file` returned.
        columns: the columns to read; only these are decoded.
        counts: is brought up to date before each table is yielded.

    Yields:
        Tables of non-null string columns, about 8 MB of the file each, so memory does not grow with the file; none
        where the file is empty.

    Raises:
        UserError: the file is cut short, is not RRF, or has rows and none that can be read.
    """
    if _is_empty(file.path):
        return
    bad_lines: list[int] = []

    def skip_row(row: pyarrow.csv.InvalidRow) -> str:
        bad_lines.append(row.number)
        counts.reject(file, row.number, WRONG_FIELD_COUNT)
        return "skip"

    wanted = [*columns, _AFTER_LAST_FIELD]
    try:
        reader = pyarrow.csv.open_csv(
            file.path,
            read_options=pyarrow.csv.ReadOptions(
                column_names=[*file.columns, _AFTER_LAST_FIELD], use_threads=False, block_size=_BLOCK_BYTES
            ),
            # Blank lines are kept as rows of empty fields, or all later line numbers would be wrong.
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="|", quote_char=False, ignore_empty_lines=False, invalid_row_handler=skip_row
            ),
            # Bytes, not strings: one undecodable name would make the reader give up on the whole file.
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.binary()), include_columns=wanted
            ),
        )
        row_number = 0
        for batch in reader:
            table = _keep_readable(batch, file, counts, row_number, bad_lines)
            row_number += batch.num_rows
            counts.good += table.num_rows
            yield table
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise UserError(
            file.path,
            got=f"a file that cannot be read to its end ({error})",
            expected=f"rows of {len(file.columns)} fields that each end with '|'",
            mend="extract or download the file again",
        ) from None
    if counts.good == 0:
        raise UserError(
            file.path,
            got=f"{counts.read} rows, none of which can be read ({dict(counts.rejects)})",
            expected=f"rows of {len(file.columns)} fields: {','.join(file.columns)}",
            mend=f"check that {LAYOUT_FILE} and the file are of one release",
        )


def _keep_readable(
    batch: pa.RecordBatch, file: RrfFile, counts: RowCounts, rows_before: int, bad_lines: list[int]
) -> pa.Table:
    """Decode a batch; rows that are not UTF-8 or have text after their last "|" are counted and left out."""
    table = pa.Table.from_batches([batch])
    try:
        strings = table.cast(_string_schema(table.column_names))
        if pc.max(pc.binary_length(strings[_AFTER_LAST_FIELD])).as_py() in (None, 0):
            return strings.drop_columns(_AFTER_LAST_FIELD)
    except pa.ArrowInvalid:
        pass
    # Rare and therefore slow: look at the rows of this batch one by one.
    kept = []
    for index, row in enumerate(table.to_pylist()):
        reason = _reject_reason(row)
        if reason is None:
            kept.append(index)
        else:
            counts.reject(file, _line_of_row(rows_before + index, bad_lines), reason)
    return table.take(kept).cast(_string_schema(table.column_names)).drop_columns(_AFTER_LAST_FIELD)


def _reject_reason(row: dict[str, bytes]) -> str | None:
    if row[_AFTER_LAST_FIELD]:
        return WRONG_FIELD_COUNT
    try:
        for value in row.values():
            value.decode("utf-8")
    except UnicodeDecodeError:
        return INVALID_UTF8
    return None


def _line_of_row(row_number: int, bad_lines: list[int]) -> int:
    """Line (from 1) of a row (from 0) that the reader returned, given the lines it skipped, in ascending order."""
    line = row_number + 1
    for bad_line in bad_lines:
        if bad_line > line:
            break
        line += 1
    return line


def _string_schema(names: Sequence[str]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])


def _plain_or_gzip(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _is_empty(path: Path) -> bool:
    """Whether a file, once unpacked, has not a single byte; one that cannot be unpacked has some."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return not file.read(1)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return False


def _read_layout(folder: Path, name: str) -> tuple[tuple[str, ...], int | None]:
    """Columns and number of rows of a table from MRFILES.RRF; the standard columns where it does not name the table."""
    standard = tuple(STANDARD_COLUMNS[name].split(","))
    path = _plain_or_gzip(folder, LAYOUT_FILE)
    if path is None:
        return standard, None
    mend = f"restore the file, or remove it to use the standard layout of {name}"
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise UserError(path, got=f"an unreadable file ({error})", expected="UTF-8 text", mend=mend) from None
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.rstrip("\r").split("|")
        if fields[_LAYOUT_NAME] != name:
            continue
        if len(fields) != _LAYOUT_FIELDS + 1 or not fields[_LAYOUT_ROWS].isdigit():
            expected = "FIL|DES|FMT|CLS|RWS|BTS| with a number of rows"
            raise UserError(f"{path}:{number}", got=f"{len(fields) - 1} fields", expected=expected, mend=mend)
        return tuple(fields[_LAYOUT_COLUMNS].split(",")), int(fields[_LAYOUT_ROWS])
    return standard, None
