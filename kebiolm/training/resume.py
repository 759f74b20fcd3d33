"""Going on from a checkpoint: which one, whether it fits the model, and how it comes into the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from kebiolm.console import console
from kebiolm.errors import UserError
from kebiolm.training.checkpoint import newest_whole_checkpoint, read_marker
from kebiolm.training.distributed import decide_on_first_process, run_on_first_process
from kebiolm.training.elastic import load_universal, universal_copy

_NAMED_PARAMETERS = 3


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run goes on from."""

    folder: Path
    step: int
    """Optimizer steps done when it was saved."""
    world_size: int
    """Number of processes that saved it."""

    @property
    def is_elastic(self) -> bool:
        """Whether it was saved by another number of processes than there are now."""
        return self.world_size != dist.get_world_size()


def choose_resume_point(checkpoints: Path) -> ResumePoint | None:
    """The newest whole checkpoint of a run, equal on every process; None where there is none.

    Raises:
        UserError: every checkpoint is damaged.
    """

    def choose() -> ResumePoint | None:
        folder = newest_whole_checkpoint(checkpoints)
        if folder is None:
            return None
        marker = read_marker(folder)
        return ResumePoint(folder, marker["step"], marker["world_size"])

    return decide_on_first_process(choose)


def check_parameters(point: ResumePoint, model: nn.Module) -> None:
    """Compare the parameters in a checkpoint with those of the model that is to take them; every rank must call this.

    Raises:
        UserError: names or shapes differ; DeepSpeed itself would load some and fail at others.
    """
    run_on_first_process(lambda: _compare_parameters(point.folder, model))


def load_checkpoint(engine: Any, point: ResumePoint) -> None:
    """Bring a checkpoint into the engine; every rank must call this.

    Args:
        engine: a fresh DeepSpeed engine, made with `elastic_settings` where the point is elastic.
        point: what `choose_resume_point` returned.
    """
    if not point.is_elastic:
        engine.load_checkpoint(str(point.folder.parent), tag=point.folder.name)
        return
    if dist.get_rank() == 0:
        now = dist.get_world_size()
        console.print(f"converting the checkpoint of step {point.step} from {point.world_size} to {now} processes")
    with universal_copy(point.folder) as copy:
        load_universal(engine, copy)


def _compare_parameters(folder: Path, model: nn.Module) -> None:
    then, now = _saved_shapes(folder), _shapes(model)
    differing = [
        f"{name}: {_words(then.get(name))} then, {_words(now.get(name))} now"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if differing:
        more = f"; and {len(differing) - _NAMED_PARAMETERS} more" if len(differing) > _NAMED_PARAMETERS else ""
        raise UserError(
            folder,
            got=f"another model ({'; '.join(differing[:_NAMED_PARAMETERS])}{more})",
            expected="the parameters of this recipe and this version of kebiolm",
            mend="go on with the version that saved it, or choose another output folder",
        )


def _saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained parameters; only the file's table is read, its tensors stay on disk."""
    file = sorted(folder.glob("*mp_rank_00_model_states.pt"))[0]
    state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    return {name: tuple(shape) for group in state["param_shapes"] for name, shape in group.items()}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters() if weight.requires_grad}


def _words(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))
