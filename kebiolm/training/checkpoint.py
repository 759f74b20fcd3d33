"""Checkpoints that are complete or ignored.

DeepSpeed writes one folder per save and moves its `latest` file before the other ranks are done, so `latest` may name a
folder with a shard missing. Here a checkpoint counts only once every rank has written, every file is on disk and
`complete.json` lists their sizes and hashes; resuming takes the newest one that still agrees with its list.

    OUTPUT/checkpoints/step-00000200/
        mp_rank_00_model_states.pt, zero_pp_rank_*_optim_states.pt    DeepSpeed's files
        model/           config.json, training.json, tokenizer files, entity_vocab.tsv: what `kebiolm export` needs
        complete.json    written last
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from kebiolm.console import error_console
from kebiolm.errors import UserError
from kebiolm.files import describe_file, verify_file, write_json

MARKER = "complete.json"
MODEL_FOLDER = "model"
_FORMAT = {"format": "kebiolm-checkpoint", "version": 1}


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
    """
    folder = checkpoints / f"step-{step:08d}"
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # what an earlier, interrupted save left
        folder.mkdir(parents=True)
        write_model_files(folder / MODEL_FOLDER)
    dist.barrier()
    engine.save_checkpoint(str(checkpoints), tag=folder.name, client_state={"step": step}, save_latest=False)
    dist.barrier()
    if dist.get_rank() == 0:
        _mark_complete(folder, step, dist.get_world_size())
        for old in complete_checkpoints(checkpoints)[:-keep]:
            # The marker goes first: a removal cut short must not leave a folder that looks complete.
            (old / MARKER).unlink()
            shutil.rmtree(old, ignore_errors=True)
    dist.barrier()
    return folder


def resume_step(engine: Any, checkpoints: Path) -> int:
    """Load the newest complete checkpoint into the engine; every rank must call this.

    Returns:
        Optimizer steps done so far, 0 where there is no complete checkpoint.

    Raises:
        UserError: the checkpoint was written by another number of processes.
    """
    choice: list[str | None] = [None]
    if dist.get_rank() == 0:
        choice = [_newest_verified(checkpoints)]
    dist.broadcast_object_list(choice, src=0)
    if choice[0] is None:
        return 0
    folder = checkpoints / choice[0]
    world_size = _read_marker(folder)["world_size"]
    if world_size != dist.get_world_size():
        raise UserError(
            folder,
            got=f"{dist.get_world_size()} processes",
            expected=f"{world_size}, as when it was saved",
            mend="start with the same number of processes, or choose another output folder",
        )
    _, client_state = engine.load_checkpoint(str(checkpoints), tag=folder.name)
    return int(client_state["step"])


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Folders of the complete checkpoints, oldest first."""
    return sorted(marker.parent for marker in checkpoints.glob(f"step-*/{MARKER}"))


def find_checkpoint(path: Path) -> Path:
    """The complete checkpoint at `path`, or the newest one of the run at `path`.

    Raises:
        UserError: there is none, or it does not agree with its list of files.
    """
    mend = "give a folder such as OUTPUT/checkpoints/step-00000200 or the OUTPUT folder of a run that saved one"
    if not path.is_dir():
        raise UserError(path, got="no such folder", expected="a checkpoint", mend=mend)
    found = [path] if (path / MARKER).is_file() else complete_checkpoints(path / "checkpoints")
    if not found:
        raise UserError(path, got="no complete checkpoint", expected=f"a folder with {MARKER}", mend=mend)
    _verify(found[-1])
    return found[-1]


def _newest_verified(checkpoints: Path) -> str | None:
    for folder in reversed(complete_checkpoints(checkpoints)):
        try:
            _verify(folder)
        except UserError as error:
            error_console.print(f"[yellow]passing over a damaged checkpoint:[/] {error}", markup=True)
        else:
            return folder.name
    return None


def _mark_complete(folder: Path, step: int, world_size: int) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    described = {str(file.relative_to(folder)): describe_file(file) for file in files}
    write_json(folder / MARKER, _FORMAT | {"step": step, "world_size": world_size, "files": described})


def _verify(folder: Path) -> None:
    for name, recorded in _read_marker(folder)["files"].items():
        verify_file(folder, name, recorded, mend="use an older checkpoint")


def _read_marker(folder: Path) -> dict[str, Any]:
    path = folder / MARKER
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(path, got=str(error), expected="a JSON list of files", mend="use an older checkpoint") from None
    if not isinstance(marker, dict) or {key: marker.get(key) for key in _FORMAT} != _FORMAT:
        raise UserError(path, got="another format", expected=str(_FORMAT), mend="use an older checkpoint")
    return marker
