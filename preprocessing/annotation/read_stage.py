"""Stage 1: a file of abstracts becomes slices of at most 2,000 documents; a slice is what later stages work on.

Files are read once, by whatever worker is free. A big file thus becomes many small units that several workers share,
and of which only a few are lost when a worker dies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kebiolm.files import atomic_path, verify_file
from preprocessing.annotation.store import REJECT_SCHEMA, reject_table
from preprocessing.annotation.unit_files import describe_table, read_unit_manifest, write_unit_manifest
from preprocessing.document import Document, Reject
from preprocessing.sources import open_source

SLICE_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("doc_id", "text")])

# Slices are held in memory: a file of huge texts, or a damaged one with millions of rejects, gives more of them.
CHARACTERS_PER_SLICE = 64 << 20
REJECTS_PER_SLICE = 20_000


def file_name(number: int) -> str:
    """Stem of the file names of input file number `number`."""
    return f"file-{number:05d}"


def slice_name(file_number: int, slice_number: int) -> str:
    """Stem of the file names of one slice of an input file."""
    return f"{file_name(file_number)}-slice-{slice_number:05d}"


def read_file(
    folder: Path, number: int, path: Path, *, slice_documents: int, expected: Mapping[str, Any], made_from: str
) -> dict[str, Any]:
    """Read one input file and write its slices.

    Args:
        folder: where the slices go.
        number: of the input file.
        path: the input file.
        slice_documents: most documents of a slice.
        expected: "bytes" and "sha256" of the file when the job began.
        made_from: fingerprint of the job.

    Returns:
        The file's manifest, with "slices": [{"documents", "rejects"}] in order.

    Raises:
        UserError: the file is not what it was when the job began.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Any]] = {}
    slices: list[dict[str, int]] = []
    reasons: Counter[str] = Counter()
    for documents, rejects in _slices(open_source(path), slice_documents):
        stem = slice_name(number, len(slices))
        columns = {name: [getattr(document, name) for document in documents] for name in SLICE_SCHEMA.names}
        for name, table in (
            (f"{stem}.parquet", pa.table(columns, schema=SLICE_SCHEMA)),
            (f"{stem}.rejects.parquet", reject_table(rejects)),
        ):
            with atomic_path(folder / name) as temporary:
                pq.write_table(table, temporary, compression="zstd")
            files[name] = describe_table(folder / name, table)
        reasons.update(reject.reason for reject in rejects)
        slices.append({"documents": len(documents), "rejects": len(rejects)})
    verify_file(path.parent, path.name, dict(expected), mend="put the file back, or begin anew with --overwrite")
    totals = {key: sum(piece[key] for piece in slices) for key in ("documents", "rejects")}
    counts = {"documents_in": sum(totals.values()), **totals}
    return write_unit_manifest(
        folder / f"{file_name(number)}.json",
        made_from,
        counts,
        files,
        slices=slices,
        rejects_by_reason=dict(sorted(reasons.items())),
    )


def read_done(folder: Path, number: int, made_from: str) -> dict[str, Any] | None:
    """The manifest of a file that was read, None where it must be read (again)."""
    return read_unit_manifest(folder / f"{file_name(number)}.json", made_from)


def load_slice(
    folder: Path, file_number: int, slice_number: int, *, columns: Sequence[str] = tuple(SLICE_SCHEMA.names)
) -> tuple[pa.Table, pa.Table]:
    """A slice's documents (the given columns of doc_id, text) and its rejects."""
    stem = slice_name(file_number, slice_number)
    documents = pq.read_table(folder / f"{stem}.parquet", columns=list(columns))
    return documents, pq.read_table(folder / f"{stem}.rejects.parquet", schema=REJECT_SCHEMA)


def _slices(
    records: Iterator[Document | Reject], slice_documents: int
) -> Iterator[tuple[list[Document], list[Reject]]]:
    documents: list[Document] = []
    rejects: list[Reject] = []
    characters = 0
    for record in records:
        if isinstance(record, Document):
            documents.append(record)
            characters += len(record.text)
        else:
            rejects.append(record)
        is_full = len(documents) == slice_documents or characters >= CHARACTERS_PER_SLICE
        if is_full or len(rejects) == REJECTS_PER_SLICE:
            yield documents, rejects
            documents, rejects, characters = [], [], 0
    if documents or rejects:
        yield documents, rejects
