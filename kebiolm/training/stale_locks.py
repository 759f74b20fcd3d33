"""Lock files that a killed build of a DeepSpeed or torch extension left, and on which every later run would wait.

`torch.utils.cpp_extension.load`, which DeepSpeed builds its operators with, makes a file `lock` in the build folder and
removes it at the end; whoever finds the file waits until it is gone, without a limit. The builder keeps the file open
(`torch/utils/file_baton.py`) and its compilers work in the folder, so a lock is stale if no process does either. The
processes of other hosts and containers cannot be seen from here: where those could share the folder, a lock must also
have been left alone for half an hour.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

QUIET_S = 30 * 60
"""Age of the last change, in seconds, from which a lock in a shared folder counts as left. One file of an operator
compiles for minutes at most."""

_LONGEST_ORPHAN_S = 10 * 60
_LOCAL_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs"})
# The number that Linux gives to the process namespace of the host itself (PROC_PID_INIT_INO in its sources).
_HOST_PROCESSES = "pid:[4026531836]"


def extension_cache() -> Path:
    """The folder that torch builds extensions in: TORCH_EXTENSIONS_DIR, or one in the user's cache."""
    if named := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(named)
    from torch.utils.cpp_extension import get_default_build_root

    return Path(get_default_build_root())


def remove_stale_locks(cache: Path, say: Callable[[str], None], *, shared: bool | None = None) -> list[Path]:
    """Remove the locks in `cache` whose builder is gone; call it before any process of the job builds.

    Args:
        cache: what `extension_cache` returns.
        say: is given one line per lock that was found.
        shared: whether processes that cannot be seen from here may build there too; None finds it out.

    Returns:
        The locks that were removed.
    """
    locks = sorted([*cache.glob("*/lock"), *cache.glob("*/*/lock")])
    if locks and shared is None:
        shared = _may_be_shared(cache)
    return [lock for lock in locks if _is_stale(lock, bool(shared), say) and _remove(lock, say)]


def _is_stale(lock: Path, shared: bool, say: Callable[[str], None]) -> bool:
    builder, compilers = _users(lock)
    if builder is None and compilers:
        say(f"{lock}: its builder was killed, its compilers still run; waiting for them")
        deadline = time.monotonic() + _LONGEST_ORPHAN_S
        while compilers and time.monotonic() < deadline:
            time.sleep(0.5)
            builder, compilers = _users(lock)
    if builder is not None or compilers:
        say(f"{lock}: process {builder or compilers[0]} is building; who needs the extension waits for it")
        return False
    quiet_s = _quiet_seconds(lock.parent)
    if quiet_s is None:
        return False
    if shared and quiet_s < QUIET_S:
        say(
            f"{lock}: changed {quiet_s:.0f} s ago, another host may be building; "
            f"if none is, remove the file, or this run waits for it"
        )
        return False
    return True


def _remove(lock: Path, say: Callable[[str], None]) -> bool:
    try:
        lock.unlink()
    except FileNotFoundError:
        return False  # another process of the job was quicker
    except OSError as error:
        say(f"{lock}: left by a build that was killed, and it cannot be removed ({error.strerror}); remove it by hand")
        return False
    say(f"{lock}: left by a build that was killed; removed")
    return True


def _users(lock: Path) -> tuple[int | None, list[int]]:
    """Process ids: of the builder, which has the lock open, and of the compilers that work in its folder."""
    builder, compilers = None, []
    folder, file = str(lock.parent.resolve()), str(lock.resolve())
    for process in psutil.process_iter():
        try:
            if process.cwd() == folder:
                compilers.append(process.pid)
            if any(opened.path == file for opened in process.open_files()):
                builder = process.pid
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's: that user's builds lie in another cache
    return builder, compilers


def _quiet_seconds(folder: Path) -> float | None:
    """Seconds since anything in the build folder changed; None if the folder or its lock is gone meanwhile."""
    try:
        newest = max(path.stat().st_mtime for path in [folder, folder / "lock", *folder.iterdir()])
    except FileNotFoundError:
        return None
    return time.time() - newest


def _may_be_shared(cache: Path) -> bool:
    """Whether the folder lies on a network file system, or this is a container, whose neighbours cannot be seen."""
    if os.readlink("/proc/self/ns/pid") != _HOST_PROCESSES:
        return True
    place = cache.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    nearest = next(folder for folder in (place, *place.parents) if folder in mounts or folder == folder.parent)
    return mounts.get(nearest) not in _LOCAL_FILE_SYSTEMS
