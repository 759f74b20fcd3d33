"""The folder of annotated documents: one Parquet file, one table of rejects and one manifest for each unit of work.

    part-00000.parquet           doc_id, text, mentions [{start, end, cui, score}]
    part-00000.rejects.parquet   doc_id, source, reason, detail
    part-00000.json              counts and hashes of the two, written last: without it the unit is not done
    manifest.json                settings, inputs, totals and the hashes of all files, written when every unit is done
    job.json, .lock              what is to be done, and who is doing it (see `preprocessing.annotation.job`)

The same input and settings give the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kebiolm.errors import UserError
from kebiolm.files import atomic_path, describe_file, read_manifest, verify_file, write_json
from preprocessing.document import Document, Mention, Reject

FORMAT, VERSION = "kebiolm-annotated", 1
UNIT_FORMAT = "kebiolm-annotated-unit"

DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field(
            "mentions",
            pa.list_(
                pa.struct([("start", pa.int32()), ("end", pa.int32()), ("cui", pa.string()), ("score", pa.float32())])
            ),
            nullable=False,
        ),
    ]
)
REJECT_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in Reject.__slots__])

ROWS_PER_GROUP = 1000
_MEND = "run `kebiolm annotate` again; it makes only what is missing"


def part_name(unit: int) -> str:
    """Stem of the file names of unit number `unit`."""
    return f"part-{unit:05d}"


def write_unit(
    folder: Path, unit: int, records: Iterable[Document | Reject], extra_counts: Callable[[], dict[str, int]]
) -> dict[str, Any]:
    """Write one unit: its documents, its rejects, and last its manifest, each whole or not at all.

    Args:
        folder: where the parts lie; it exists.
        unit: number of the unit.
        records: every record of the unit's input, consumed as it is written.
        extra_counts: called when `records` is exhausted; further counts for the manifest.

    Returns:
        The unit's manifest. Its counts satisfy documents_in = documents_out + rejects.
    """
    stem = part_name(unit)
    documents_file, rejects_file = f"{stem}.parquet", f"{stem}.rejects.parquet"
    reasons: Counter[str] = Counter()
    documents_in = 0
    with (
        atomic_path(folder / documents_file) as documents_path,
        atomic_path(folder / rejects_file) as rejects_path,
        _RowWriter(documents_path, DOCUMENT_SCHEMA) as documents,
        _RowWriter(rejects_path, REJECT_SCHEMA) as rejects,
    ):
        for record in records:
            documents_in += 1
            if isinstance(record, Document):
                documents.write(_document_row(record))
            else:
                reasons[record.reason] += 1
                rejects.write({name: getattr(record, name) for name in Reject.__slots__})
    counts = {"documents_in": documents_in, "documents_out": documents.rows, "rejects": rejects.rows, **extra_counts()}
    assert documents_in == documents.rows + rejects.rows, counts
    manifest = {
        "format": UNIT_FORMAT,
        "version": VERSION,
        "counts": counts,
        "rejects_by_reason": dict(sorted(reasons.items())),
        "files": {
            documents_file: {**describe_file(folder / documents_file), "rows": documents.rows},
            rejects_file: {**describe_file(folder / rejects_file), "rows": rejects.rows},
        },
    }
    write_json(folder / f"{stem}.json", manifest)
    return manifest


def read_unit(folder: Path, unit: int) -> dict[str, Any] | None:
    """The manifest of a unit that is done and whole; None where it must be made (again)."""
    try:
        manifest = json.loads((folder / f"{part_name(unit)}.json").read_text(encoding="utf-8"))
        for name, recorded in manifest["files"].items():
            verify_file(folder, name, recorded, mend=_MEND)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest


def total_counts(units: Iterable[dict[str, Any]]) -> tuple[dict[str, int], dict[str, int]]:
    """Sum the manifests of units: (counts, rejects by reason), both sorted by name."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for unit in units:
        counts.update(unit["counts"])
        reasons.update(unit["rejects_by_reason"])
    return dict(sorted(counts.items())), dict(sorted(reasons.items()))


class AnnotatedCorpus:
    """A finished folder of annotated documents, for reading.

    Attributes:
        path: the folder.
        manifest: its manifest.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def load(cls, path: Path, *, check_hash: bool = True) -> AnnotatedCorpus:
        """Open a folder that `kebiolm annotate` finished.

        Raises:
            UserError: the job is not finished, or a file is missing, cut short or changed.
        """
        manifest = read_manifest(path, FORMAT, VERSION, made_by="kebiolm annotate")
        for name, recorded in manifest["files"].items():
            verify_file(path, name, recorded, mend=_MEND, check_hash=check_hash)
        return cls(path, manifest)

    def __len__(self) -> int:
        return self.manifest["counts"]["documents_out"]

    def iter_documents(self) -> Iterator[Document]:
        """All documents, in the order of the inputs; a few hundred are in memory at a time."""
        for batch in self._iter_batches(".parquet", DOCUMENT_SCHEMA):
            for row in batch.to_pylist():
                mentions = tuple(Mention(**mention) for mention in row["mentions"])
                yield Document(doc_id=row["doc_id"], text=row["text"], mentions=mentions)

    def iter_rejects(self) -> Iterator[Reject]:
        """All records that were set aside, in the order of the inputs."""
        for batch in self._iter_batches(".rejects.parquet", REJECT_SCHEMA):
            for row in batch.to_pylist():
                yield Reject(**row)

    def _iter_batches(self, suffix: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for unit in range(self.manifest["counts"]["units"]):
            path = self.path / f"{part_name(unit)}{suffix}"
            try:
                with pq.ParquetFile(path) as file:
                    yield from file.iter_batches(batch_size=ROWS_PER_GROUP, columns=schema.names)
            except pa.ArrowInvalid as error:
                raise UserError(path, got=f"an unreadable file ({error})", expected="Parquet", mend=_MEND) from None


class _RowWriter:
    """A Parquet file that rows are added to one by one, written in groups of 1,000."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema, self._pending, self.rows = schema, [], 0

    def __enter__(self) -> _RowWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()
        self._writer.close()

    def write(self, row: dict[str, Any]) -> None:
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_pylist(self._pending, schema=self._schema))
            self._pending = []


def _document_row(document: Document) -> dict[str, Any]:
    mentions = [
        {"start": mention.start, "end": mention.end, "cui": mention.cui, "score": mention.score}
        for mention in document.mentions
    ]
    return {"doc_id": document.doc_id, "text": document.text, "mentions": mentions}
