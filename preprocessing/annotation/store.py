"""The folder of annotated documents, as it is when the job is finished: numbered parts that each describe themselves.

    part-00000.parquet           doc_id, text, mentions [{start, end, cui, score}]
    part-00000.rejects.parquet   doc_id, source, reason, detail
    part-00000.json              counts and hashes of the two, written last: without it the part is not done
    manifest.json                settings, inputs, totals and the hashes of all files, written when every part is done
    job.json, .lock              what is to be done, and who is doing it (see `preprocessing.ledger`)

The same input and settings give the same bytes, for any number of workers, killed or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kebiolm.errors import UserError
from kebiolm.files import atomic_path, read_manifest, verify_file
from preprocessing.annotation.unit_files import describe_table, write_unit_manifest
from preprocessing.document import Document, Mention, Reject

FORMAT, VERSION = "kebiolm-annotated", 2
REPORT_FILE = "report.html"

MENTION_TYPE = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("cui", pa.string()), ("score", pa.float32())])
DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("mentions", pa.list_(MENTION_TYPE), nullable=False),
    ]
)
REJECT_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in Reject.__slots__])

ROWS_PER_GROUP = 1000
_MEND = "run `kebiolm annotate` again"


def part_name(number: int) -> str:
    """Stem of the file names of a part."""
    return f"part-{number:05d}"


def write_part(
    folder: Path, number: int, documents: pa.Table, rejects: pa.Table, counts: Mapping[str, int], *, made_from: str = ""
) -> dict[str, Any]:
    """Write one part: its documents, its rejects, and last its manifest, each whole or not at all.

    Args:
        folder: where the parts lie; it exists.
        number: of the part.
        documents: rows as in `DOCUMENT_SCHEMA`.
        rejects: rows as in `REJECT_SCHEMA`; every record of the input is a row of one of the two.
        counts: further counts for the manifest.
        made_from: see `write_unit_manifest`.

    Returns:
        The part's manifest. Its counts satisfy documents_in = documents_out + rejects.
    """
    stem = part_name(number)
    files = {}
    for name, table, schema in (
        (f"{stem}.parquet", documents, DOCUMENT_SCHEMA),
        (f"{stem}.rejects.parquet", rejects, REJECT_SCHEMA),
    ):
        with atomic_path(folder / name) as path:
            pq.write_table(table.cast(schema), path, compression="zstd", row_group_size=ROWS_PER_GROUP)
        files[name] = describe_table(folder / name, table)
    reasons = Counter(rejects["reason"].to_pylist())
    own_counts = {
        "documents_in": documents.num_rows + rejects.num_rows,
        "documents_out": documents.num_rows,
        "rejects": rejects.num_rows,
    }
    return write_unit_manifest(
        folder / f"{stem}.json",
        made_from,
        {**own_counts, **counts},
        files,
        rejects_by_reason=dict(sorted(reasons.items())),
    )


def total_counts(parts: Iterable[Mapping[str, Any]]) -> tuple[dict[str, int], dict[str, int]]:
    """Sum the manifests of parts: (counts, rejects by reason), both sorted by name."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for part in parts:
        counts.update(part["counts"])
        reasons.update(part["rejects_by_reason"])
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

    @property
    def part_sizes(self) -> list[int]:
        """Number of documents of each part."""
        files = self.manifest["files"]
        return [files[f"{part_name(number)}.parquet"]["rows"] for number in range(self.manifest["counts"]["parts"])]

    def iter_part(self, number: int) -> Iterator[Document]:
        """The documents of one part, in the order of the input."""
        for batch in self._iter_batches(number, ".parquet", DOCUMENT_SCHEMA):
            for row in batch.to_pylist():
                mentions = tuple(Mention(**mention) for mention in row["mentions"])
                yield Document(doc_id=row["doc_id"], text=row["text"], mentions=mentions)

    def iter_documents(self) -> Iterator[Document]:
        """All documents, in the order of the inputs; a few hundred are in memory at a time."""
        for number in range(len(self.part_sizes)):
            yield from self.iter_part(number)

    def iter_rejects(self) -> Iterator[Reject]:
        """All records that were set aside, in the order of the inputs."""
        for number in range(len(self.part_sizes)):
            for batch in self._iter_batches(number, ".rejects.parquet", REJECT_SCHEMA):
                for row in batch.to_pylist():
                    yield Reject(**row)

    def _iter_batches(self, number: int, suffix: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        path = self.path / f"{part_name(number)}{suffix}"
        try:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=ROWS_PER_GROUP, columns=schema.names)
        except pa.ArrowInvalid as error:
            raise UserError(path, got=f"an unreadable file ({error})", expected="Parquet", mend=_MEND) from None


def document_table(documents: Iterable[Document]) -> pa.Table:
    """Documents as rows of `DOCUMENT_SCHEMA`."""
    rows = [
        {
            "doc_id": document.doc_id,
            "text": document.text,
            "mentions": [{name: getattr(mention, name) for name in Mention.__slots__} for mention in document.mentions],
        }
        for document in documents
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)


def reject_table(rejects: Iterable[Reject]) -> pa.Table:
    """Rejects as rows of `REJECT_SCHEMA`."""
    rows = [{name: getattr(reject, name) for name in Reject.__slots__} for reject in rejects]
    return pa.Table.from_pylist(rows, schema=REJECT_SCHEMA)
