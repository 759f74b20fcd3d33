"""The operator on GPUs of compute capability 8.0 and later, in Triton: exact, and never all scores at once.

Forward (`triton_forward`): one pass over the table gives the largest score of each block of B entities, log-sum-exp,
and the average of the table under the softmax, which is the gradient of lse by h: the backward pass need not see the
table for it. The k blocks with the largest maxima hold the k nearest entities; only those are looked at again.

Backward (`triton_backward`): the gradient of h comes from the k neighbours, the gold entity and that average; the
gradient of the table from one pass in which each program owns some entities and adds up all mentions.

The same inputs give the same bits, also with `Options.deterministic` false: to add to memory in any order would save a
sort, and cost as much again for clearing and reading a table of sums. Results of a mention, and its gradient, do not
depend on the other mentions to the last bit: tiles and splits are chosen by the table and the card alone. Nothing
makes the host wait for the GPU.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch

from kebiolm.kernels.knn_entity_attention.triton_backward import triton_backward
from kebiolm.kernels.knn_entity_attention.triton_common import interpreting
from kebiolm.kernels.knn_entity_attention.triton_forward import triton_forward
from kebiolm.kernels.knn_entity_attention.triton_settings import MAX_SIZE

__all__ = ["MAX_SIZE", "available", "triton_backward", "triton_forward", "unsupported"]

OLDEST = (3, 3)
"""Triton 3.2 reports errors when it overlaps the search with its copies."""


def available(device: torch.device) -> str | None:
    """Why the kernels cannot run on this device, in one line; None if they can.

    With TRITON_INTERPRET=1 they take tensors in the CPU's memory, slowly, for tests.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreting():
        return None
    if (version := _triton_version()) < OLDEST:
        return f"triton {'.'.join(map(str, version))} is installed, and {'.'.join(map(str, OLDEST))} is the oldest"
    if device.type != "cuda" or torch.version.cuda is None:
        return f"no CUDA device: the tensors are on {device}"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"the GPU has compute capability {major}.{minor}; it takes 8.0 and newer"


def _triton_version() -> tuple[int, int]:
    try:
        major, minor, *_ = importlib.metadata.version("triton").split(".")
    except importlib.metadata.PackageNotFoundError:
        return OLDEST  # it comes under another name with nightly builds of torch
    return int(major), int(minor)


def unsupported(dtypes: tuple[torch.dtype, torch.dtype]) -> str | None:
    """Why mentions and table of these dtypes are not for this backend; None: they are."""
    if not {torch.float16, torch.bfloat16, torch.float32}.issuperset(dtypes):
        return f"it takes fp16, bf16 and fp32, not fp64: these are {dtypes[0]} and {dtypes[1]}"
    return None
