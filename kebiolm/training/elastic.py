"""Going on with another number of processes, through DeepSpeed's universal checkpoint.

A checkpoint holds one optimizer shard per process. DeepSpeed's converter cuts the shards into whole parameters, from
which any number of processes can take its share. The copy it makes is used once and removed: a job that is killed
meanwhile converts again.
"""

from __future__ import annotations

import io
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kebiolm.training.distributed import run_on_first_process

_WORK_FOLDER = "universal.tmp"


def elastic_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's settings for an engine that is to load a universal checkpoint."""
    return settings | {"checkpoint": settings.get("checkpoint", {}) | {"load_universal": True}}


@contextmanager
def universal_copy(checkpoint: Path) -> Iterator[Path]:
    """Yield a universal copy of a checkpoint, made by rank 0; it is removed when all processes are done with it."""
    work = checkpoint.parent / _WORK_FOLDER
    copy = work / checkpoint.name
    run_on_first_process(lambda: _convert(checkpoint, copy))
    yield copy
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(work)


def load_universal(engine: Any, copy: Path) -> None:
    """Load a universal checkpoint into an engine made with `elastic_settings`; every rank must call this.

    Frozen parameters are not part of it. They are what the run started with, which the start has made again.
    """
    optimizer = engine.optimizer.optimizer
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    engine.load_checkpoint(str(copy.parent), tag=copy.name)
    # DeepSpeed 0.19 gives all groups of ZeRO-3 the first one's settings, so that biases would be decayed ...
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)
    # ... and one common step counter, which then counts every group's update.
    for parameter, state in optimizer.state.items():
        if torch.is_tensor(state.get("step")):
            # A fused AdamW looks for it beside the weights.
            device = parameter.device if optimizer.defaults["fused"] else "cpu"
            state["step"] = state["step"].to(device, copy=True)


def _convert(checkpoint: Path, copy: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(copy.parent, ignore_errors=True)  # what a killed job left
    copy.mkdir(parents=True)
    # One worker: more of them are forked, which a process with threads must not do.
    arguments = Namespace(
        input_folder=str(checkpoint),
        output_folder=str(copy),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)
