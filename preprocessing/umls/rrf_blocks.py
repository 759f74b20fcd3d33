"""The bytes of an RRF table as blocks of whole lines, from one file or several parts, hashed while they are read."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kebiolm.errors import UserError

_BLOCK_BYTES = 4 << 20
_LONGEST_LINE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some whole lines of a table."""

    part: Path
    """The file in which the last of these lines ends."""
    starts_part: bool
    """Whether the first of these lines is the first of `part`."""
    data: memoryview


class _HashedFile(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, path: Path) -> None:
        self._file, self._digest, self._size = open(path, "rb", buffering=0), hashlib.sha256(), 0  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        size = self._file.readinto(buffer)
        self._digest.update(memoryview(buffer)[:size])
        self._size += size
        return size

    def close(self) -> None:
        self._file.close()
        super().close()

    def describe(self) -> dict[str, Any]:
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}


def read_blocks(parts: Sequence[Path], described: list[dict[str, Any]]) -> Iterator[Block]:
    """Stream a table in file order.

    Parts were cut by bytes, not by lines: a line that begins in one part and ends in the next counts as the first of
    the next.

    Args:
        parts: the files of the table, plain or .gz.
        described: gets {"file", "bytes", "sha256"} of each file, as it lies on disk, once it is read to its end.

    Yields:
        Blocks of about 4 MB.

    Raises:
        UserError: a file cannot be read to its end, or has a line of more than 64 MB.
    """
    cut_line = b""
    for part in parts:
        starts_part, is_end = True, False
        try:
            with _HashedFile(part) as file, _unpacked(file, part) as stream:
                while not is_end:
                    buffer = bytearray(len(cut_line) + _BLOCK_BYTES)
                    data = memoryview(buffer)
                    data[: len(cut_line)] = cut_line
                    size = len(cut_line) + stream.readinto(data[len(cut_line) :])
                    is_end = size < len(data)
                    end = size if is_end and part == parts[-1] else buffer.rfind(b"\n", 0, size) + 1
                    cut_line = bytes(data[end:size])
                    if len(cut_line) > _LONGEST_LINE_BYTES:
                        raise OSError(f"a line of more than {_LONGEST_LINE_BYTES >> 20} MB")
                    if end:
                        yield Block(part=part, starts_part=starts_part, data=data[:end])
                        starts_part = False
                described.append({"file": part.name} | file.describe())
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(
                part,
                got=f"a file that cannot be read to its end ({error})",
                expected="rows of fields that each end with '|'",
                mend="extract or download the file again",
            ) from None


def _unpacked(file: _HashedFile, path: Path) -> BinaryIO:
    return gzip.GzipFile(fileobj=file, mode="rb") if path.suffix == ".gz" else io.BufferedReader(file)
