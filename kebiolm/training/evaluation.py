"""Losses and accuracies over the held-out sequences, with the same masks every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from kebiolm.data.collator import Batch
from kebiolm.training.metrics import (
    count_targets,
    hits,
    loss_sums,
    sum_over_processes,
    summarize_hits,
    summarize_losses,
)
from kebiolm.training.train_step import model_inputs, to_device


class Evaluator:
    """Evaluates on one process of a DeepSpeed job.

    Args:
        engine: a DeepSpeed engine around a `KeBioLMForPreTraining`.
        make_batches: starts over this process's held-out batches; all processes get equally many.
    """

    def __init__(self, engine: Any, make_batches: Callable[[], Iterator[Batch]]) -> None:
        self._engine, self._make_batches = engine, make_batches

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Mean losses and accuracies in 0..1 over all processes; empty where nothing is held out."""
        engine = self._engine
        engine.eval()
        sums, counts, right = (torch.zeros(size, dtype=torch.float64, device=engine.device) for size in (3, 4, 6))
        for batch in self._make_batches():
            on_device = to_device(batch, engine.device)
            output = engine(**model_inputs(on_device))
            sums += loss_sums(output).double()
            counts += count_targets(on_device)
            right += hits(output, on_device)
        engine.train()
        counts = sum_over_processes(counts)
        if counts[3] == 0:
            return {}
        losses = summarize_losses(sum_over_processes(sums), counts)
        return losses | summarize_hits(sum_over_processes(right), counts)
