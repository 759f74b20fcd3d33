"""The files that the processes put into a checkpoint: written by each, seen by all, or refused by all in one line."""

from __future__ import annotations

import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from kebiolm.errors import UserError
from kebiolm.files import fsync_path

MEND_FULL = "make room and start the same command again: it goes on from the last checkpoint"
VISIBLE_AFTER_S = 120.0
"""How long a file of another host may take to appear here; NFS keeps a folder's names for up to a minute."""
_POLL_S = 0.5
# torch's writer has no class of its own for a refused write, and no words of the system's reason.
_WORDS_OF_THE_WRITER = re.compile(r"inline_container|PytorchStreamWriter|Parent directory")


def save_shards(engine: Any, folder: Path, step: int) -> dict[str, int]:
    """Let every rank write its shards and put them on disk.

    Returns:
        Names and sizes in bytes of the files that all ranks have written.

    Raises:
        UserError: on every rank, if one of them could not write.
    """
    mine: list[Path] = []
    problem: str | None = None
    saver = engine.checkpoint_engine
    write = saver.save

    def save(state_dict: Any, path: str) -> None:
        nonlocal problem
        mine.append(Path(path))
        try:
            write(state_dict, path)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _WORDS_OF_THE_WRITER.search(str(error)):
                raise
            # Kept until all ranks are done: those that can write would wait for this one in a later collective.
            problem = problem or _words(path, error)

    saver.save = save
    # DeepSpeed would also copy its scripts there, which `save` does not see; `kebiolm export` does their work.
    engine._copy_recovery_script = lambda _: None
    try:
        engine.save_checkpoint(str(folder.parent), tag=folder.name, client_state={"step": step}, save_latest=False)
    finally:
        saver.save = write
    sizes = {}
    try:
        # Each rank what it wrote itself: on a shared file system one host cannot flush what another still holds.
        for file in mine if problem is None else []:
            fsync_path(file)
            sizes[file.name] = file.stat().st_size
    except OSError as error:
        problem = _words(file, error)
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (problem, sizes))
    problems = [problem for problem, _ in told if problem is not None]
    if problems:
        free = shutil.disk_usage(folder.parent).free
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)  # the half of a checkpoint is of no use and takes the room
        raise UserError(
            folder,
            got=f"a file that cannot be written ({problems[0]}; {words_of_size(free)} free)",
            expected="room for the whole checkpoint",
            mend=MEND_FULL,
        )
    return {name: size for _, of_rank in told for name, size in of_rank.items()}


def wait_until_visible(folder: Path, written: dict[str, int]) -> None:
    """Return when this host sees the files of all hosts; network file systems show new names and sizes late.

    Raises:
        UserError: a file is not there, or has another size, after `VISIBLE_AFTER_S`.
    """
    deadline = time.monotonic() + VISIBLE_AFTER_S
    for name, size in sorted(written.items()):
        while not (folder / name).is_file() or (folder / name).stat().st_size != size:
            if time.monotonic() > deadline:
                raise UserError(
                    folder / name,
                    got=f"no such file of {size} bytes on {socket.gethostname()} after {VISIBLE_AFTER_S:.0f} s",
                    expected="one that another process has written",
                    mend="put the output folder on a file system that all hosts share",
                )
            time.sleep(_POLL_S)


def words_of_size(size: int) -> str:
    """A number of bytes for a message."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _words(path: Path | str, error: Exception) -> str:
    """What could not be written, in one line, with the process that met it."""
    reason = getattr(error, "strerror", None) or "torch could not write it whole"
    return f"{Path(path).name}, process {dist.get_rank()} on {socket.gethostname()}: {reason}"
