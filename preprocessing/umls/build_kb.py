"""UMLS files -> one knowledge base folder (concepts, names, triples, link index).

MRCONSO gives concepts and names, MRSTY semantic types, MRDEF definitions, MRREL triples. Every row that is read is
either kept or counted under the reason for which it was dropped; `manifest.json` has all these counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table

from kebiolm.console import console
from kebiolm.data import knowledge_base
from kebiolm.errors import UserError
from kebiolm.files import atomic_folder, describe_file, has_format, write_json
from preprocessing.umls import rrf
from preprocessing.umls.rrf_batches import Batch, ConceptRows, Reader

NOT_ENGLISH = "not English"
SUPPRESSED = "suppressed"
EMPTY_NAME = "empty CUI or name"
EMPTY_TYPE = "empty semantic type"
EMPTY_DEFINITION = "empty definition"
EMPTY_RELA = "empty RELA"
SELF_LOOP = "self-loop"
DUPLICATE = "duplicate"
FOREIGN_SOURCE = "source not English"
SPARE_DEFINITION = "concept has a preferred definition"

# Files that a UMLS subset may have without a row in them, and what the knowledge base then lacks.
_MAY_BE_EMPTY = {"MRREL.RRF": "there are no triples", "MRDEF.RRF": "no concept has a definition"}

# A concept has one definition here; these sources are asked first, the others in alphabetical order.
DEFINITION_SOURCES = ("MSH", "NCI")


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Which rows of a UMLS release become part of the knowledge base."""

    language: str = "ENG"
    """Value of LAT of the names to keep."""
    suppress: str = "N"
    """Value of SUPPRESS of the rows to keep: "N" is what UMLS does not suppress."""


