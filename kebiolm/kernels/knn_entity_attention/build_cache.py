"""Compiled kernels in a cache folder: each is made once for a machine, by one of the processes that need it."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

CACHE_VARIABLE = "KEBIOLM_CACHE"
TIMEOUT_S = 300
"""For waiting for another process that builds."""
SILENT_S = 1
"""So long a wait for another process needs no word."""


class BuildError(Exception):
    """A kernel cannot be had on this machine; says why in one line."""


def cache_folder() -> Path:
    """$KEBIOLM_CACHE, or kebiolm/ in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache)."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kebiolm"


def hash_of(parts: Iterable[bytes]) -> str:
    """A short name for all that a compiled file depends on; the same parts give the same name."""
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:20]


def build_once(name: str, what: str, make: Callable[[Path], None]) -> Path:
    """Return the path of a file in the cache, making it where it is not there yet.

    Processes that need it at the same time wait for one of them. The lock is the kernel's (flock): it goes with the
    process that holds it, so a killed build leaves none behind.

    Args:
        name: of the file; says all that its content depends on.
        what: is built, for the progress line.
        make: writes the content to the path it is given.

    Raises:
        BuildError: the cache folder cannot be written, or another process that builds does not come to an end.
    """
    try:
        path = cache_folder() / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_locked(path, what, make)
    except (OSError, RuntimeError, ImportError) as error:
        # RuntimeError: no home folder is known; ImportError: a system without flock.
        raise BuildError(f"{type(error).__name__}: {error}") from error
    return path


def _make_locked(path: Path, what: str, make: Callable[[Path], None]) -> None:
    lock_file = path.with_suffix(".lock")
    with open(lock_file, "w") as lock:
        _wait_for_lock(lock.fileno(), lock_file)
        if path.exists():
            return
        _say(f"building {what}, once for this machine (some seconds)")
        # Under the lock nobody else builds: what lies here was left by a build that was killed.
        for leftover in path.parent.glob(f"{path.stem}.*.tmp"):
            leftover.unlink(missing_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
        os.close(handle)
        try:
            make(Path(temporary))
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def _wait_for_lock(descriptor: int, lock_file: Path) -> None:
    import fcntl

    started, told = time.monotonic(), False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - started
            # Its holder hangs, or a network file system keeps the lock of a machine that is gone.
            if waited > TIMEOUT_S:
                raise BuildError(
                    f"another process has held {lock_file} for {TIMEOUT_S} s: end it (fuser names it), or let "
                    f"{CACHE_VARIABLE} name a folder on a local disk"
                ) from None
            if waited > SILENT_S and not told:
                told = True
                _say(f"waiting for another process that builds the same, at most {TIMEOUT_S} s (it holds {lock_file})")
            time.sleep(0.1)


def _say(line: str) -> None:
    print(f"kebiolm: {line}", file=sys.stderr, flush=True)
