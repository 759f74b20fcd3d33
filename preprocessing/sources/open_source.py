"""One door to every format: finds out what a file is, reads it, and accounts for every record."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from kebiolm.errors import UserError
from preprocessing.document import Document, Reject
from preprocessing.sources.jsonl import read_jsonl
from preprocessing.sources.pubmed_xml import read_pubmed_xml
from preprocessing.sources.pubmedds import read_pubmedds
from preprocessing.sources.pubtator import read_pubtator
from preprocessing.sources.record import make_reject
from preprocessing.sources.stream import UTF8_BOM, open_bytes

Reader = Callable[[BinaryIO, str], Iterator[Document | Reject]]

# What the first bytes look like decides; the name only where they say nothing (an empty or damaged beginning).
_BY_CONTENT: tuple[tuple[re.Pattern[bytes], Reader], ...] = (
    (re.compile(rb"<"), read_pubmed_xml),
    (re.compile(rb'\{[^\n]*"_id"\s*:'), read_pubmedds),
    (re.compile(rb"\{"), read_jsonl),
    (re.compile(rb"[^|\t\n]+\|[ta]\|"), read_pubtator),
)
_BY_SUFFIX: dict[str, Reader] = {
    ".xml": read_pubmed_xml,
    ".jsonl": read_jsonl,
    ".json": read_jsonl,
    ".ndjson": read_jsonl,
    ".txt": read_pubtator,
    ".pubtator": read_pubtator,
}
SUFFIXES = tuple(_BY_SUFFIX)

_UNREADABLE = (EOFError, OSError, zlib.error)
_PEEK_BYTES = 64 << 10


def open_source(path: Path) -> Iterator[Document | Reject]:
    """Read a file of abstracts, plain or gzip: PubMed XML, PubMedDS or plain JSON lines, PubTator.

    Yields:
        For each record of the file, in its order, one `Document` or one `Reject`. A second record with the same id is
        rejected ("duplicate-id"). A file that cannot be read to its end (a gzip stream cut short, a bad disk) gives
        what stands before the damage and one reject ("unreadable-rest"); one that holds nothing, "no-records".

    Raises:
        UserError: the file is missing, may not be read, or is of no known format.
    """
    reader = find_reader(path)
    records, seen = 0, set[str]()
    try:
        with open_bytes(path) as stream:
            for record in reader(stream, path.name):
                records += 1
                yield _refuse_duplicate(record, seen, path.name)
    except _UNREADABLE as error:
        detail = f"{type(error).__name__}: {error}; the rest is lost after {records} records"
        yield make_reject(source=path.name, reason="unreadable-rest", detail=detail)
        return
    if records == 0:
        yield make_reject(source=path.name, reason="no-records", detail="the file holds no record of its format")


def find_reader(path: Path) -> Reader:
    """Choose the reader of a file by its first bytes, else by its name.

    Raises:
        UserError: the file is missing, may not be read, or is of no known format.
    """
    mend = "give PubMed XML, PubMedDS or {id, text} JSON lines, or PubTator, plain or .gz"
    if not path.is_file():
        raise UserError(path, got="no such file", expected="a file of abstracts", mend=mend)
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise UserError(
            path, got=str(error), expected="a file that can be read", mend="check its permissions"
        ) from None
    start = b""
    try:
        with open_bytes(path) as stream:
            start = stream.read(_PEEK_BYTES).removeprefix(UTF8_BOM).lstrip()
    except _UNREADABLE:
        pass  # the name decides; reading will meet the same damage and account for it
    for pattern, reader in _BY_CONTENT:
        if pattern.match(start):
            return reader
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    raise UserError(path, got=f"{start[:40]!r}", expected="abstracts in a known format", mend=mend)


def _refuse_duplicate(record: Document | Reject, seen: set[str], name: str) -> Document | Reject:
    if isinstance(record, Reject):
        return record
    if record.doc_id in seen:
        detail = "a document with this id stands earlier in the file"
        return make_reject(doc_id=record.doc_id, source=name, reason="duplicate-id", detail=detail)
    seen.add(record.doc_id)
    return record
