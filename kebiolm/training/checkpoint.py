"""Checkpoints that are complete or ignored.

DeepSpeed writes one folder per save and moves its `latest` file before the other ranks are done, so `latest` may name a
folder with a shard missing. Here a checkpoint counts only once every rank has put its files on disk and `complete.json`
lists the sizes and hashes of all of them; a run goes on from the newest one that still agrees with its list.

    OUTPUT/checkpoints/step-00000200/
        mp_rank_00_model_states.pt, zero_pp_rank_*_optim_states.pt    DeepSpeed's files
        model/           config.json, training.json, tokenizer files, entity_vocab.tsv: what `kebiolm export` needs
        complete.json    written last; called damaged.json once a file was found to differ from it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.markup import escape

from kebiolm.console import error_console
from kebiolm.errors import UserError
from kebiolm.files import describe_file, fsync_path, verify_file, write_json
from kebiolm.training.distributed import run_on_first_process
from kebiolm.training.shard_files import MEND_FULL, save_shards, wait_until_visible, words_of_size

MARKER = "complete.json"
DAMAGED = "damaged.json"
MODEL_FOLDER = "model"
_FORMAT = {"format": "kebiolm-checkpoint", "version": 1}
_MEND = "use an older checkpoint"


def save_checkpoint(
    engine: Any, checkpoints: Path, step: int, *, keep: int, write_model_files: Callable[[Path], None]
) -> Path:
    """Save the engine's state after `step` optimizer steps; every rank must call this.

    Args:
        engine: a DeepSpeed engine.
        checkpoints: folder of all checkpoints of the run; all ranks share it.
        step: optimizer steps done so far.
        keep: newest complete checkpoints to keep; older ones are removed once this one is complete.
        write_model_files: writes configuration, tokenizer and vocabulary into the folder it is given (rank 0 only).

    Raises:
        UserError: on every rank, if some rank could not write its files; the disk is full, as a rule.
    """
    folder = checkpoints / f"step-{step:08d}"

    def begin() -> None:
        _make_room(checkpoints, folder)
        folder.mkdir(parents=True)
        write_model_files(folder / MODEL_FOLDER)

    def end() -> None:
        wait_until_visible(folder, written)
        _mark_complete(folder, step, dist.get_world_size())
        _remove_older(checkpoints, step, keep)

    run_on_first_process(begin)
    written = save_shards(engine, folder, step)
    run_on_first_process(end)
    return folder


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Folders of the checkpoints that were completed and not found damaged since, oldest first."""
    return sorted(marker.parent for marker in checkpoints.glob(f"step-*/{MARKER}"))


def newest_whole_checkpoint(checkpoints: Path) -> Path | None:
    """The newest checkpoint whose every byte agrees with its list; damaged ones before it are marked as such.

    Returns:
        None where no checkpoint was ever completed.

    Raises:
        UserError: there were complete checkpoints, and every one of them is damaged.
    """
    for folder in reversed(complete_checkpoints(checkpoints)):
        try:
            _verify(folder)
        except (UserError, OSError) as error:
            error_console.print("[yellow]passing over a damaged checkpoint:[/]", escape(str(error)), soft_wrap=True)
            # Marked, so that it does not count among those to keep; a disk that cannot be read may be mended.
            if isinstance(error, UserError):
                (folder / MARKER).rename(folder / DAMAGED)
        else:
            return folder
    if damaged := sorted(checkpoints.glob(f"step-*/{DAMAGED}")):
        raise UserError(
            checkpoints,
            got=f"no whole checkpoint, {len(damaged)} damaged",
            expected="at least one whole, because a run must not start over unseen",
            mend="restore one from a copy, or remove this folder to start from step 0",
        )
    return None


def find_checkpoint(path: Path) -> Path:
    """The complete checkpoint at `path`, or the newest whole one of the run at `path`.

    Raises:
        UserError: there is none that agrees with its list of files.
    """
    mend = "give a folder such as OUTPUT/checkpoints/step-00000200 or the OUTPUT folder of a run that saved one"
    if not path.is_dir():
        raise UserError(path, got="no such folder", expected="a checkpoint", mend=mend)
    if (path / MARKER).is_file():
        _verify(path)
        return path
    found = complete_checkpoints(path / "checkpoints")
    if not found:
        raise UserError(path, got="no complete checkpoint", expected=f"a folder with {MARKER}", mend=mend)
    for folder in reversed(found):
        try:
            _verify(folder)
        except UserError as error:
            # Not marked as damaged: a job may be at work on the run.
            if folder == found[0]:
                raise
            error_console.print("[yellow]passing over a damaged checkpoint:[/]", escape(str(error)), soft_wrap=True)
        else:
            break
    return folder


