"""PubMedDS (Vashishth et al., 2020), the corpus of the paper (section 4.1), as its JSON lines are published.

Each line is {"_id": PMID, "text": ..., "title": ..., "mentions": [...]}; offsets count in "text", so that is the
document. Its own mentions were found by matching MeSH headings and are left aside; the paper links with scispaCy
(section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedIOBase

from preprocessing.document import Document, Reject
from preprocessing.sources.jsonl import read_jsonl


def read_pubmedds(stream: BufferedIOBase, name: str) -> Iterator[Document | Reject]:
    """Read one record from each line that is not blank."""
    return read_jsonl(stream, name, id_field="_id")