def build_kb(
    umls: Path, out: Path, *, settings: BuildSettings | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Build a knowledge base folder from a UMLS META folder.

    Args:
        umls: folder with MRCONSO.RRF, MRREL.RRF, MRSTY.RRF and, optionally, MRDEF.RRF and MRFILES.RRF; plain or .gz.
            MRREL.RRF and MRDEF.RRF may be empty.
        out: folder to write; see `kebiolm.data.knowledge_base` for its tables.
        settings: which rows to keep.
        overwrite: replace an earlier knowledge base at `out`.

    Returns:
        The manifest that was written.

    Raises:
        UserError: a file or column is missing, a file cannot be read to its end, or `out` may not be written.
    """
    # Needs spaCy and SciPy, which reading a knowledge base does not.
    from preprocessing.linker import build_link_index

    settings = settings or BuildSettings()
    # Missing files and columns come to light now, before minutes of reading.
    conso = rrf.find_file(umls, "MRCONSO.RRF", ("CUI", "LAT", "TS", "STT", "ISPREF", "SAB", "STR", "SUPPRESS"))
    rel = rrf.find_file(umls, "MRREL.RRF", ("CUI1", "CUI2", "RELA", "SUPPRESS"), may_be_empty=True)
    sty = rrf.find_file(umls, "MRSTY.RRF", ("CUI", "TUI", "STY"))
    mrdef = None
    if rrf.has_file(umls, "MRDEF.RRF"):
        mrdef = rrf.find_file(umls, "MRDEF.RRF", ("CUI", "SAB", "DEF", "SUPPRESS"), may_be_empty=True)

    reader = Reader()
    with atomic_folder(
        out, overwrite=overwrite, is_ours=lambda folder: has_format(folder, knowledge_base.FORMAT), inputs=[umls]
    ) as folder:
        names, foreign_sources = _read_names(reader, conso, settings)
        preferred = names.filter(names["is_preferred"]).sort_by("cui")
        cuis = preferred["cui"].combine_chunks()
        type_ids, type_names = _read_semantic_types(reader, sty, cuis)
        definitions = _read_definitions(reader, mrdef, cuis, foreign_sources, settings)
        columns = [cuis, preferred["name"].combine_chunks(), type_ids, type_names, definitions]
        concepts = pa.Table.from_arrays(columns, schema=knowledge_base.CONCEPTS_SCHEMA)
        triples = _read_triples(reader, rel, cuis, settings)

        tables = {
            knowledge_base.CONCEPTS_FILE: concepts,
            knowledge_base.NAMES_FILE: names,
            knowledge_base.TRIPLES_FILE: triples,
        }
        for name, table in tables.items():
            pq.write_table(table, folder / name, compression="zstd")
        build_link_index(names["name"].to_pylist(), names["cui"].to_pylist(), folder / knowledge_base.LINKER_FOLDER)

        manifest = {
            "format": knowledge_base.FORMAT,
            "version": knowledge_base.VERSION,
            "settings": asdict(settings) | {"definition_sources": list(DEFINITION_SOURCES)},
            "inputs": {name: report.input for name, report in reader.reports.items()},
            "counts": _content_counts(tables) | {"rows": {k: r.counts() for k, r in reader.reports.items()}},
            "reject_examples": [example for report in reader.reports.values() for example in report.rows.examples],
            "files": _describe_files(folder, tables),
        }
        write_json(folder / "manifest.json", manifest)
    print_summary(manifest, out)
    return manifest


def print_summary(manifest: dict[str, Any], out: Path) -> None:
    """Print what was read, dropped and kept, file by file, and what the knowledge base has."""
    table = Table("file", "rows", "", title=f"Knowledge base {out}", title_justify="left")
    table.columns[1].justify = "right"
    for name, counts in manifest["counts"]["rows"].items():
        table.add_row(name, f"{counts['read']:,}", "read", style="bold")
        for reason, count in counts["rejected"].items():
            table.add_row("", f"{count:,}", f"rejected: {reason}", style="red")
        for reason, count in counts["dropped"].items():
            table.add_row("", f"{count:,}", f"dropped: {reason}")
        table.add_row("", f"{counts['kept']:,}", "kept", end_section=True)
    console.print(table)
    for name, count in manifest["counts"].items():
        if name != "rows":
            console.print(f"{count:>12,}  {name.replace('_', ' ')}")
    if "MRDEF.RRF" not in manifest["inputs"]:
        console.print("MRDEF.RRF is not there: no concept has a definition.")
    for name, lack in _MAY_BE_EMPTY.items():
        if name in manifest["inputs"] and not manifest["counts"]["rows"][name]["read"]:
            console.print(f"[yellow]warning:[/] {name} is empty: {lack}.")
    for example in manifest["reject_examples"]:
        console.print(f"[red]rejected[/] {example['file']}:{example['line']}: {example['reason']}")
    for name, described in manifest["inputs"].items():
        read, listed = manifest["counts"]["rows"][name]["read"], described["rows_listed"]
        if listed not in (None, read):
            console.print(
                f"[yellow]warning:[/] {name} has {read:,} rows, {rrf.LAYOUT_FILE} lists {listed:,}: cut short?"
            )


def _read_names(reader: Reader, file: rrf.RrfFile, settings: BuildSettings) -> tuple[pa.Table, set[str]]:
    """MRCONSO -> the names table, and the sources that name concepts only in other languages.

    The preferred name of a concept is the one with TS=P, STT=PF and ISPREF=Y (UMLS Reference Manual). A concept
    whose such name is absent or suppressed takes the name that comes nearest, first by TS, then STT, then ISPREF;
    equal ones are settled by alphabet, so that the order of rows does not matter.
    """
    kept: list[pa.Table] = []
    english_sources: set[str] = set()
    other_sources: set[str] = set()
    for batch in reader.batches(file, ("CUI", "LAT", "TS", "STT", "ISPREF", "SAB", "STR", "SUPPRESS")):
        batch.trim("STR")
        is_english = pc.equal(batch["LAT"], settings.language)
        english_sources.update(pc.unique(batch["SAB"].filter(is_english)).to_pylist())
        other_sources.update(pc.unique(batch["SAB"].filter(pc.invert(is_english))).to_pylist())
        batch.drop(NOT_ENGLISH, pc.not_equal(batch["LAT"], settings.language))
        batch.drop(SUPPRESSED, pc.not_equal(batch["SUPPRESS"], settings.suppress))
        batch.drop_empty(EMPTY_NAME, "CUI", "STR")
        rank = _weight(batch, "TS", "P", 4), _weight(batch, "STT", "PF", 2), _weight(batch, "ISPREF", "Y", 1)
        kept.append(pa.table({"cui": batch["CUI"], "name": batch["STR"], "rank": pc.add(pc.add(*rank[:2]), rank[2])}))
    report = reader.reports[file.name]
    rows = pa.concat_tables(kept)
    if not rows.num_rows:
        expected = f"at least one row with LAT={settings.language} and SUPPRESS={settings.suppress}"
        mend = "make a UMLS subset that has names in this language"
        raise UserError(file.path, got=f"no name to keep ({dict(report.dropped)})", expected=expected, mend=mend)
    names = rows.group_by(["cui", "name"], use_threads=False).aggregate([("rank", "min")])
    report.dropped[DUPLICATE] += rows.num_rows - names.num_rows
    report.kept = names.num_rows
    by_rank = names.sort_by([("cui", "ascending"), ("rank_min", "ascending"), ("name", "ascending")])
    names = pa.table({"name": by_rank["name"], "cui": by_rank["cui"], "is_preferred": _first_of_run(by_rank["cui"])})
    names = names.sort_by([("name", "ascending"), ("cui", "ascending")]).combine_chunks()
    return names.cast(knowledge_base.NAMES_SCHEMA), other_sources - english_sources


def _read_semantic_types(reader: Reader, file: rrf.RrfFile, cuis: pa.Array) -> tuple[pa.Array, pa.Array]:
    """MRSTY -> two parallel list columns aligned with `cuis`: TUIs, sorted, and their names."""
    kept = []
    concepts = ConceptRows(cuis)
    for batch in reader.batches(file, ("CUI", "TUI", "STY")):
        batch.drop_empty(EMPTY_TYPE, "TUI", "STY")
        batch.look_up("CUI", concepts)
        kept.append(batch.rows)
    report = reader.reports[file.name]
    rows = pa.concat_tables(kept)
    types = rows.group_by(["CUI", "TUI"], use_threads=False).aggregate([("STY", "min")])
    types = types.sort_by([("CUI", "ascending"), ("TUI", "ascending")]).combine_chunks()
    report.dropped[DUPLICATE] += rows.num_rows - types.num_rows
    report.kept = types.num_rows
    sizes = np.bincount(types["CUI"].to_numpy(), minlength=len(cuis))
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    columns = (types["TUI"].combine_chunks(), types["STY_min"].combine_chunks())
    type_ids, type_names = (pa.ListArray.from_arrays(offsets, column) for column in columns)
    return type_ids, type_names


def _read_definitions(
    reader: Reader, file: rrf.RrfFile | None, cuis: pa.Array, foreign_sources: set[str], settings: BuildSettings
) -> pa.Array:
    """MRDEF -> one definition or null for each of `cuis`.

    MRDEF does not say in which language a definition is; a source without one English name writes in its own.
    """
    best: dict[int, tuple[int, str, str]] = {}
    if file is None:
        return pa.nulls(len(cuis), pa.string())
    concepts, foreign = ConceptRows(cuis), pa.array(sorted(foreign_sources), pa.string())
    for batch in reader.batches(file, ("CUI", "SAB", "DEF", "SUPPRESS")):
        batch.trim("DEF")
        batch.drop(SUPPRESSED, pc.not_equal(batch["SUPPRESS"], settings.suppress))
        batch.drop_empty(EMPTY_DEFINITION, "DEF")
        batch.drop(FOREIGN_SOURCE, pc.is_in(batch["SAB"], foreign))
        batch.look_up("CUI", concepts)
        columns = (batch[column].to_pylist() for column in ("CUI", "SAB", "DEF"))
        for row, source, text in zip(*columns, strict=True):
            order = DEFINITION_SOURCES.index(source) if source in DEFINITION_SOURCES else len(DEFINITION_SOURCES)
            candidate = (order, source, text)
            if row in best:
                batch.report.dropped[SPARE_DEFINITION] += 1
            best[row] = min(candidate, best.get(row, candidate))
    reader.reports[file.name].kept = len(best)
    return pa.array([best[row][-1] if row in best else None for row in range(len(cuis))], pa.string())


def _read_triples(reader: Reader, file: rrf.RrfFile, cuis: pa.Array, settings: BuildSettings) -> pa.Table:
    """MRREL -> the triples table. A row of MRREL reads "CUI2 RELA CUI1" (UMLS Reference Manual).

    Rows are held as numbers (rows of `cuis`, running numbers of relations), 12 bytes each, because a full UMLS has
    tens of millions of them.
    """
    concepts = ConceptRows(cuis)
    relation_code: dict[str, int] = {}
    kept = [np.empty((0, 3), np.int32)]
    for batch in reader.batches(file, ("CUI1", "CUI2", "RELA", "SUPPRESS")):
        batch.drop(SUPPRESSED, pc.not_equal(batch["SUPPRESS"], settings.suppress))
        batch.drop_empty(EMPTY_RELA, "RELA")
        batch.look_up("CUI1", concepts)
        batch.look_up("CUI2", concepts)
        batch.drop(SELF_LOOP, pc.equal(batch["CUI1"], batch["CUI2"]))
        relations = batch["RELA"].combine_chunks().dictionary_encode()
        codes = [relation_code.setdefault(name, len(relation_code)) for name in relations.dictionary.to_pylist()]
        relation_column = np.array(codes, np.int32)[relations.indices.to_numpy()]
        kept.append(np.stack([batch["CUI2"].to_numpy(), relation_column, batch["CUI1"].to_numpy()], axis=1))
    rows = np.concatenate(kept)
    relation_names = sorted(relation_code)
    sorted_code = np.empty(len(relation_names), np.int32)
    sorted_code[[relation_code[name] for name in relation_names]] = np.arange(len(relation_names))
    unique = _unique_rows(rows[:, 0], sorted_code[rows[:, 1]], rows[:, 2], len(relation_names), len(cuis))
    report = reader.reports[file.name]
    report.dropped[DUPLICATE] += len(rows) - len(unique[0])
    report.kept = len(unique[0])
    columns = [cuis.take(unique[0]), pa.array(relation_names, pa.string()).take(unique[1]), cuis.take(unique[2])]
    return pa.Table.from_arrays(columns, schema=knowledge_base.TRIPLES_SCHEMA)


def _unique_rows(
    subjects: np.ndarray, relations: np.ndarray, objects: np.ndarray, num_relations: int, num_concepts: int
) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Distinct rows in ascending order, through one integer per row (4M concepts and 1,000 relations need 54 bits)."""
    keys = (subjects.astype(np.int64) * num_relations + relations) * num_concepts + objects
    subject_relation, objects = np.divmod(np.unique(keys), max(num_concepts, 1))
    subjects, relations = np.divmod(subject_relation, max(num_relations, 1))
    return pa.array(subjects), pa.array(relations), pa.array(objects)


def _weight(batch: Batch, column: str, wanted: str, weight: int) -> pa.ChunkedArray:
    """0 where the column has the wanted value, else `weight`."""
    return pc.if_else(pc.equal(batch[column], wanted), pa.scalar(0, pa.int8()), pa.scalar(weight, pa.int8()))


def _first_of_run(values: pa.ChunkedArray) -> pa.Array:
    """True where a sorted column has a value for the first time."""
    values = values.combine_chunks()
    return pa.concat_arrays([pa.array([True]), pc.not_equal(values[1:], values[:-1])])


def _content_counts(tables: dict[str, pa.Table]) -> dict[str, int]:
    """What the knowledge base has, in numbers."""
    concepts, names, triples = (tables[name] for name in tables)
    in_triples = pc.unique(pa.concat_arrays([c.combine_chunks() for c in (triples["subject"], triples["object"])]))
    distinct_names = pc.count_distinct(names["name"]).as_py()
    return {
        "concepts": concepts.num_rows,
        "concepts_without_semantic_type": pc.sum(pc.equal(pc.list_value_length(concepts["semantic_types"]), 0)).as_py(),
        "concepts_with_definition": concepts.num_rows - concepts["definition"].null_count,
        "concepts_in_triples": len(in_triples),
        "names": names.num_rows,
        "distinct_names": distinct_names,
        "relations": pc.count_distinct(triples["relation"]).as_py(),
        "triples": triples.num_rows,
    }


def _describe_files(folder: Path, tables: dict[str, pa.Table]) -> dict[str, dict[str, Any]]:
    """Size and hash of every file of the folder, with rows where it is a table."""
    described = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        described[name] = describe_file(path)
        if name in tables:
            described[name]["rows"] = tables[name].num_rows
    return described
