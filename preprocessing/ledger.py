"""A job's folder as a ledger: what the job is, who works on it, and whether it is still the same job.

A job's folder begins with `job.json`, which names everything that decides the output (settings, models, the inputs'
bytes). A rerun goes on where the job stopped, and is refused when anything of that has changed, because old and new
parts must not be mixed. The driver holds the folder for itself while it works: a second one would take the first one's
unfinished parts for leftovers.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape

from kebiolm.console import error_console
from kebiolm.errors import UserError
from kebiolm.files import check_apart, write_json

JOB_FILE = "job.json"
LOCK_FILE = ".lock"

# What a file system answers that has no locks, such as some cluster file systems as they are often mounted.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def open_ledger(out: Path, described: dict[str, Any], *, inputs: Sequence[Path], overwrite: bool) -> Iterator[None]:
    """Begin a job's folder, or take up one that was interrupted; hold it for this process until the block ends.

    Files that an interrupted write left behind are removed.

    Args:
        out: the folder.
        described: everything that decides the output's bytes, with "format" and "version"; no paths and no times.
        inputs: files and folders that the job reads; `out` must lie apart from them.
        overwrite: begin anew, whatever an earlier job of this format left in the folder.

    Raises:
        UserError: the folder holds something else, or the result of another job (says what differs); or another
            process holds it.
    """
    check_apart(out, inputs)
    _check_folder(out, described, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    with _hold(out):
        # Until it was held, another process may have put anything there.
        _check_folder(out, described, overwrite=overwrite)
        # `job.json` last: killed in between, the folder is still known for one of this job's format.
        for file in sorted(_other_files(out), key=lambda file: file.name == JOB_FILE):
            if overwrite or _is_unfinished(file):
                _remove(file)
        write_json(out / JOB_FILE, described)
        yield


def remove_unfinished(out: Path) -> None:
    """Remove what a killed worker left half-written; nobody writes to the folder any more."""
    for file in _other_files(out):
        if _is_unfinished(file):
            _remove(file)


def read_ledger(out: Path, kind: str) -> dict[str, Any] | None:
    """What `job.json` of a folder says; None where it is absent, unreadable, or of another format than `kind`."""
    try:
        ledger = json.loads((out / JOB_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return ledger if isinstance(ledger, dict) and ledger.get("format") == kind else None


def _check_folder(out: Path, described: dict[str, Any], *, overwrite: bool) -> None:
    """Refuse a folder that is not ours, and, unless it is to be replaced, one of another job."""
    if out.exists() and not out.is_dir():
        raise UserError(out, got="a file", expected="a folder", mend="choose another --out")
    former = read_ledger(out, described["format"])
    if former is None and out.is_dir() and not all(map(_is_unfinished, _other_files(out))):
        got = f"a folder with other files and no {JOB_FILE} of this command"
        raise UserError(out, got=got, expected="a new or empty folder", mend="choose another --out")
    if former not in (None, described) and not overwrite:
        raise UserError(
            out,
            got="the result of another job: " + "; ".join(_differences(former, described)),
            expected="the same settings and inputs as before",
            mend="choose another --out or give --overwrite",
        )


def _other_files(out: Path) -> list[Path]:
    """What the folder holds beside the lock."""
    return sorted(file for file in out.iterdir() if file.name != LOCK_FILE)


def _remove(path: Path) -> None:
    """Remove a file or a folder; a worker of a killed driver may still rename or write something there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_unfinished(file: Path) -> bool:
    """Whether a file or folder is one that `kebiolm.files` was writing."""
    return file.name.startswith(".") and file.suffix == ".tmp"


@contextmanager
def _hold(out: Path) -> Iterator[None]:
    """Keep other drivers out of a folder; the lock ends with this process, however it ends, and its file stays."""
    with open(out / LOCK_FILE, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            got = "a folder in which another such command is running"
            mend = "wait until it ends or choose another --out"
            raise UserError(out, got=got, expected="a folder that nobody writes to", mend=mend) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            said = "[yellow]this file system has no locks:[/] start one such command at a time in"
            error_console.print(f"{said} {escape(str(out))}")
        yield


def _differences(former: Any, now: Any, name: str = "") -> list[str]:
    """What changed between two JSON values, each as "name: former -> now"."""
    if former == now:
        return []
    if isinstance(former, dict) and isinstance(now, dict):
        keys = sorted(former.keys() | now.keys())
        return [
            text for key in keys for text in _differences(former.get(key), now.get(key), f"{name}.{key}".strip("."))
        ]
    if isinstance(former, list) and isinstance(now, list):
        if len(former) != len(now):
            return [f"{name}: {len(former)} -> {len(now)} of them"]
        pairs = enumerate(zip(former, now, strict=True))
        return [text for place, (one, other) in pairs for text in _differences(one, other, f"{name}[{place}]")]
    return [f"{name}: {_shorten(former)} -> {_shorten(now)}"]


def _shorten(value: Any, length: int = 40) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[:12]}..."
