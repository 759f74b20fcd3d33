"""The pretraining loop: steps, evaluation, checkpoints. What it trains and where figures go is given to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kebiolm.data.collator import Batch
from kebiolm.data.loader import PretrainingLoader
from kebiolm.errors import UserError
from kebiolm.training.checkpoint import save_checkpoint
from kebiolm.training.config import PretrainConfig
from kebiolm.training.metrics import (
    count_targets,
    hits,
    loss_sums,
    sum_over_processes,
    summarize_hits,
    summarize_losses,
)
from kebiolm.training.schedule import learning_rate_at
from kebiolm.training.tracking import MetricLog

# Seeds of dropout are made from (seed, step, rank, micro batch); this keeps them apart from other uses of the seed.
_DROPOUT_STREAM = 1_000_003


@dataclass(kw_only=True)
class Trainer:
    """One pretraining run on one process of a DeepSpeed job."""

    config: PretrainConfig
    engine: Any
    """DeepSpeed engine around a `KeBioLMForPreTraining`."""
    loader: PretrainingLoader
    """This process's share of every optimizer step."""
    make_evaluation_batches: Callable[[], Iterator[Batch]]
    """Starts over this process's held-out batches; all processes get equally many."""
    metric_log: MetricLog | None
    """Where records go; on global rank 0 only."""
    write_model_files: Callable[[Path], None]
    """Writes what export needs beside each checkpoint into the folder it is given."""
    rank: int
    world_size: int
    steps_done: int = 0
    """Optimizer steps done so far; above 0 after a resume."""
    last_logged_step: int = 0
    """Step of the newest training figures."""
    last_metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Newest figures by kind ("train", "heldout")."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.config.output / "checkpoints"

    def fit(self, advance: Callable[..., None]) -> None:
        """Train from `steps_done` to the end; `advance(steps, note)` is called after each step.

        Raises:
            UserError: the loss is not finite.
        """
        config, total = self.config, self.loader.steps_total
        if self.steps_done == 0:
            self._evaluate()
        tokens, tokens_since = torch.zeros((), dtype=torch.float64, device=self.engine.device), time.monotonic()
        for step, batches in self.loader.iterate(self.steps_done, total):
            sums, counts = self._train_step(step, batches)
            self.steps_done = step + 1
            tokens += counts[3]
            is_last = self.steps_done == total
            saves = self.steps_done % config.checkpoints.every_steps == 0 or is_last
            # Figures are also taken where a checkpoint is: nothing is saved, and no older one removed, after a loss
            # or gradient that is not finite.
            if self.steps_done % config.tracking.every_steps == 0 or saves or step == 0:
                metrics = summarize_losses(sum_over_processes(sums), counts) | self._gradient_norm()
                self._check_finite(metrics)
                seconds = max(time.monotonic() - tokens_since, 1e-9)
                metrics["learning_rate"] = self._learning_rate(step)
                metrics["tokens_per_second"] = float(tokens) / seconds
                self._record("train", metrics)
                tokens.zero_()
                tokens_since = time.monotonic()
            if self.steps_done % config.evaluation.every_steps == 0 or is_last:
                self._evaluate()
                tokens_since = time.monotonic()
            if saves:
                save_checkpoint(
                    self.engine,
                    self.checkpoints,
                    self.steps_done,
                    keep=config.checkpoints.keep,
                    write_model_files=self.write_model_files,
                )
                tokens_since = time.monotonic()
            advance(1, note=self._newest_loss())

    def _train_step(self, step: int, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """One optimizer step over this process's micro batches.

        Each task's loss is its sum over targets divided by the number of targets in the whole global batch (not the
        mean of micro batch means), so the gradient does not depend on how the batch is cut into processes and micro
        batches.

        Returns:
            (this process's three loss sums, target counts of the whole global batch).
        """
        batches = [self._to_device(batch) for batch in batches]
        counts = sum_over_processes(torch.stack([count_targets(batch) for batch in batches]).sum(0))
        # DeepSpeed averages gradients over processes and micro batches; the product undoes that.
        scale = self.world_size * len(batches) / counts[:3].clamp(min=1).float()
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        sums = torch.zeros(3, dtype=torch.float64, device=self.engine.device)
        for micro, batch in enumerate(batches):
            self._seed_dropout(step, micro)
            micro_sums = loss_sums(self.engine(**_model_inputs(batch)))
            self.engine.backward((micro_sums * scale).sum())
            self.engine.step()
            sums += micro_sums.detach().double()
        return sums, counts

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Losses and accuracies over the held-out sequences, with fixed masks."""
        self.engine.eval()
        device = self.engine.device
        sums, counts, right = (torch.zeros(size, dtype=torch.float64, device=device) for size in (3, 4, 6))
        for batch in self.make_evaluation_batches():
            on_device = self._to_device(batch)
            output = self.engine(**_model_inputs(on_device))
            sums += loss_sums(output).double()
            counts += count_targets(on_device)
            right += hits(output, on_device)
        self.engine.train()
        counts = sum_over_processes(counts)
        if counts[3] > 0:
            losses = summarize_losses(sum_over_processes(sums), counts)
            self._record("heldout", losses | summarize_hits(sum_over_processes(right), counts))

    def _record(self, kind: str, metrics: dict[str, float]) -> None:
        self.last_metrics[kind] = metrics
        if kind == "train":
            self.last_logged_step = self.steps_done
        if self.metric_log is not None:
            self.metric_log.append(kind, self.steps_done, metrics)

    def _newest_loss(self) -> str:
        """The loss that was logged last, with its step; nothing yet in a run that has just resumed."""
        if "train" not in self.last_metrics:
            return ""
        return f"loss {self.last_metrics['train']['loss']:.3f} (step {self.last_logged_step})"

    def _learning_rate(self, step: int) -> float:
        return learning_rate_at(
            step,
            peak=self.config.optimization.learning_rate,
            warmup_steps=self.config.optimization.warmup_steps,
            total_steps=self.loader.steps_total,
        )

    def _gradient_norm(self) -> dict[str, float]:
        """L2 norm of the last step's gradient over all parameters, before clipping.

        Left out in fp16, where an overflow is part of finding the loss scale and DeepSpeed skips the step itself.
        """
        norm = None if self.engine.fp16_enabled() else self.engine.get_global_grad_norm()
        return {} if norm is None else {"gradient_norm": float(norm)}

    def _seed_dropout(self, step: int, micro: int) -> None:
        # A pure function of the position in the run: a resumed run draws what the undisturbed one would have.
        position = (step * self.world_size + self.rank) * 4096 + micro
        torch.manual_seed((self.config.seed * _DROPOUT_STREAM + position) % 2**63)

    def _check_finite(self, metrics: dict[str, float]) -> None:
        # All processes hold the same sums, so all stop together.
        if not all(torch.isfinite(torch.tensor(list(metrics.values())))):
            raise UserError(
                f"step {self.steps_done}",
                got=", ".join(f"{name} {value}" for name, value in metrics.items()),
                expected="finite losses and gradients",
                mend="lower the learning rate or start again from the last checkpoint",
            )

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.engine.device, non_blocking=True) for name, tensor in batch.items()}


def _model_inputs(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "sample_ids"}
