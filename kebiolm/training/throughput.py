"""How fast the steps are, and how much memory they take."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_MIB = 2**20


class Throughput:
    """Counts steps, their tokens and their time since the last figures; on one process.

    Args:
        device: where the counts of tokens lie; they are added there, without waiting for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tokens = torch.zeros((), dtype=torch.float64, device=device)
        self._start_over()

    def add(self, tokens: Tensor) -> None:
        """Count a step; `tokens` (0-dim) are those of all processes, without padding."""
        self._tokens += tokens
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of what is no training step: evaluation, checkpoints."""
        self._seconds += time.monotonic() - self._since
        try:
            yield
        finally:
            self._since = time.monotonic()

    def take(self) -> dict[str, float]:
        """The figures `metrics.CLOCK_FIGURES` since the last call; waits for the device."""
        tokens = float(self._tokens)
        seconds = max(self._seconds + time.monotonic() - self._since, 1e-9)
        figures = {
            "tokens_per_second": tokens / seconds,
            "step_seconds": seconds / max(self._steps, 1),
            "peak_memory_mib": self._peak_memory_mib(),
        }
        self._start_over()
        return figures

    def _start_over(self) -> None:
        self._tokens.zero_()
        self._steps, self._seconds, self._since = 0, 0.0, time.monotonic()

    def _peak_memory_mib(self) -> float:
        """Most memory of this process since its start: tensors on its GPU, or all that it has of a machine without."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / _MIB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MIB
