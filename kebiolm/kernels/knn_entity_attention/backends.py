"""Which code computes the operator: chosen by device and dtype, or forced by an environment variable."""

from __future__ import annotations

import functools
import os
import warnings

import torch

from kebiolm.kernels.knn_entity_attention import cpu

VARIABLE = "KEBIOLM_KNN_BACKEND"
BACKENDS = ("cpu", "tiled", "reference")


@torch.compiler.assume_constant_result
def choose_backend(requested: str, device: str, fp32: bool) -> str:
    """Return "cpu", "tiled" or "reference".

    Args:
        requested: one of them, or "auto": what KEBIOLM_KNN_BACKEND says, else the fastest that can do it.
        device: type of the tensors' device.
        fp32: whether mentions and table are both fp32.

    Raises:
        ValueError: there is no backend of this name.
    """
    where = "backend"
    if requested == "auto":
        where, requested = VARIABLE, os.environ.get(VARIABLE, "auto")
    if requested not in (*BACKENDS, "auto"):
        raise ValueError(f"{where}: got {requested!r}; expected one of {', '.join(BACKENDS)}, auto")
    if requested in ("tiled", "reference"):
        return requested
    suitable = device == "cpu" and fp32
    if requested == "cpu" and not suitable:
        _warn_once("backend cpu takes fp32 tensors in the CPU's memory; tiled is used for others")
    return "cpu" if suitable and cpu.library() is not None else "tiled"


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(f"knn_entity_attention: {message}", RuntimeWarning, stacklevel=3)
