"""Launch settings of the two large Triton kernels: a table of defaults, and a search that replaces them on request.

The settings of a kernel do not depend on the number of mentions: another tile sums in another order, and the results
of a mention would depend on how many others are in the batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import torch

VARIABLE = "KEBIOLM_KNN_AUTOTUNE"
"""1: at the first call of a kind, time the settings of `CANDIDATES` and keep the fastest. The bits of the results then
depend on which that was."""
MAX_SIZE = 256
"""Wider entities would need tiles too small to be worth it."""


class Settings(NamedTuple):
    """How a kernel is cut up and run."""

    mentions: int
    """Rows of a tile of mentions."""
    entities: int
    """Rows of a tile of entities."""
    warps: int
    stages: int
    """Tiles on their way from memory while others are multiplied."""


class Kind(NamedTuple):
    """What settings depend on."""

    kernel: str
    """"search", "mean" (a search that also averages the table) or "table" (its gradient)."""
    arch: int
    """90 for cards of compute capability 9 and 10, which have 227 KB of shared memory and more; 80 for others."""
    precision: str
    """"half" (fp16, bf16), "tf32" or "ieee" (fp32)."""
    width: int
    """d rounded up to a power of two."""
    aligned: bool
    """Whether all rows of the table begin at multiples of 16 bytes."""


# Compiled for sm_80 and sm_90, none of them spills registers, and those of arch 80 also fit the 99 KB of sm_86.
# Key: kernel, precision; then arch; then the largest width they are for.
DEFAULTS = {
    ("search", "half"): {
        90: {128: Settings(128, 128, 8, 2), 256: Settings(128, 32, 8, 2)},
        80: {128: Settings(128, 64, 8, 3), 256: Settings(128, 32, 8, 2)},
    },
    ("mean", "half"): {
        90: {128: Settings(64, 128, 4, 2), 256: Settings(64, 64, 8, 2)},
        80: {64: Settings(128, 64, 8, 3), 128: Settings(128, 32, 8, 3), 256: Settings(64, 32, 8, 2)},
    },
    ("table", "half"): {
        90: {128: Settings(64, 128, 8, 2), 256: Settings(64, 64, 8, 2)},
        80: {128: Settings(64, 64, 8, 3), 256: Settings(64, 64, 8, 2)},
    },
    ("search", "tf32"): {
        90: {128: Settings(128, 64, 8, 2), 256: Settings(64, 32, 8, 2)},
        80: {128: Settings(64, 64, 8, 2), 256: Settings(64, 32, 8, 1)},
    },
    ("mean", "tf32"): {
        90: {128: Settings(128, 32, 8, 2), 256: Settings(32, 32, 8, 2)},
        80: {128: Settings(64, 32, 4, 2), 256: Settings(32, 32, 8, 2)},
    },
    ("table", "tf32"): {
        90: {128: Settings(64, 64, 8, 2), 256: Settings(32, 64, 8, 1)},
        80: {128: Settings(32, 64, 8, 2), 256: Settings(32, 32, 8, 1)},
    },
    ("search", "ieee"): {
        90: {256: Settings(64, 64, 8, 2)},
        80: {256: Settings(64, 64, 8, 2)},
    },
    ("mean", "ieee"): {
        90: {64: Settings(64, 32, 8, 2), 128: Settings(32, 64, 8, 2), 256: Settings(64, 32, 8, 2)},
        80: {64: Settings(64, 32, 8, 2), 128: Settings(32, 32, 8, 2), 256: Settings(64, 32, 8, 2)},
    },
    ("table", "ieee"): {
        90: {64: Settings(64, 64, 8, 2), 256: Settings(32, 64, 8, 2)},
        80: {64: Settings(64, 64, 8, 2), 256: Settings(32, 64, 8, 2)},
    },
}

# Other rows are copied in twice as many pieces, and their addresses take registers. Key: kernel, arch, precision.
UNALIGNED = {("mean", 90, "half"): {128: Settings(128, 64, 8, 3)}}

# For entities of width 128 in half precision, on arch 90; for other kinds there is only the default.
CANDIDATES = {
    "search": [(128, 128, 8, 2), (128, 128, 8, 3), (64, 128, 4, 2), (128, 64, 4, 3), (128, 64, 8, 3)],
    "mean": [(64, 128, 4, 2), (128, 128, 8, 2), (128, 128, 8, 3), (64, 64, 4, 3), (128, 64, 8, 3)],
    "table": [(64, 128, 8, 2), (64, 128, 8, 3), (128, 128, 8, 2), (128, 64, 4, 2), (64, 64, 4, 2), (64, 64, 8, 3)],
}
_TIMED_RUNS = 5
_tuned: dict[Kind, Settings] = {}


def arch_of(device: torch.device) -> int:
    """`Kind.arch` of a device; 90 on the CPU, where only the interpreter runs kernels."""
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9
    return 90 if major in (9, 10) else 80


def default_settings(kind: Kind) -> Settings:
    """The settings that the tables have for a kind."""
    of_width = DEFAULTS[kind.kernel, kind.precision][kind.arch]
    if not kind.aligned:
        of_width = {**of_width, **UNALIGNED.get((kind.kernel, kind.arch, kind.precision), {})}
    return of_width[min(width for width in of_width if width >= kind.width)]


def choose_settings(kind: Kind, device: torch.device, launch: Callable[[Settings], object]) -> Settings:
    """The default settings, or with KEBIOLM_KNN_AUTOTUNE=1 those with which `launch` is fastest on this machine."""
    if os.environ.get(VARIABLE) != "1" or device.type != "cuda" or kind[1:] != (90, "half", 128, True):
        return default_settings(kind)
    if kind not in _tuned:
        candidates = [Settings(*numbers) for numbers in CANDIDATES[kind.kernel]]
        _tuned[kind] = min(candidates, key=lambda settings: _milliseconds(launch, settings))
    return _tuned[kind]


def _milliseconds(launch: Callable[[Settings], object], settings: Settings) -> float:
    launch(settings)  # compiles
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(_TIMED_RUNS):
        launch(settings)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
