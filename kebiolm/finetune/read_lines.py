"""A data file as lines of text: encoding, byte order mark and line ends are settled here, once."""

from __future__ import annotations

import codecs
from pathlib import Path

from kebiolm.errors import UserError
from kebiolm.finetune.counted_warnings import CountedWarnings

_MEND_ENCODING = "save it as UTF-8, for example with iconv -t UTF-8; unpack it first if it is compressed"


def read_lines(path: Path, warnings: CountedWarnings) -> list[str]:
    """Read a UTF-8 file; line n of the file is element n - 1, without its line end.

    Only line feeds end lines: characters such as U+2028 or U+0085, at which `str.splitlines` also breaks, occur in
    sentences of PubMed.

    Args:
        path: the file.
        warnings: counts a byte order mark and Windows line ends, which are taken off.

    Raises:
        UserError: the file is absent, unreadable or not UTF-8, or a line holds a carriage return that is no line end.
    """
    content = _read_bytes(path)
    if content.startswith(codecs.BOM_UTF8):
        content = content.removeprefix(codecs.BOM_UTF8)
        warnings.add("byte order marks, dropped", path)
    # UTF-16 can be valid UTF-8, but then it is full of NUL.
    nul = content.find(b"\0")
    if nul >= 0:
        _refuse(path, content, nul)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(path, content, error.start)
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    stripped = [line.removesuffix("\r") for line in lines]
    windows_ends = sum(before != after for before, after in zip(lines, stripped, strict=True))
    warnings.add("lines with Windows line ends, read as usual", path, windows_ends)
    for number, line in enumerate(stripped, 1):
        if "\r" in line:
            mend = "write line feeds as line ends"
            raise UserError(f"{path}:{number}", got="a carriage return inside the line", expected="none", mend=mend)
    return stripped


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        beside = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else None
        got = "no such folder" if beside is None else f"no such file; its folder has {', '.join(beside) or 'no file'}"
        mend = "correct the folder, or name the file under task.files"
        raise UserError(path, got=got, expected="a data file", mend=mend) from None
    except OSError as error:
        raise UserError(path, got=error.strerror, expected="a readable file", mend="check the path") from None


def _refuse(path: Path, content: bytes, position: int) -> None:
    line = content.count(b"\n", 0, position) + 1
    got = f"the byte 0x{content[position]:02x}, which is not UTF-8 text"
    raise UserError(f"{path}:{line}", got=got, expected="a UTF-8 file", mend=_MEND_ENCODING)