def read_marker(folder: Path) -> dict[str, Any]:
    """What a complete checkpoint says of itself: "step", "world_size" and "files".

    Raises:
        UserError: it is not a complete checkpoint.
    """
    path = folder / MARKER
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(path, got=str(error), expected="a JSON list of files", mend=_MEND) from None
    if not isinstance(marker, dict) or {key: marker.get(key) for key in _FORMAT} != _FORMAT:
        raise UserError(path, got="another format", expected=str(_FORMAT), mend=_MEND)
    return marker


def _make_room(checkpoints: Path, folder: Path) -> None:
    """Remove what interrupted saves left, and see whether a checkpoint as large as the newest one fits.

    Raises:
        UserError: it does not.
    """
    _remove(folder)
    for left in checkpoints.glob("step-*"):
        if _is_unfinished(left):
            _remove(left)
    needed = 0
    for newest in complete_checkpoints(checkpoints)[-1:]:
        needed = sum(recorded["bytes"] for recorded in read_marker(newest)["files"].values())
    free = shutil.disk_usage(checkpoints).free if checkpoints.is_dir() else needed
    if free < needed:
        raise UserError(
            checkpoints,
            got=f"a disk with {words_of_size(free)} free",
            expected=f"room for {folder.name}, at least the {words_of_size(needed)} of the checkpoint before",
            mend=MEND_FULL,
        )


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _is_unfinished(folder: Path) -> bool:
    return not (folder / MARKER).is_file() and not (folder / DAMAGED).is_file()


def _mark_complete(folder: Path, step: int, world_size: int) -> None:
    described = {}
    for file in _files(folder):
        fsync_path(file)
        described[str(file.relative_to(folder))] = describe_file(file)
    _check_shards(folder, described, world_size)
    # The names of the files too, before the marker that says that they are there.
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder, folder.parent):
        fsync_path(path)
    write_json(folder / MARKER, _FORMAT | {"step": step, "world_size": world_size, "files": described})


def _check_shards(folder: Path, names: Iterable[str], world_size: int) -> None:
    """Refuse a list of files without one optimizer shard of every process.

    Raises:
        UserError: there are more or fewer.
    """
    shards = sum(name.endswith("_optim_states.pt") for name in names)
    if shards != world_size:
        raise UserError(folder, got=f"{shards} optimizer shards", expected=f"{world_size}, one a process", mend=_MEND)


def _remove_older(checkpoints: Path, step: int, keep: int) -> None:
    """Remove what lies before the `keep` newest whole checkpoints, and unfinished ones before `step`.

    Only checkpoints whose files still have their sizes count as whole, so the last good ones stay however many newer
    ones are cut short. (Their bytes are compared when a run goes on: to read all of them at every save costs too much.)
    """
    newest = f"step-{step:08d}"
    earlier = [folder for folder in sorted(checkpoints.glob("step-*")) if folder.name <= newest]
    whole = [folder.name for folder in earlier if _has_its_sizes(folder)]
    oldest_kept = whole[-keep:][0] if whole else earlier[0].name
    for folder in earlier:
        if folder.name < oldest_kept or _is_unfinished(folder):
            _remove(folder)


def _has_its_sizes(folder: Path) -> bool:
    try:
        _verify(folder, check_hash=False)
    except UserError:
        return False
    return True


def _remove(folder: Path) -> None:
    # The marker goes first: a removal cut short must not leave a folder that looks complete.
    if (folder / MARKER).is_file():
        (folder / MARKER).unlink()
        fsync_path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _verify(folder: Path, *, check_hash: bool = True) -> None:
    marker = read_marker(folder)
    _check_shards(folder, marker["files"], marker["world_size"])
    for name, recorded in marker["files"].items():
        verify_file(folder, name, recorded, mend=_MEND, check_hash=check_hash)
