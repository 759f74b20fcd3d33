"""Find the pipe-separated tables of a UMLS release (Rich Release Format, RRF) and how their rows are laid out.

A table is one file, plain or .gz, or several that NLM ships as parts of one (MRCONSO.RRF.aa.gz, MRCONSO.RRF.ab.gz and
so on), without header; every field ends with "|". The order of columns comes from MRFILES.RRF when the folder has one,
else from the layout that UMLS publishes.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import ascii_lowercase

from kebiolm.errors import UserError

STANDARD_COLUMNS = {
    "MRCONSO.RRF": "CUI,LAT,TS,LUI,STT,SUI,ISPREF,AUI,SAUI,SCUI,SDUI,SAB,TTY,CODE,STR,SRL,SUPPRESS,CVF",
    "MRREL.RRF": "CUI1,AUI1,STYPE1,REL,CUI2,AUI2,STYPE2,RELA,RUI,SRUI,SAB,SL,RG,DIR,SUPPRESS,CVF",
    "MRSTY.RRF": "CUI,TUI,STN,STY,ATUI,CVF",
    "MRDEF.RRF": "CUI,AUI,ATUI,SATUI,SAB,DEF,SUPPRESS,CVF",
}
"""Columns of each table in the order in which UMLS publishes them (UMLS Reference Manual, chapter "Metathesaurus")."""

LAYOUT_FILE = "MRFILES.RRF"

# Of MRFILES.RRF: FIL|DES|FMT|CLS|RWS|BTS|
_LAYOUT_NAME, _LAYOUT_COLUMNS, _LAYOUT_ROWS, _LAYOUT_FIELDS = 0, 2, 4, 6


@dataclass(frozen=True, kw_only=True)
class RrfFile:
    """One table of a UMLS folder: where it is and how its rows are laid out."""

    name: str
    """Name without .gz, such as "MRCONSO.RRF"."""
    parts: tuple[Path, ...]
    """The files, in order, that make up the table; almost always one."""
    columns: tuple[str, ...]
    rows_listed: int | None
    """Rows that MRFILES.RRF says the table has; None when it says nothing."""

    @property
    def path(self) -> Path:
        """The file that messages about the whole table name."""
        return self.parts[0]


def find_file(folder: Path, name: str, needed_columns: Sequence[str], *, may_be_empty: bool = False) -> RrfFile:
    """Find a table, plain, .gz or in parts, and its layout.

    Args:
        folder: the META folder of a UMLS release or subset.
        name: "MRCONSO.RRF", "MRREL.RRF", "MRSTY.RRF" or "MRDEF.RRF".
        needed_columns: columns that the caller will read.
        may_be_empty: take a file without a byte for a table without rows; a UMLS subset has such files.

    Raises:
        UserError: the file or one of its parts is missing, it is empty, or the layout of MRFILES.RRF lacks a needed
            column.
    """
    parts = _find_parts(folder, name)
    if not parts:
        got = "no such file, plain or .gz" if folder.is_dir() else f"no folder {folder}"
        mend = "give --umls the META folder that has the RRF files"
        raise UserError(folder / name, got=got, expected=f"the UMLS table {name}", mend=mend)
    if not may_be_empty and all(map(_is_empty, parts)):
        mend = "extract or download the file again, or make the UMLS subset again"
        raise UserError(parts[0], got="an empty file", expected=f"rows of the UMLS table {name}", mend=mend)
    columns, rows_listed = _read_layout(folder, name)
    missing = [column for column in needed_columns if column not in columns]
    if missing:
        raise UserError(
            folder / LAYOUT_FILE,
            got=f"a layout of {name} without column {', '.join(missing)} ({','.join(columns)})",
            expected=f"columns {', '.join(needed_columns)}",
            mend=f"correct the line of {name}, or remove {LAYOUT_FILE} to use the standard layout of UMLS",
        )
    return RrfFile(name=name, parts=parts, columns=columns, rows_listed=rows_listed)


def has_file(folder: Path, name: str) -> bool:
    """Whether the folder has this table, plain, .gz or in parts."""
    return bool(_find_parts(folder, name))


def _find_parts(folder: Path, name: str) -> tuple[Path, ...]:
    """The files of a table in order; none where the folder does not have it."""
    whole = _plain_or_gzip(folder, name)
    if whole is not None:
        return (whole,)
    endings = {path.name.removesuffix(".gz").removeprefix(f"{name}.") for path in folder.glob(f"{name}.??*")}
    parts = []
    # aa, ab, ..., az, ba, ...: one that is not there while a later one is was lost on the way.
    for ending in ("".join(letters) for letters in product(ascii_lowercase, repeat=2)):
        if not endings:
            break
        path = _plain_or_gzip(folder, f"{name}.{ending}")
        if path is None:
            found = ", ".join(f"{name}.{other}" for other in sorted(endings))
            expected, mend = f"the part before {found}", "download or extract all parts again"
            raise UserError(folder / f"{name}.{ending}", got="no such file", expected=expected, mend=mend)
        endings.remove(ending)
        parts.append(path)
    return tuple(parts)


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
