"""DeepSpeed's shards of a checkpoint put together to one fp32 state dict."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from kebiolm.errors import UserError


def consolidate(checkpoint: Path) -> dict[str, Tensor]:
    """Gather the weights of a checkpoint of ZeRO stage 1, 2 or 3, frozen ones included.

    The master copies are read, so a run in fp16 or bf16 loses nothing. The shards are pickles: only give checkpoints of
    your own runs.

    Args:
        checkpoint: a complete checkpoint folder, as `kebiolm.training.checkpoint.find_checkpoint` returns it.

    Returns:
        Weights and buffers by name, on the CPU; floating-point ones in fp32. Tied weights have an entry each that share
        one tensor.

    Raises:
        UserError: the shards cannot be put together.
    """
    with _warnings_off():  # about the accelerator, which this does not use
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    try:
        # It prints each shard's shape and draws its own progress bars.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), checkpoint.name)
        state |= _untrained_of_stage_1(checkpoint, state)
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, UnpicklingError) as error:
        raise UserError(
            checkpoint,
            got=f"shards that do not fit together ({error})",
            expected="a checkpoint of ZeRO stage 1, 2 or 3",
            mend="use an older checkpoint",
        ) from None
    return _as_fp32(state)


def _untrained_of_stage_1(checkpoint: Path, gathered: dict[str, Tensor]) -> dict[str, Tensor]:
    """Frozen weights, which DeepSpeed gathers under ZeRO 2 and 3 only; under ZeRO 1 each process has them all."""
    file = checkpoint / "mp_rank_00_model_states.pt"
    if not file.is_file():  # ZeRO 3
        return {}
    states = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    trained = {name for group in states["param_shapes"] for name in group}
    return {name: weight for name, weight in states["module"].items() if name not in gathered.keys() | trained}


def _as_fp32(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Frozen weights were never copied to fp32 in training; tensors that several names share stay shared."""
    converted: dict[int, Tensor] = {}
    for tensor in state.values():
        converted[id(tensor)] = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    return {name: converted[id(tensor)] for name, tensor in state.items()}


@contextmanager
def _warnings_off() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
