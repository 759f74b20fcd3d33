"""Plain JSON lines: one object {"id": ..., "text": ...} on each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BufferedIOBase

from preprocessing.document import Document, Reject
from preprocessing.sources.record import make_record, make_reject
from preprocessing.sources.stream import read_lines


def read_jsonl(stream: BufferedIOBase, name: str, *, id_field: str = "id") -> Iterator[Document | Reject]:
    """Read one record from each line that is not blank.

    Args:
        stream: the file's bytes.
        name: file name, for rejects.
        id_field: the field that holds the id, a text or an integer.
    """
    for line in read_lines(stream, name):
        if isinstance(line, Reject):
            yield line
        elif line.text.strip():
            yield _parse(line.text, f"{name}:{line.number}", id_field)


def _parse(text: str, source: str, id_field: str) -> Document | Reject:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return make_reject(source=source, reason="bad-json", detail=f"{error}: {text[:80]!r}")
    if not isinstance(record, dict):
        return make_reject(source=source, reason="bad-json", detail=f"an object was expected, not {text[:80]!r}")
    doc_id, body = record.get(id_field), record.get("text")
    if not isinstance(doc_id, str | int) or isinstance(doc_id, bool):
        detail = f'"{id_field}" is not a text or an integer; fields: {sorted(record)}'
        return make_reject(source=source, reason="missing-field", detail=detail)
    if not isinstance(body, str):
        detail = f'"text" is not a text; fields: {sorted(record)}'
        return make_reject(doc_id=str(doc_id), source=source, reason="missing-field", detail=detail)
    return make_record(doc_id=str(doc_id), source=source, abstract=body)
