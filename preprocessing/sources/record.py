"""The checks that every record passes, whatever format it came in."""

from __future__ import annotations

from preprocessing.document import Document, Reject

MAX_DETAIL_CHARACTERS = 300

# Ids of all documents are compared with each other; a longer one is a text in the wrong field.
MAX_ID_CHARACTERS = 1000


def make_record(*, doc_id: str, source: str, abstract: str, title: str = "") -> Document | Reject:
    """Join title and abstract by one space, or say why this is no document.

    Args:
        doc_id: the record's id.
        source: file name and line, for a reject.
        abstract: the abstract; for formats without a title, the whole text.
        title: the title; empty for formats that have none.
    """
    if not doc_id.strip():
        return make_reject(source=source, reason="missing-field", detail="the record has no id")
    if len(doc_id) > MAX_ID_CHARACTERS:
        return make_reject(doc_id=doc_id, source=source, reason="id-too-long", detail=f"{len(doc_id)} characters")
    if not abstract.strip():
        return make_reject(doc_id=doc_id, source=source, reason="empty-abstract", detail=f"title: {title!r}")
    text = f"{title} {abstract}" if title else abstract
    for part in (doc_id, text):
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as error:
            return make_reject(doc_id=doc_id, source=source, reason="lone-surrogate", detail=str(error))
    return Document(doc_id=doc_id, text=text)


def make_reject(*, source: str, reason: str, detail: str, doc_id: str = "") -> Reject:
    """A `Reject` whose texts can be stored: valid Unicode, and of bounded length."""
    return Reject(doc_id=_storable(doc_id), source=_storable(source), reason=reason, detail=_storable(detail))


def _storable(text: str) -> str:
    return text[:MAX_DETAIL_CHARACTERS].encode("utf-8", "backslashreplace").decode("utf-8")
