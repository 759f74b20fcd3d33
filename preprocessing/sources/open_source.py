"""One door to every format: finds out what a file is, reads it, and accounts for every record."""

from __future__ import annotations

import re
import stat
import zlib
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path

from kebiolm.errors import UserError
from preprocessing.document import Document, Reject
from preprocessing.sources.jsonl import read_jsonl
from preprocessing.sources.pubmed_xml import read_pubmed_xml
from preprocessing.sources.pubmedds import read_pubmedds
from preprocessing.sources.pubtator import read_pubtator
from preprocessing.sources.record import make_reject
from preprocessing.sources.stream import GZIP_MAGIC, UTF8_BOM, open_bytes

Reader = Callable[[BufferedIOBase, str], Iterator[Document | Reject]]

# What the first bytes look like decides; the name only where they say nothing (an empty or damaged beginning).
_BY_CONTENT: tuple[tuple[re.Pattern[bytes], Reader], ...] = (
    (re.compile(rb"<|\xff\xfe<\x00|\xfe\xff\x00<"), read_pubmed_xml),
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

# Files that hold abstracts in a way that no reader takes: what they are, and how a user gets at the abstracts.
_REFUSED: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(rb"PK\x03\x04"), "a zip archive", "unpack it"),
    (re.compile(rb"BZh[1-9]1AY&SY"), "a bzip2 file", "unpack it, or pack it with gzip"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "a zstandard file", "unpack it, or pack it with gzip"),
    (re.compile(rb"\xfd7zXZ\x00"), "an xz file", "unpack it, or pack it with gzip"),
    (re.compile(re.escape(GZIP_MAGIC)), "gzip inside gzip", "unpack it once"),
    (re.compile(rb"\[|\{\s*[\r\n]"), "JSON over several lines", "write one object on each line, as `jq -c` does"),
)

_UNREADABLE = (EOFError, OSError, zlib.error)
_PEEK_BYTES = 64 << 10
_KNOWN = "a known format: PubMed XML, PubMedDS or {id, text} JSON lines, or PubTator, plain or .gz"


def open_source(path: Path) -> Iterator[Document | Reject]:
    """Read a file of abstracts, plain or gzip: PubMed XML, PubMedDS or plain JSON lines, PubTator.

    Yields:
        For each record of the file, in its order, one `Document` or one `Reject`; ids may repeat. A file that is
        damaged (a gzip stream cut short) gives what stands before the damage and one reject ("unreadable-rest"); one
        that holds nothing, "no-records".

    Raises:
        UserError: the file is missing, may not be read, or is of no known format.
        OSError: the disk or the network failed while the file was read; what is lost may come back.
    """
    reader = find_reader(path)
    records = 0
    try:
        with open_bytes(path) as stream:
            for record in reader(stream, path.name):
                records += 1
                yield record
    except _UNREADABLE as error:
        if _is_of_the_system(error):
            raise
        detail = f"{type(error).__name__}: {error}; the rest is lost after {records} records"
        yield make_reject(source=path.name, reason="unreadable-rest", detail=detail)
        return
    if records == 0:
        yield make_reject(source=path.name, reason="no-records", detail="the file holds no record of its format")


def find_reader(path: Path) -> Reader:
    """Choose the reader of a file by its first bytes, else by its name.

    Raises:
        UserError: the file is missing, may not be read, has a name that is not UTF-8, or is of no known format.
    """
    _check_file(path)
    start = b""
    try:
        with open_bytes(path) as stream:
            start = stream.read(_PEEK_BYTES).removeprefix(UTF8_BOM).lstrip()
    except _UNREADABLE as error:
        if _is_of_the_system(error):
            mend = "check the disk, and give the file again"
            raise UserError(path, got=error, expected="a file that can be read", mend=mend) from None
        # the name decides; reading will meet the same damage and account for it
    for pattern, got, mend in _REFUSED:
        if pattern.match(start):
            raise UserError(path, got=got, expected=_KNOWN, mend=mend)
    for pattern, reader in _BY_CONTENT:
        if pattern.match(start):
            return reader
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    got = f"a file that begins with {start[:40]!r}" if start else "a file that holds nothing"
    raise UserError(path, got=got, expected=_KNOWN, mend="convert it, or rename it to end in .xml, .jsonl or .txt")


def _is_of_the_system(error: Exception) -> bool:
    """Whether the disk or the network failed, not the file: gzip's errors about its content have no number."""
    return isinstance(error, OSError) and error.errno is not None


def _check_file(path: Path) -> None:
    """Refuse what is no plain file, cannot be opened, or has a name that no manifest could hold."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISREG(kind):
            path.resolve().name.encode("utf-8")
            with open(path, "rb"):
                return
        got = "a folder" if stat.S_ISDIR(kind) else "a pipe, a device or a socket"
    except FileNotFoundError:
        got = "no such file"
    except UnicodeEncodeError:
        got, expected = "a file name that is not UTF-8", "a name that a manifest can hold"
        raise UserError(ascii(str(path)), got=got, expected=expected, mend="rename the file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        got = f"{type(error).__name__}: {error}"
        raise UserError(path, got=got, expected="a file that can be read", mend="check its permissions") from None
    raise UserError(path, got=got, expected="a file of abstracts", mend="give its path")
