"""Which code computes the operator: chosen by device and dtype, or forced by an environment variable."""

from __future__ import annotations

import functools
import os
import warnings

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention import cpu

VARIABLE = "KEBIOLM_KNN_BACKEND"
BACKENDS = ("cpu", "tiled", "reference")
"""cpu: compiled, fp32 in the CPU's memory. tiled: PyTorch, any device and dtype. reference: holds all M x E scores."""
MAX_ENTITIES = 2**31 - 1
"""The compiled backends keep rows in 32 bits; tiled does larger tables."""


def choose_backend(requested: str, h: Tensor, table: Tensor) -> str:
    """Return the name of the backend that will compute.

    Args:
        requested: a name, or "auto": what KEBIOLM_KNN_BACKEND says, else the fastest that can do it.
        h: [M, d] mentions; only device, dtype and shape matter.
        table: [E, d] entities; likewise.

    Raises:
        ValueError: there is no backend of this name.
    """
    dtypes = tuple(str(dtype).removeprefix("torch.") for dtype in (h.dtype, table.dtype))
    # Not a comparison as an argument: under torch.compile it would be a symbol, and the choice a constant.
    if table.shape[0] > MAX_ENTITIES:
        return _choose(requested, h.device.type, dtypes, False)
    return _choose(requested, h.device.type, dtypes, True)


@torch.compiler.assume_constant_result
def _choose(requested: str, device: str, dtypes: tuple[str, str], fits: bool) -> str:
    where = "backend"
    if requested == "auto":
        where, requested = VARIABLE, os.environ.get(VARIABLE, "auto")
    if requested not in (*BACKENDS, "auto"):
        raise ValueError(f"{where}: got {requested!r}; expected one of {', '.join(BACKENDS)}, auto")
    if requested in ("tiled", "reference"):
        return requested
    suitable = device == "cpu" and dtypes == ("float32", "float32") and fits
    if requested == "cpu" and not suitable:
        _warn_once("backend cpu takes fp32 tensors in the CPU's memory; tiled is used for others")
    return "cpu" if suitable and cpu.library() is not None else "tiled"


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(f"knn_entity_attention: {message}", RuntimeWarning, stacklevel=3)
