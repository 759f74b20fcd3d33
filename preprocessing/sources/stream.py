"""Bytes and lines of a file, compressed or not, without trusting what it holds."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from preprocessing.document import Reject

GZIP_MAGIC = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"

# PubMed's own files expand about 10:1. A stream that expands 200:1 is not text but an attack or an accident; the first
# 64 MiB are let through so that a short, repetitive file passes.
MAX_EXPANSION = 200
EXPANSION_FREE_BYTES = 64 << 20

MAX_LINE_BYTES = 16 << 20


class CompressionBombError(OSError):
    """A gzip stream expands beyond any real text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A decoded line without its end; `number` counts from 1."""

    number: int
    text: str


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading, through gzip where its first bytes say so (the name does not matter)."""
    with open(path, "rb") as file:
        if file.peek(2)[:2] != GZIP_MAGIC:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked, io.BufferedReader(_BoundedGzip(unpacked, file)) as bounded:
            yield bounded


def read_lines(stream: io.BufferedIOBase, name: str) -> Iterator[Line | Reject]:
    """Split a stream at line feeds and decode each line by itself, so that one bad line costs one line.

    Yields:
        A `Line`, or a `Reject` for a line that is not UTF-8 ("invalid-utf8") or longer than 16 MiB ("line-too-long").
    """
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES):
        number += 1
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            detail = f"more than {MAX_LINE_BYTES} bytes without a line feed"
            yield Reject(doc_id="", source=f"{name}:{number}", reason="line-too-long", detail=detail)
            continue
        if number == 1:
            raw = raw.removeprefix(UTF8_BOM)
        try:
            yield Line(number=number, text=raw.decode("utf-8").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            yield Reject(doc_id="", source=f"{name}:{number}", reason="invalid-utf8", detail=str(error))


class _BoundedGzip(io.RawIOBase):
    """Reads from a gzip stream and raises once it has expanded too far."""

    def __init__(self, unpacked: gzip.GzipFile, packed: BinaryIO) -> None:
        self._unpacked, self._packed, self._bytes = unpacked, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        # read1 returns what is there before it meets damage; readinto would lose it with the exception.
        data = self._unpacked.read1(len(buffer))
        buffer[: len(data)] = data
        self._bytes += len(data)
        if self._bytes > EXPANSION_FREE_BYTES + MAX_EXPANSION * self._packed.tell():
            raise CompressionBombError(f"a gzip stream expands more than {MAX_EXPANSION}:1")
        return len(data)
