"""PubTator: `PMID|t|title`, `PMID|a|abstract`, annotations in tab-separated columns; a blank line ends a document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path

from preprocessing.document import Document, Reject
from preprocessing.sources.record import make_record, make_reject
from preprocessing.sources.stream import open_bytes, read_lines

_TEXT_LINE = re.compile(r"([^|\t]+)\|([ta])\|(.*)", re.DOTALL)
_CODE_SEPARATOR = re.compile(r"[|+]")
_MENTION_COLUMNS = 6
_OFFSET = re.compile(r"[0-9]{1,9}")
MAX_ANNOTATIONS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldMention:
    """A mention that a person marked.

    Attributes:
        start: first character in title + " " + abstract.
        end: one past the last character.
        text: the mention as the annotator saw it.
        codes: what it names, in the corpus's own codes without their "MESH:" prefix; empty where none was given (-1).
    """

    start: int
    end: int
    text: str
    codes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldDocument:
    """A document with the mentions that people marked in it."""

    doc_id: str
    text: str
    mentions: tuple[GoldMention, ...]


@dataclass(kw_only=True, slots=True)
class _Block:
    """The lines of one document as they are gathered; the first thing wrong with it is kept in `reject`."""

    source: str
    doc_id: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    annotations: list[str] = field(default_factory=list)
    reject: Reject | None = None


def read_pubtator(stream: BufferedIOBase, name: str) -> Iterator[Document | Reject]:
    """Read one record from each block of lines; gold annotations are left aside."""
    for block in _read_blocks(stream, name):
        yield _to_record(block)


def read_gold(path: Path) -> Iterator[GoldDocument | Reject]:
    """Read documents with their gold mentions; relation rows are passed over."""
    with open_bytes(path) as stream:
        for block in _read_blocks(stream, path.name):
            record = _to_record(block)
            if isinstance(record, Reject):
                yield record
            else:
                rows = [line.split("\t") for line in block.annotations]
                mentions = tuple(_to_mention(row) for row in rows if _is_mention(row))
                yield GoldDocument(doc_id=record.doc_id, text=record.text, mentions=mentions)


def _read_blocks(stream: BufferedIOBase, name: str) -> Iterator[_Block]:
    block: _Block | None = None
    for line in read_lines(stream, name):
        if isinstance(line, Reject):
            block = block or _Block(source=line.source)
            block.reject = block.reject or line
            continue
        if not line.text.strip():
            if block:
                yield block
            block = None
            continue
        source = f"{name}:{line.number}"
        text_line = _TEXT_LINE.fullmatch(line.text)
        # A title begins a document even where the blank line before it is missing.
        if block and text_line and text_line[2] == "t" and block.doc_id:
            yield block
            block = None
        block = block or _Block(source=source)
        _add_line(block, line.text, text_line, source)
    if block:
        yield block


def _add_line(block: _Block, line: str, text_line: re.Match[str] | None, source: str) -> None:
    if text_line:
        doc_id, kind, text = text_line.groups()
        if (block.doc_id and doc_id != block.doc_id) or kind in block.parts:
            detail = f"a second |{kind}| line or another id ({doc_id}) inside document {block.doc_id}"
            block.reject = block.reject or make_reject(
                doc_id=block.doc_id, source=source, reason="bad-pubtator", detail=detail
            )
        block.doc_id = block.doc_id or doc_id
        block.parts.setdefault(kind, text)
    elif "\t" not in line:
        detail = f"neither text nor annotation: {line[:80]!r}"
        block.reject = block.reject or make_reject(
            doc_id=block.doc_id, source=source, reason="bad-pubtator", detail=detail
        )
    elif len(block.annotations) < MAX_ANNOTATIONS:
        block.annotations.append(line)
    else:
        detail = f"more than {MAX_ANNOTATIONS} annotations"
        block.reject = block.reject or make_reject(
            doc_id=block.doc_id, source=source, reason="bad-pubtator", detail=detail
        )


def _to_record(block: _Block) -> Document | Reject:
    if block.reject:
        return block.reject
    title, abstract = block.parts.get("t", ""), block.parts.get("a", "")
    return make_record(doc_id=block.doc_id, source=block.source, title=title, abstract=abstract)


def _is_mention(row: list[str]) -> bool:
    return len(row) >= _MENTION_COLUMNS and all(_OFFSET.fullmatch(offset) for offset in row[1:3])


def _to_mention(row: list[str]) -> GoldMention:
    codes = (code.strip().removeprefix("MESH:").removeprefix("OMIM:") for code in _CODE_SEPARATOR.split(row[5]))
    known = tuple(dict.fromkeys(code for code in codes if code not in ("", "-1", "-")))
    return GoldMention(start=int(row[1]), end=int(row[2]), text=row[3], codes=known)
