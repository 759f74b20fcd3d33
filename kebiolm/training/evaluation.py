"""Losses and accuracies over the held-out sequences, with the same masks every time, and what lies behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kebiolm.data.collator import Batch, without_targets
from kebiolm.training.metrics import (
    bio_confusion,
    count_targets,
    entity_hits,
    hits,
    loss_sums,
    sum_over_processes,
    summarize_hits,
    summarize_losses,
)
from kebiolm.training.train_step import model_inputs, to_device

EXAMPLE_SEQUENCES = 4
_SHOWN_ENTITIES = 5
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What the model finds in whole, unmasked sequences, on the CPU; B sequences, L positions."""

    batch: Batch
    """The sequences with their gold labels; "input_ids" without masks."""
    spans: Tensor
    """[N, 3] detected mentions (row, start, end exclusive)."""
    entity_rows: Tensor
    """[N, k] rows of the entity table, nearest first."""
    entity_weights: Tensor
    """[N, k] attention weights."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one evaluation came to, over all processes; E rows of the entity table."""

    metrics: dict[str, float]
    """Mean losses and accuracies in 0..1."""
    confusion: Tensor
    """[3, 3] int64 positions by gold label and predicted label, in the order O, B, I."""
    entity_hits: Tensor
    """[E, 3] int64: held-out mentions of each entity, those with it ranked first, those with it among the first ten."""
    predictions: Predictions
    """Of this process's first sequences."""


class EvaluationStopped(Exception):
    """An evaluation was given up on all processes, because one was asked to stop."""


class Evaluator:
    """Evaluates on one process of a DeepSpeed job.

    Args:
        engine: a DeepSpeed engine around a `KeBioLMForPreTraining`.
        make_batches: starts over this process's held-out batches; all processes get equally many.
    """

    def __init__(self, engine: Any, make_batches: Callable[[], Iterator[Batch]]) -> None:
        self._engine, self._make_batches = engine, make_batches

    @torch.no_grad()
    def __call__(self, wants_stop: Callable[[], bool]) -> Evaluation | None:
        """Evaluate on all processes; None where nothing is held out.

        Args:
            wants_stop: asked before each batch, by all processes together, and answers all of them the same.

        Raises:
            EvaluationStopped: it was answered that the job is to stop, for whose end a scheduler waits some minutes.
        """
        engine = self._engine
        engine.eval()
        sums, counts, right = (torch.zeros(size, dtype=torch.float64, device=engine.device) for size in (3, 4, 6))
        confusion = torch.zeros(3, 3, dtype=torch.int64, device=engine.device)
        of_entities = torch.zeros(engine.module.config.num_entities, 3, dtype=torch.int64, device=engine.device)
        predictions = None
        for batch in self._make_batches():
            if wants_stop():
                raise EvaluationStopped
            on_device = to_device(batch, engine.device)
            output = engine(**model_inputs(on_device))
            sums += loss_sums(output).double()
            counts += count_targets(on_device)
            right += hits(output, on_device)
            confusion += bio_confusion(output, on_device)
            of_entities += entity_hits(output, on_device, len(of_entities))
            # On all processes, because under ZeRO-3 a forward pass needs them all.
            predictions = predictions or self._predict(on_device)
        engine.train()
        counts = sum_over_processes(counts)
        if predictions is None or counts[3] == 0:
            return None
        losses = summarize_losses(sum_over_processes(sums), counts)
        return Evaluation(
            metrics=losses | summarize_hits(sum_over_processes(right), counts),
            confusion=sum_over_processes(confusion).cpu(),
            entity_hits=sum_over_processes(of_entities).cpu(),
            predictions=predictions,
        )

    def _predict(self, batch: Batch) -> Predictions:
        """Let the model find the mentions of a batch's first sequences by itself."""
        first = {name: tensor[:EXAMPLE_SEQUENCES] for name, tensor in batch.items()}
        is_shown = batch["mention_spans"][:, 0] < EXAMPLE_SEQUENCES
        first |= {name: batch[name][is_shown] for name in ("mention_spans", "entity_labels")}
        first["input_ids"] = torch.where(first["mlm_labels"] == _IGNORED, first["input_ids"], first["mlm_labels"])
        asked = without_targets(first)
        names = ("input_ids", "document_index", "position_ids", "mlm_labels")
        output = self._engine(**{name: asked[name] for name in names})
        return Predictions(
            batch=to_device(first, torch.device("cpu")),
            spans=output.mention_spans.cpu(),
            entity_rows=output.entity_topk_rows[:, :_SHOWN_ENTITIES].cpu(),
            entity_weights=output.entity_topk_weights[:, :_SHOWN_ENTITIES].float().cpu(),
        )
