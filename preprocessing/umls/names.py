"""MRCONSO -> atoms in buckets by concept; names in buckets by alphabet -> the names table.

An atom is a name of a concept in one source. Atoms are put aside by CUI, so that `concepts` can choose the preferred
name of each concept; names are then put aside by alphabet, so that the table can be sorted bucket by bucket.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kebiolm.data import knowledge_base
from kebiolm.errors import UserError
from preprocessing.umls.buckets import Buckets, cui_bucket
from preprocessing.umls.columns import first_bytes, starts_of_runs
from preprocessing.umls.rrf import RrfFile
from preprocessing.umls.rrf_batches import DUPLICATE, SUPPRESSED, Batch, FileReport, Reader
from preprocessing.umls.rrf_rows import in_order
from preprocessing.umls.table_file import TableFile

NOT_ENGLISH = "not English"
EMPTY_NAME = "empty CUI or name"
_NAME_COLUMNS = ("CUI", "TS", "STT", "ISPREF", "STR")
CONSO_COLUMNS = (*_NAME_COLUMNS, "LAT", "SAB", "SUPPRESS")

_ATOMS_SCHEMA = pa.schema([("cui", pa.string()), ("name", pa.string()), ("rank", pa.int8())])
# Every so many names one is looked at to learn how names are spread over the alphabet.
_SAMPLE_EVERY = 64
_NAMES_PER_BUCKET = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Atoms:
    """The rows of MRCONSO that were kept."""

    by_cui: Buckets
    """cui, name, rank (the lower, the more a name is preferred)."""
    foreign_sources: frozenset[str]
    """Sources that name concepts only in other languages."""
    alphabet: np.ndarray
    """Where to cut the alphabet into parts with about as many names: ascending `first_bytes`."""


def read_atoms(reader: Reader, file: RrfFile, folder: Path, *, language: str, suppress: str) -> Atoms:
    """Read MRCONSO.

    The preferred name of a concept is the one with TS=P, STT=PF and ISPREF=Y (UMLS Reference Manual). A concept whose
    such name is absent or suppressed takes the name that comes nearest, first by TS, then STT, then ISPREF; equal ones
    are settled by alphabet, so that the order of rows does not matter.

    Raises:
        UserError: no row is to be kept.
    """
    by_cui = Buckets(folder, _ATOMS_SCHEMA)
    english_sources: set[str] = set()
    other_sources: set[str] = set()
    sample = []
    for batch in reader.batches(file, CONSO_COLUMNS):
        is_english = _equal(batch, "LAT", language)
        english_sources |= _distinct(batch["SAB"], is_english)
        other_sources |= _distinct(batch["SAB"], ~is_english)
        is_suppressed = ~_equal(batch, "SUPPRESS", suppress)
        batch.drop({NOT_ENGLISH: ~is_english, SUPPRESSED: is_suppressed}, still_needed=_NAME_COLUMNS)
        batch.trim("STR")
        batch.drop({EMPTY_NAME: batch.is_empty("CUI", "STR")})
        rank = 4 * ~_equal(batch, "TS", "P") + 2 * ~_equal(batch, "STT", "PF") + ~_equal(batch, "ISPREF", "Y")
        columns = [batch["CUI"], batch["STR"], pa.array(rank.astype(np.int8))]
        by_cui.add(pa.RecordBatch.from_arrays(columns, schema=_ATOMS_SCHEMA), cui_bucket(batch["CUI"]))
        sample.append(first_bytes(batch["STR"][::_SAMPLE_EVERY]))
        reader.reports[file.name].kept += batch.rows.num_rows
    report = reader.reports[file.name]
    if not report.kept:
        expected = f"at least one row with LAT={language} and SUPPRESS={suppress}"
        mend = "make a UMLS subset that has names in this language"
        raise UserError(file.path, got=f"no name to keep ({dict(report.dropped)})", expected=expected, mend=mend)
    return Atoms(
        by_cui=by_cui,
        foreign_sources=frozenset(other_sources - english_sources),
        alphabet=_cut_alphabet(np.concatenate(sample), 1 + report.kept // _NAMES_PER_BUCKET),
    )


def name_bucket(names: pa.Array, alphabet: np.ndarray) -> pa.Array:
    """[N] names -> [N] the part of the alphabet that each is in."""
    return pa.array(np.searchsorted(alphabet, first_bytes(names), side="right"))


def write_names(by_name: Buckets, path: Path, report: FileReport, executor: Executor) -> dict[str, int]:
    """Sort the names bucket by bucket, drop repeats, and write the names table.

    Args:
        by_name: rows as in `knowledge_base.NAMES_SCHEMA`, by `name_bucket`; emptied.
        path: file to write.
        report: of MRCONSO; repeats are counted there, and what is kept.
        executor: threads that sort.

    Returns:
        The counts "names" and "distinct_names".
    """
    distinct_names = 0
    with TableFile(path, knowledge_base.NAMES_SCHEMA) as table:
        for names in in_order(executor, _sort_names, map(by_name.take, by_name)):
            distinct_names += int(np.count_nonzero(starts_of_runs(names["name"])))
            table.write(names)
    report.dropped[DUPLICATE] += report.kept - table.num_rows
    report.kept = table.num_rows
    return {"names": table.num_rows, "distinct_names": distinct_names}


def _sort_names(names: pa.RecordBatch) -> pa.RecordBatch:
    """Sort by name and CUI; of rows that are equal in both one is left, preferred if one of them was."""
    names = names.sort_by([("name", "ascending"), ("cui", "ascending")])
    starts = np.flatnonzero(starts_of_runs(names["name"], names["cui"]))
    is_preferred = np.logical_or.reduceat(np.asarray(names["is_preferred"]), starts)
    return names.take(pa.array(starts)).set_column(2, "is_preferred", pa.array(is_preferred))


def _cut_alphabet(sample: np.ndarray, parts: int) -> np.ndarray:
    places = np.linspace(0, len(sample), parts, endpoint=False)[1:].astype(np.int64)
    return np.unique(np.sort(sample)[places])


def _equal(batch: Batch, column: str, value: str) -> np.ndarray:
    return np.asarray(pc.equal(batch[column], value))


def _distinct(values: pa.Array, where: np.ndarray) -> set[str]:
    return set(pc.unique(values.filter(pa.array(where))).to_pylist())
