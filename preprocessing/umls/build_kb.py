"""UMLS files -> one knowledge base folder (concepts, names, triples, link index).

MRCONSO gives concepts and names, MRSTY semantic types, MRDEF definitions, MRREL triples. Every row that is read is
either kept or counted under the reason for which it was dropped; `manifest.json` has all these counts.

Rows that are kept go to buckets on disk (beside the output, about a tenth of the bytes of the RRF files) and each
bucket is sorted in memory, so memory hardly grows with the release: some 20 bytes for each concept, and the blocks and
buckets that are being worked on. The link index is built last, from all names.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
from rich.table import Table

from kebiolm.console import console
from kebiolm.data import knowledge_base
from kebiolm.files import atomic_folder, describe_file, has_format, write_json
from preprocessing.umls import rrf
from preprocessing.umls.buckets import Buckets
from preprocessing.umls.concepts import (
    DEF_COLUMNS,
    DEFINITION_SOURCES,
    STY_COLUMNS,
    read_definitions,
    read_semantic_types,
    write_concepts,
)
from preprocessing.umls.names import CONSO_COLUMNS, read_atoms, write_names
from preprocessing.umls.rrf_batches import Reader
from preprocessing.umls.triples import REL_COLUMNS, read_facts, write_triples

# Files that a UMLS subset may have without a row in them, and what the knowledge base then lacks.
_MAY_BE_EMPTY = {"MRREL.RRF": "there are no triples", "MRDEF.RRF": "no concept has a definition"}

# More threads would wait for the one that reads.
_MAX_THREADS = 4


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
        umls: folder with MRCONSO.RRF, MRREL.RRF, MRSTY.RRF and, optionally, MRDEF.RRF and MRFILES.RRF; plain, .gz, or
            in the parts that NLM ships (MRCONSO.RRF.aa.gz, MRCONSO.RRF.ab.gz, ...). MRREL.RRF and MRDEF.RRF may be
            empty.
        out: folder to write; see `kebiolm.data.knowledge_base` for its tables.
        settings: which rows to keep.
        overwrite: replace an earlier knowledge base at `out`.

    Returns:
        The manifest that was written.

    Raises:
        UserError: a file or column is missing, a file cannot be read to its end, or `out` may not be written.
    """
    # Needs SciPy, which reading a knowledge base does not.
    from preprocessing.linker import build_link_index

    settings = settings or BuildSettings()
    # Missing files and columns come to light now, before minutes of reading.
    files = {
        "MRCONSO.RRF": rrf.find_file(umls, "MRCONSO.RRF", CONSO_COLUMNS),
        "MRREL.RRF": rrf.find_file(umls, "MRREL.RRF", REL_COLUMNS, may_be_empty=True),
        "MRSTY.RRF": rrf.find_file(umls, "MRSTY.RRF", STY_COLUMNS),
    }
    if rrf.has_file(umls, "MRDEF.RRF"):
        files["MRDEF.RRF"] = rrf.find_file(umls, "MRDEF.RRF", DEF_COLUMNS, may_be_empty=True)

    with atomic_folder(
        out, overwrite=overwrite, is_ours=lambda folder: has_format(folder, knowledge_base.FORMAT), inputs=[umls]
    ) as folder:
        reader, counts = _write_tables(files, folder, settings)
        names = pq.read_table(folder / knowledge_base.NAMES_FILE, columns=["name", "cui"])
        build_link_index(names["name"], names["cui"], folder / knowledge_base.LINKER_FOLDER)
        rows = {
            knowledge_base.CONCEPTS_FILE: counts["concepts"],
            knowledge_base.NAMES_FILE: counts["names"],
            knowledge_base.TRIPLES_FILE: counts["triples"],
        }
        manifest = {
            "format": knowledge_base.FORMAT,
            "version": knowledge_base.VERSION,
            "settings": asdict(settings) | {"definition_sources": list(DEFINITION_SOURCES)},
            "inputs": {name: report.input for name, report in reader.reports.items()},
            "counts": counts | {"rows": {k: r.counts() for k, r in reader.reports.items()}},
            "reject_examples": [example for report in reader.reports.values() for example in report.rows.examples],
            "files": _describe_files(folder, rows),
        }
        write_json(folder / "manifest.json", manifest)
    print_summary(manifest, out)
    return manifest


def _write_tables(
    files: dict[str, rrf.RrfFile], folder: Path, settings: BuildSettings
) -> tuple[Reader, dict[str, int]]:
    """Read all tables of the release and write those of the knowledge base; returns reports and counts."""
    # Names are written in a thread of their own while MRREL is read.
    with (
        TemporaryDirectory(dir=folder) as temporary,
        ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as executor,
        ThreadPoolExecutor(1) as beside,
    ):
        work, reader = Path(temporary), Reader(executor)
        language, suppress = settings.language, settings.suppress
        atoms = read_atoms(reader, files["MRCONSO.RRF"], work / "atoms", language=language, suppress=suppress)
        types = read_semantic_types(reader, files["MRSTY.RRF"], work / "types")
        definitions = read_definitions(
            reader, files.get("MRDEF.RRF"), work / "definitions", atoms.foreign_sources, suppress=suppress
        )
        by_name = Buckets(work / "names", knowledge_base.NAMES_SCHEMA)
        cuis, counts = write_concepts(
            folder / knowledge_base.CONCEPTS_FILE,
            atoms=atoms,
            types=types,
            definitions=definitions,
            by_name=by_name,
            reports=reader.reports,
            executor=executor,
        )
        names_path, names_report = folder / knowledge_base.NAMES_FILE, reader.reports["MRCONSO.RRF"]
        name_counts = beside.submit(write_names, by_name, names_path, names_report, executor)
        facts = read_facts(reader, files["MRREL.RRF"], work / "facts", cuis, suppress=suppress)
        triples_path, triples_report = folder / knowledge_base.TRIPLES_FILE, reader.reports["MRREL.RRF"]
        triple_counts = write_triples(facts, triples_path, cuis, triples_report, executor)
        return reader, counts | name_counts.result() | triple_counts


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


def _describe_files(folder: Path, rows: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Size and hash of every file of the folder, with rows where it is a table."""
    described = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        described[name] = describe_file(path)
        if name in rows:
            described[name]["rows"] = rows[name]
    return described
