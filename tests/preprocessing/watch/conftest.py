"""Finished folders to look at: annotated documents with their knowledge base, written without a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kebiolm.data import knowledge_base
from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.files import describe_file, write_json
from preprocessing.annotation.store import FORMAT, VERSION, document_table, reject_table, total_counts, write_part
from preprocessing.document import Document, Mention, Reject

CONCEPTS = {
    "C0000001": ("Aspirin", ("Organic Chemical", "Pharmacologic Substance")),
    "C0000002": ("Headache", ("Sign or Symptom",)),
    "C0000003": ("Nameless", ()),
}
TEXT = "Aspirin eases headache. " * 20
REJECTS = [
    Reject(doc_id="r1", source="a.xml:3", reason="empty-abstract", detail="title: 'x'"),
    Reject(doc_id="r2", source="a.xml:4", reason="empty-abstract", detail="title: 'y'"),
    Reject(doc_id="r3", source="a.xml", reason="time-limit", detail="the process ended"),
]


def write_concepts(folder: Path, concepts: Mapping[str, tuple[str, Sequence[str]]]) -> Path:
    """A knowledge base of these concepts (CUI -> name and semantic types), with no link index."""
    folder.mkdir()
    names = list(concepts.values())
    types = [list(kinds) for _, kinds in names]
    tables = {
        knowledge_base.CONCEPTS_FILE: pa.table(
            [list(concepts), [name for name, _ in names], types, types, [None] * len(names)],
            schema=knowledge_base.CONCEPTS_SCHEMA,
        ),
        knowledge_base.NAMES_FILE: knowledge_base.NAMES_SCHEMA.empty_table(),
        knowledge_base.TRIPLES_FILE: knowledge_base.TRIPLES_SCHEMA.empty_table(),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / name)
    files = {name: {**describe_file(folder / name), "rows": table.num_rows} for name, table in tables.items()}
    manifest = {
        "format": knowledge_base.FORMAT,
        "version": knowledge_base.VERSION,
        "settings": {"language": "ENG"},
        "counts": {"concepts": len(concepts), "names": 0, "triples": 0},
        "files": files,
    }
    write_json(folder / "manifest.json", manifest)
    return folder


def example_documents(count: int, *, text: str = TEXT) -> list[Document]:
    """Documents d0, d1, ...; number n has n mentions, at most 10: Aspirin (1.0) and headache (0.9) in turns."""
    spans = [(start, start + 7, "C0000001", 1.0) for start in range(0, len(text), 24)]
    spans += [(start + 14, start + 22, "C0000002", 0.9) for start in range(0, len(text), 24)]
    mentions = [Mention(start=s, end=e, cui=cui, score=score) for s, e, cui, score in sorted(spans)]
    return [Document(doc_id=f"d{n}", text=text, mentions=tuple(mentions[: min(n, 10)])) for n in range(count)]


def write_finished(
    folder: Path, parts: Sequence[tuple[Sequence[Document], Sequence[Reject]]], kb: Path, *, threshold: float = 0.85
) -> Path:
    """A finished annotated folder with these parts."""
    folder.mkdir()
    manifests = []
    for number, (documents, rejects) in enumerate(parts):
        linked = sum(len(document.mentions) for document in documents)
        counts = {"mentions_found": linked + 5, "mentions_linked": linked, "abbreviations_skipped": 0}
        manifests.append(write_part(folder, number, document_table(documents), reject_table(rejects), counts))
    sums, reasons = total_counts(manifests)
    settings: dict[str, Any] = {
        "threshold": threshold,
        "model": {"name": "en_test", "version": "1", "sha256": "ab"},
        "knowledge_base": KnowledgeBase.load(kb).fingerprint,
    }
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "settings": settings,
        "inputs": [{"name": "a.xml", "bytes": 1234, "sha256": "cd"}],
        "counts": {**sums, "parts": len(parts), "distinct_texts": 2},
        "rejects_by_reason": reasons,
        "files": {name: file for part in manifests for name, file in part["files"].items()},
    }
    write_json(folder / "manifest.json", manifest)
    return folder


@pytest.fixture
def kb(tmp_path: Path) -> Path:
    """A knowledge base of the concepts above."""
    return write_concepts(tmp_path / "kb", CONCEPTS)


@pytest.fixture
def annotated(tmp_path: Path, kb: Path) -> Path:
    """30 documents in two parts, and three rejects."""
    documents = example_documents(30)
    return write_finished(tmp_path / "annotated", [(documents[:12], REJECTS), (documents[12:], [])], kb)
