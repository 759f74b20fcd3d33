"""Read the knowledge base folder that `kebiolm kb build` writes.

Needs no torch: preprocessing nodes read knowledge bases too.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kebiolm.errors import UserError
from kebiolm.files import read_manifest, sha256_of_json, verify_file

FORMAT = "kebiolm-kb"
VERSION = 1
CONCEPTS_FILE = "concepts.parquet"
NAMES_FILE = "names.parquet"
TRIPLES_FILE = "triples.parquet"
LINKER_FOLDER = "linker"

CONCEPTS_SCHEMA = pa.schema(
    [
        ("cui", pa.string()),
        ("preferred_name", pa.string()),
        ("semantic_types", pa.list_(pa.string())),
        ("semantic_type_names", pa.list_(pa.string())),
        ("definition", pa.string()),
    ]
)
"""One row per concept, sorted by CUI; the two lists are parallel, sorted by TUI; definition may be null."""

NAMES_SCHEMA = pa.schema([("name", pa.string()), ("cui", pa.string()), ("is_preferred", pa.bool_())])
"""Distinct (name, cui), sorted; a name with several CUIs is ambiguous and has several rows."""

TRIPLES_SCHEMA = pa.schema([("subject", pa.string()), ("relation", pa.string()), ("object", pa.string())])
"""Distinct facts "subject relation object", sorted; subject and object are CUIs of the concepts table."""

_MADE_BY = "kebiolm kb build"
_MEND = f"build the knowledge base again with `{_MADE_BY}`"


class KnowledgeBase:
    """A knowledge base on disk. Tables are read when they are first asked for and then kept.

    Attributes:
        path: the folder.
        manifest: its manifest.json.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def load(cls, path: Path | str, *, check_hash: bool = True) -> KnowledgeBase:
        """Open a knowledge base folder.

        Args:
            path: the folder that `kebiolm kb build` wrote.
            check_hash: read every file once and compare its SHA-256; otherwise only sizes are compared.

        Raises:
            UserError: the folder is no knowledge base, or a file is missing, cut short or changed.
        """
        path = Path(path)
        manifest = read_manifest(path, FORMAT, VERSION, made_by=_MADE_BY)
        recorded = manifest.get("files", {})
        for name in (CONCEPTS_FILE, NAMES_FILE, TRIPLES_FILE):
            if name not in recorded:
                raise UserError(
                    path / "manifest.json",
                    got=f"no entry for {name}",
                    expected="size and hash of each file",
                    mend=_MEND,
                )
        for name, description in sorted(recorded.items()):
            verify_file(path, name, description, mend=_MEND, check_hash=check_hash)
        return cls(path, manifest)

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over the hashes of all files: equal only for knowledge bases with equal content."""
        return sha256_of_json({name: description["sha256"] for name, description in self.manifest["files"].items()})

    @property
    def num_concepts(self) -> int:
        """Number of concepts (CUIs)."""
        return self.manifest["files"][CONCEPTS_FILE]["rows"]

    @property
    def linker_path(self) -> Path:
        """Folder of the TF-IDF link index over all names."""
        return self.path / LINKER_FOLDER

    def concepts(self) -> pa.Table:
        """The concepts, as in `CONCEPTS_SCHEMA`."""
        return self._concepts

    def names(self) -> pa.Table:
        """All names, as in `NAMES_SCHEMA`."""
        return self._names

    def triples(self) -> pa.Table:
        """All facts, as in `TRIPLES_SCHEMA`."""
        return self._triples

    def preferred_names(self) -> dict[str, str]:
        """CUI -> preferred name, in CUI order."""
        table = self._concepts
        return dict(zip(table["cui"].to_pylist(), table["preferred_name"].to_pylist(), strict=True))

    def semantic_types(self) -> dict[str, tuple[str, ...]]:
        """CUI -> names of its semantic types, sorted by TUI, in CUI order; a concept may have none."""
        names = self._concepts["semantic_type_names"].to_pylist()
        return {cui: tuple(types) for cui, types in zip(self._concepts["cui"].to_pylist(), names, strict=True)}

    @cached_property
    def _concepts(self) -> pa.Table:
        return self._read(CONCEPTS_FILE, CONCEPTS_SCHEMA)

    @cached_property
    def _names(self) -> pa.Table:
        return self._read(NAMES_FILE, NAMES_SCHEMA)

    @cached_property
    def _triples(self) -> pa.Table:
        return self._read(TRIPLES_FILE, TRIPLES_SCHEMA)

    def _read(self, name: str, schema: pa.Schema) -> pa.Table:
        try:
            table = pq.read_table(self.path / name)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                self.path / name, got=f"an unreadable file ({error})", expected="Parquet", mend=_MEND
            ) from None
        if not table.schema.equals(schema):
            got, expected = ", ".join(table.schema.names), ", ".join(schema.names)
            raise UserError(self.path / name, got=f"columns {got}", expected=f"columns {expected}", mend=_MEND)
        return table
