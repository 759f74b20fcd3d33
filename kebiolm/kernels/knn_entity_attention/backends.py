"""Which code computes the operator: chosen by device, dtype and size, or forced by an environment variable.

Imports nothing of a GPU until a tensor lies on one.
"""

from __future__ import annotations

import functools
import os
import warnings

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention import cpu, cuda, triton_backend

VARIABLE = "KEBIOLM_KNN_BACKEND"
BACKENDS = ("cpu", "triton", "cuda", "tiled", "reference")
"""cpu: compiled, fp32 in the CPU's memory. triton: GPUs of compute capability 8.0 and newer. cuda: fp16 on the tensor
cores of V100 and T4. tiled: PyTorch, any device and dtype. reference: PyTorch that holds all M x E scores."""
MAX_ENTITIES = 2**31 - 1
"""The compiled backends keep rows in 32 bits; tiled does larger tables."""
MAX_SIZES = {"cpu": None, "triton": triton_backend.MAX_SIZE, "cuda": cuda.MAX_SIZE}
"""Dimensions that the compiled backends take; None: any number."""

_NOT_BUILT = "it could not be built"
_Dtypes = tuple[torch.dtype, torch.dtype]
"""Of mentions and table."""


def choose_backend(requested: str, h: Tensor, table: Tensor) -> str:
    """Return the name of the backend that will compute.

    Args:
        requested: a name, or "auto": what KEBIOLM_KNN_BACKEND says, else the fastest that can do it.
        h: [M, d] mentions; only device, dtype and shape matter.
        table: [E, d] entities; likewise.

    Raises:
        ValueError: there is no backend of this name.
    """
    # Which ones the sizes fit, and not the sizes: under torch.compile these are symbols, and the choice is a constant.
    fitting = []
    if table.shape[0] <= MAX_ENTITIES:
        for backend, limit in MAX_SIZES.items():
            if limit is None or h.shape[1] <= limit:
                fitting.append(backend)
    return _choose(requested, h.device, (h.dtype, table.dtype), tuple(fitting))


@torch.compiler.assume_constant_result
def _choose(requested: str, device: torch.device, dtypes: _Dtypes, fitting: tuple[str, ...]) -> str:
    where = "backend"
    if requested == "auto":
        where, requested = VARIABLE, os.environ.get(VARIABLE) or "auto"
    if requested not in (*BACKENDS, "auto"):
        raise ValueError(f"{where}: got {requested!r}; expected one of {', '.join(BACKENDS)}, auto")
    if requested in ("tiled", "reference"):
        return requested
    wanted = _fastest(device) if requested == "auto" else requested
    if wanted == "tiled":
        return wanted
    if wanted in fitting:
        reason = _why_not(wanted, device, dtypes)
    else:
        reason = f"it takes at most {MAX_ENTITIES:,} rows"
        if size := MAX_SIZES[wanted]:
            reason += f" of at most {size} dimensions"
    if reason is None:
        return wanted
    if reason is not _NOT_BUILT:  # of which cpu.library() warns, with the compiler's words
        _warn_once(f"backend {wanted} cannot be used ({reason}); tiled is used")
    return "tiled"


def _fastest(device: torch.device) -> str:
    """The backend made for a device."""
    if device.type == "cpu":
        return "cpu"
    if device.type != "cuda" or torch.version.cuda is None:
        return "tiled"
    return "triton" if torch.cuda.get_device_capability(device) >= (8, 0) else "cuda"


def _why_not(backend: str, device: torch.device, dtypes: _Dtypes) -> str | None:
    """Why a backend cannot compute this, None if it can."""
    if backend == "cpu":
        if device.type != "cpu" or dtypes != (torch.float32, torch.float32):
            return "it takes fp32 tensors in the CPU's memory"
        return None if cpu.library() is not None else _NOT_BUILT
    module = {"triton": triton_backend, "cuda": cuda}[backend]
    return module.unsupported(dtypes) or module.available(device)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(f"knn_entity_attention: {message}", RuntimeWarning, stacklevel=3)
