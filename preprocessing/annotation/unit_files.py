"""The manifest that ends a unit of work: written last, so a unit is done when its manifest is there and its files fit.

While a job runs, its folder has a subfolder `work/` with what the stages hand to each other:

    read/file-00003.json                  one input file as slices: how many documents each, and what was set aside
    read/file-00003-slice-00002.parquet   (and .rejects.parquet) at most 2,000 documents: doc_id, text
    ids.json, ids.parquet                 documents that a later record with the same id replaces
    found/part-00007.{json,...}           mentions of one slice, its distinct texts, and what was set aside
    links.json, links/bucket-0003.{json,arrow}   each distinct text of the job, linked once
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from kebiolm.errors import UserError
from kebiolm.files import describe_file, sha256_of_json, verify_file, write_json

UNIT_FORMAT, UNIT_VERSION = "kebiolm-unit", 1
WORK_FOLDER = "work"

_MEND = "run the command again"


def write_unit_manifest(
    path: Path, made_from: str, counts: Mapping[str, int], files: Mapping[str, dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """Write the manifest of a unit whose files are all in place.

    Args:
        path: the manifest; the unit's files lie beside it.
        made_from: fingerprint of what decides the unit's files: the job's settings and the units it was made from.
        counts: what the unit added up to.
        files: name -> what `describe_table` said of it.
        more: further fields.

    Returns:
        The manifest.
    """
    described = {"format": UNIT_FORMAT, "version": UNIT_VERSION, "made_from": made_from}
    manifest = {**described, "counts": dict(counts), "files": dict(files), **more}
    write_json(path, manifest)
    return manifest


def read_unit_manifest(path: Path, made_from: str) -> dict[str, Any] | None:
    """The manifest of a unit that is done, whole, and made from the same; None where it must be made (again)."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if (manifest["format"], manifest["version"], manifest["made_from"]) != (UNIT_FORMAT, UNIT_VERSION, made_from):
            return None
        for name, recorded in manifest["files"].items():
            verify_file(path.parent, name, recorded, mend=_MEND)
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
    return manifest


def fingerprint_of(made_from: str, manifests: Iterable[Mapping[str, Any]], *more: Any) -> str:
    """Fingerprint of what a unit of a later stage is made from: the job, and the files of units of earlier stages."""
    hashes = [file["sha256"] for manifest in manifests for _, file in sorted(manifest["files"].items())]
    return sha256_of_json([made_from, hashes, *more])


def describe_table(path: Path, table: pa.Table) -> dict[str, Any]:
    """Bytes, SHA-256 and rows of a file that holds a table."""
    return {**describe_file(path), "rows": table.num_rows}


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table as one uncompressed record batch, to be read through a memory map."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def map_arrow(path: Path) -> pa.Table:
    """Open what `write_arrow` wrote, without reading it."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
