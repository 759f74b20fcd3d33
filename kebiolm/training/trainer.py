"""The pretraining loop: steps, evaluation, checkpoints. What it trains and where figures go is given to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kebiolm.data.loader import PretrainingLoader
from kebiolm.errors import UserError
from kebiolm.tracking.metric_log import MetricLog
from kebiolm.training.config import PretrainConfig
from kebiolm.training.distributed import is_true_anywhere
from kebiolm.training.evaluation import Evaluation, EvaluationStopped, Evaluator
from kebiolm.training.metrics import sum_over_processes, summarize_losses
from kebiolm.training.nonfinite import NonfiniteGuard
from kebiolm.training.sample_log import SampleLog
from kebiolm.training.stop_request import StopRequest
from kebiolm.training.throughput import Throughput
from kebiolm.training.train_step import StepResult, TrainStep


@dataclass(kw_only=True)
class Trainer:
    """One pretraining run on one process of a DeepSpeed job."""

    config: PretrainConfig
    train_step: TrainStep
    loader: PretrainingLoader
    """This process's share of every optimizer step."""
    evaluate: Evaluator
    guard: NonfiniteGuard
    stop_request: StopRequest
    save: Callable[[int], Any]
    """Saves a checkpoint after so many steps; called by all processes."""
    report: Callable[[int, Evaluation], None]
    """Shows what an evaluation after so many steps came to; called on global rank 0."""
    metric_log: MetricLog | None
    """Where records go; on global rank 0 only."""
    sample_log: SampleLog
    """Where the checksums of the steps' samples go."""
    steps_done: int = 0
    """Optimizer steps done so far; above 0 after a resume."""
    last_evaluated_step: int = -1
    """Step of the newest evaluation that is recorded; an earlier job may have stopped just before one."""
    last_logged_step: int = 0
    """Step of the newest training figures."""
    last_metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Newest figures by kind ("train", "heldout")."""

    def fit(self, advance: Callable[..., None]) -> bool:
        """Train from `steps_done` to the end; `advance(steps, note)` is called after each step.

        Returns:
            False if it ended early, because some process was asked to stop; what was done until then is saved.

        Raises:
            UserError: a loss or gradient is not finite, and the run is to stop there.
        """
        config, total = self.config, self.loader.steps_total
        # Asked while the job was set up: nothing has been done since the checkpoint that it went on from.
        if self._is_asked_to_stop():
            return False
        is_due = self.steps_done % config.evaluation.every_steps == 0 or self.steps_done == total
        if is_due and self.last_evaluated_step < self.steps_done and not self._evaluate():
            return False
        throughput = Throughput(self.train_step.engine.device)
        for step, batches in self.loader.iterate(self.steps_done, total):
            result = self.train_step(step, batches, wants_stop=self.stop_request.reason is not None)
            self.steps_done = step + 1
            self.sample_log.record(self.steps_done, result.sample_checksum)
            self.guard.look_at(self.steps_done, batches, result)
            throughput.add(result.counts[3])
            is_last = self.steps_done == total
            stops = result.stop_requested and not is_last
            saves = self.steps_done % config.checkpoints.every_steps == 0 or is_last or stops
            evaluates = (self.steps_done % config.evaluation.every_steps == 0 and not stops) or is_last
            # Figures are also taken where a checkpoint is, or may be because an evaluation is stopped: a resumed run
            # continues the curve without a gap.
            if self.steps_done % config.tracking.every_steps == 0 or saves or evaluates or step == 0:
                self._record_step(step, result, throughput.take())
            if evaluates:
                with throughput.paused():
                    stops = not self._evaluate() or stops
            if saves or stops:
                with throughput.paused():
                    self.save(self.steps_done)
            advance(1, note=self._newest_loss())
            if stops:
                return False
        return True

    def _record_step(self, step: int, result: StepResult, speed: dict[str, float]) -> None:
        metrics = {}
        sums = sum_over_processes(result.loss_sums)
        # The sums of a step that was left out may be no numbers at all; JSON and MLflow know no such thing.
        if result.was_applied:
            metrics = summarize_losses(sums, result.counts) | self._gradient_norm()
        metrics["learning_rate"] = self.train_step.learning_rate(step)
        # All steps of the run that were left out (checkpoints hold DeepSpeed's count), and those because of a batch.
        metrics["skipped_steps"] = float(self.train_step.engine.skipped_steps)
        metrics["skipped_batches"] = float(self.guard.skipped_batches(self.steps_done))
        if self.train_step.engine.fp16_enabled():
            metrics["overflowed_steps"] = metrics["skipped_steps"] - metrics["skipped_batches"]
            metrics["loss_scale"] = float(self.train_step.engine.loss_scale())
        self._record("train", metrics | speed)

    def _evaluate(self) -> bool:
        """Evaluate and record it; false if some process was asked to stop meanwhile, and the next job does it."""
        try:
            evaluation = self.evaluate(self._is_asked_to_stop)
        except EvaluationStopped:
            return False
        if evaluation is not None:
            # All processes hold the same sums, so all stop together.
            if not all(math.isfinite(value) for value in evaluation.metrics.values()):
                raise UserError(
                    f"evaluation after step {self.steps_done}",
                    got=", ".join(f"{name} {value}" for name, value in evaluation.metrics.items()),
                    expected="finite losses",
                    mend="lower optimization.learning_rate, or go on from an earlier checkpoint",
                )
            self._record("heldout", evaluation.metrics)
            if self.metric_log is not None:
                self.report(self.steps_done, evaluation)
        return True

    def _is_asked_to_stop(self) -> bool:
        """Whether some process was; all must ask, and all get the same answer."""
        return is_true_anywhere(self.stop_request.reason is not None, self.train_step.engine.device)

    def _record(self, kind: str, metrics: dict[str, float]) -> None:
        self.last_metrics[kind] = metrics
        if kind == "train":
            self.last_logged_step = self.steps_done
        if self.metric_log is not None:
            self.metric_log.append(kind, self.steps_done, metrics)

    def _newest_loss(self) -> str:
        """The loss that was logged last, with its step; nothing yet in a run that has just resumed."""
        loss = self.last_metrics.get("train", {}).get("loss")
        return "" if loss is None else f"loss {loss:.3f} (step {self.last_logged_step})"

    def _gradient_norm(self) -> dict[str, float]:
        """L2 norm of the step's gradient over all parameters, before clipping."""
        norm = self.train_step.engine.get_global_grad_norm()
        return {} if norm is None else {"gradient_norm": float(norm)}
