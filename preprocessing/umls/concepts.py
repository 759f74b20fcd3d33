"""Atoms, semantic types and definitions in buckets by CUI -> the concepts table, and the names of all concepts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kebiolm.data import knowledge_base
from preprocessing.umls.buckets import Buckets, cui_bucket
from preprocessing.umls.columns import starts_of_runs
from preprocessing.umls.names import Atoms, name_bucket
from preprocessing.umls.rrf import RrfFile
from preprocessing.umls.rrf_batches import DUPLICATE, SUPPRESSED, UNKNOWN_CUI, FileReport, Reader
from preprocessing.umls.rrf_rows import in_order
from preprocessing.umls.table_file import TableFile

EMPTY_TYPE = "empty semantic type"
EMPTY_DEFINITION = "empty definition"
FOREIGN_SOURCE = "source not English"
SPARE_DEFINITION = "concept has a preferred definition"
STY_COLUMNS = ("CUI", "TUI", "STY")
DEF_COLUMNS = ("CUI", "SAB", "DEF", "SUPPRESS")

# A concept has one definition here; these sources are asked first, the others in alphabetical order.
DEFINITION_SOURCES = ("MSH", "NCI")

_TYPES_SCHEMA = pa.schema([(name, pa.string()) for name in STY_COLUMNS])
_DEFINITIONS_SCHEMA = pa.schema(
    [("CUI", pa.string()), ("order", pa.int8()), ("SAB", pa.string()), ("DEF", pa.string())]
)


@dataclass(frozen=True, kw_only=True)
class _Bucket:
    """What the tables say about the concepts whose CUIs begin alike."""

    atoms: pa.RecordBatch
    types: pa.RecordBatch
    definitions: pa.RecordBatch


@dataclass(frozen=True, kw_only=True)
class _Assembled:
    """The concepts of one bucket."""

    concepts: pa.RecordBatch
    names: pa.RecordBatch
    kept_types: int
    dropped_types: Counter[str]
    kept_definitions: int
    dropped_definitions: Counter[str]


def read_semantic_types(reader: Reader, file: RrfFile, folder: Path) -> Buckets:
    """Put the rows of MRSTY aside by CUI."""
    by_cui = Buckets(folder, _TYPES_SCHEMA)
    for batch in reader.batches(file, STY_COLUMNS):
        batch.drop({EMPTY_TYPE: batch.is_empty("TUI", "STY")})
        by_cui.add(batch.rows, cui_bucket(batch["CUI"]))
    return by_cui


def read_definitions(
    reader: Reader, file: RrfFile | None, folder: Path, foreign_sources: frozenset[str], *, suppress: str
) -> Buckets:
    """Put the rows of MRDEF, if there is one, aside by CUI.

    MRDEF does not say in which language a definition is; a source without one English name writes in its own.
    """
    by_cui = Buckets(folder, _DEFINITIONS_SCHEMA)
    if file is None:
        return by_cui
    foreign = pa.array(sorted(foreign_sources), pa.string())
    asked_first = pa.array(DEFINITION_SOURCES)
    for batch in reader.batches(file, DEF_COLUMNS):
        batch.trim("DEF")
        batch.drop(
            {
                SUPPRESSED: np.asarray(pc.not_equal(batch["SUPPRESS"], suppress)),
                EMPTY_DEFINITION: batch.is_empty("DEF"),
                FOREIGN_SOURCE: np.asarray(pc.is_in(batch["SAB"], foreign)),
            }
        )
        order = pc.fill_null(pc.index_in(batch["SAB"], asked_first), len(asked_first)).cast(pa.int8())
        columns = [batch["CUI"], order, batch["SAB"], batch["DEF"]]
        by_cui.add(pa.RecordBatch.from_arrays(columns, schema=_DEFINITIONS_SCHEMA), cui_bucket(batch["CUI"]))
    return by_cui


def write_concepts(
    path: Path,
    *,
    atoms: Atoms,
    types: Buckets,
    definitions: Buckets,
    by_name: Buckets,
    reports: dict[str, FileReport],
    executor: Executor,
) -> tuple[pa.Array, dict[str, int]]:
    """Put the concepts together bucket by bucket and write the concepts table.

    Args:
        path: file to write.
        atoms: by CUI; emptied.
        types: by CUI; emptied.
        definitions: by CUI; emptied.
        by_name: gets the names of all concepts, rows as in `knowledge_base.NAMES_SCHEMA`, by `name_bucket`; the same
            name of a concept may stand there several times.
        reports: those of MRSTY and MRDEF are completed.
        executor: threads that put buckets together.

    Returns:
        The CUIs of all concepts, sorted, and the counts of concepts.
    """
    types_report, definitions_report = reports["MRSTY.RRF"], reports.get("MRDEF.RRF", FileReport(rows_listed=None))
    cuis = []
    without_type = 0
    with TableFile(path, knowledge_base.CONCEPTS_SCHEMA) as table:
        for assembled in in_order(executor, _assemble, _buckets(atoms.by_cui, types, definitions)):
            table.write(assembled.concepts)
            by_name.add(assembled.names, name_bucket(assembled.names["name"], atoms.alphabet))
            cuis.append(assembled.concepts["cui"])
            sizes = pc.list_value_length(assembled.concepts["semantic_types"])
            without_type += len(sizes) - np.count_nonzero(sizes)
            types_report.kept += assembled.kept_types
            types_report.dropped += assembled.dropped_types
            definitions_report.kept += assembled.kept_definitions
            definitions_report.dropped += assembled.dropped_definitions
    for buckets, report in ((types, types_report), (definitions, definitions_report)):
        report.dropped[UNKNOWN_CUI] += sum(buckets.take(key).num_rows for key in buckets)
    return pa.concat_arrays(cuis), {
        "concepts": table.num_rows,
        "concepts_without_semantic_type": int(without_type),
        "concepts_with_definition": definitions_report.kept,
    }


def _buckets(atoms: Buckets, types: Buckets, definitions: Buckets) -> Iterator[_Bucket]:
    for key in atoms:
        yield _Bucket(atoms=atoms.take(key), types=types.take(key), definitions=definitions.take(key))


def _assemble(bucket: _Bucket) -> _Assembled:
    atoms = bucket.atoms
    cuis, concept = _number_concepts(atoms["cui"])
    preferred = _preferred_atoms(concept, atoms["rank"], atoms["name"], len(cuis))
    is_preferred = np.zeros(atoms.num_rows, bool)
    is_preferred[preferred] = True
    type_ids, type_names, dropped_types = _semantic_types(bucket.types, cuis)
    definitions, dropped_definitions = _definitions(bucket.definitions, cuis)
    preferred_names = atoms["name"].take(pa.array(preferred))
    columns = [cuis, preferred_names, type_ids, type_names, definitions]
    name_columns = [atoms["name"], atoms["cui"], pa.array(is_preferred)]
    return _Assembled(
        concepts=pa.RecordBatch.from_arrays(columns, schema=knowledge_base.CONCEPTS_SCHEMA),
        names=pa.RecordBatch.from_arrays(name_columns, schema=knowledge_base.NAMES_SCHEMA),
        kept_types=len(type_ids.values),
        dropped_types=dropped_types,
        kept_definitions=len(definitions) - definitions.null_count,
        dropped_definitions=dropped_definitions,
    )


def _number_concepts(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """CUIs of atoms -> the distinct ones, sorted, and for each atom its place among them."""
    encoded = column.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return encoded.dictionary.take(order), place[encoded.indices]


def _preferred_atoms(concept: np.ndarray, rank: pa.Array, names: pa.Array, num_concepts: int) -> np.ndarray:
    """[C] for each concept its atom with the lowest rank, the first by alphabet of those with this rank."""
    rank = rank.to_numpy()
    lowest = np.full(num_concepts, np.iinfo(np.int8).max, np.int8)
    np.minimum.at(lowest, concept, rank)
    candidates = np.flatnonzero(rank == lowest[concept])
    preferred = np.empty(num_concepts, np.int64)
    preferred[concept[candidates]] = candidates
    # Few concepts have several candidates: only their names are compared.
    is_tie = np.bincount(concept[candidates], minlength=num_concepts)[concept[candidates]] > 1
    ties = candidates[is_tie]
    tied = pa.table({"concept": concept[ties], "name": names.take(pa.array(ties))})
    ties = ties[pc.sort_indices(tied, [("concept", "ascending"), ("name", "ascending")])]
    first = ties[starts_of_runs(pa.array(concept[ties]))]
    preferred[concept[first]] = first
    return preferred


def _semantic_types(types: pa.RecordBatch, cuis: pa.Array) -> tuple[pa.ListArray, pa.ListArray, Counter[str]]:
    """Two parallel list columns aligned with `cuis`: TUIs, sorted, and their names; and the rows that were dropped."""
    known = _known_rows(types, cuis)
    # A name is looked at only where a concept has the same TUI twice: the first by alphabet counts.
    ordered = known.sort_by([("CUI", "ascending"), ("TUI", "ascending"), ("STY", "ascending")])
    distinct = ordered.filter(pa.array(starts_of_runs(ordered["CUI"], ordered["TUI"])))
    sizes = np.bincount(distinct["CUI"].to_numpy(), minlength=len(cuis))
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    type_ids, type_names = (pa.ListArray.from_arrays(offsets, distinct[column]) for column in ("TUI", "STY"))
    dropped = {UNKNOWN_CUI: types.num_rows - known.num_rows, DUPLICATE: known.num_rows - distinct.num_rows}
    return type_ids, type_names, Counter(dropped)


def _definitions(definitions: pa.RecordBatch, cuis: pa.Array) -> tuple[pa.Array, Counter[str]]:
    """One definition or null for each of `cuis`, and the rows that were dropped."""
    known = _known_rows(definitions, cuis)
    ordered = known.sort_by([(name, "ascending") for name in ("CUI", "order", "SAB", "DEF")])
    best = ordered.filter(pa.array(starts_of_runs(ordered["CUI"])))
    place = np.full(len(cuis), -1)
    place[best["CUI"].to_numpy()] = np.arange(best.num_rows)
    column = best["DEF"].take(pa.array(place, mask=place < 0))
    dropped = {UNKNOWN_CUI: definitions.num_rows - known.num_rows, SPARE_DEFINITION: known.num_rows - best.num_rows}
    return column, Counter(dropped)


def _known_rows(rows: pa.RecordBatch, cuis: pa.Array) -> pa.RecordBatch:
    """Replace the column of CUIs by places in `cuis`, without the rows whose CUI is not there."""
    rows = rows.set_column(0, "CUI", pc.index_in(rows["CUI"], cuis))
    return rows.filter(pc.is_valid(rows["CUI"]))
