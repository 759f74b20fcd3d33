"""One optimizer step: micro batches in, DeepSpeed's forward, backward and update, sums of losses out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kebiolm.data.collator import Batch
from kebiolm.training.metrics import count_targets, loss_sums, sum_over_processes
from kebiolm.training.sample_log import checksum_of_samples

# Seeds of dropout are made from (seed, step, micro batch); this keeps them apart from other uses of the seed.
_DROPOUT_STREAM = 1_000_003
_TARGETS = 4


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step came to."""

    loss_sums: Tensor
    """[3] float64, this process's summed losses in the order of `metrics.TASKS`."""
    counts: Tensor
    """[4] float64, targets and tokens of the whole global batch, as `metrics.count_targets` says."""
    was_applied: bool
    """False where DeepSpeed left the weights alone, because a gradient was not finite on some process."""
    is_finite: Tensor
    """[micro batches] bool, this process's micro batches whose losses are finite."""
    stop_requested: bool
    """Some process was asked to stop; equal on all processes."""
    sample_checksum: int
    """Of the whole global batch, as `sample_log` says; equal on all processes."""
    exhausted_loss_scale: float | None = None
    """The smallest loss scale, if gradients overflow even there (fp16): DeepSpeed can take no further step."""


class TrainStep:
    """Runs optimizer steps on one process of a DeepSpeed job.

    Args:
        engine: a DeepSpeed engine around a `KeBioLMForPreTraining`.
        learning_rate: the rate of a step, counted from 0.
        seed: the run's seed; dropout is drawn from it.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(
        self, engine: Any, *, learning_rate: Callable[[int], float], seed: int, rank: int, world_size: int
    ) -> None:
        self.engine, self.learning_rate = engine, learning_rate
        self._seed, self._rank, self._world_size = seed, rank, world_size

    def __call__(self, step: int, batches: list[Batch], *, wants_stop: bool = False) -> StepResult:
        """Train on this process's micro batches of one step.

        Each task's loss is its sum over targets divided by the number of targets in the whole global batch (not the
        mean of micro batch means), so the gradient does not depend on how the batch is cut into processes and micro
        batches.

        Args:
            step: optimizer step, counted from 0.
            batches: micro batches, equally many on every process.
            wants_stop: this process was asked to stop; the result says so on all of them.
        """
        checksum = sum(checksum_of_samples(batch["sample_ids"]) for batch in batches)
        # Counted where the loader left them, on the host: nothing of it runs on a GPU.
        counts = torch.stack([count_targets(batch) for batch in batches]).sum(0)
        shared = _without_waiting(torch.cat([counts, counts.new_tensor([wants_stop, checksum])]), self.engine.device)
        shared = sum_over_processes(shared)
        batches = [to_device(batch, self.engine.device) for batch in batches]
        on_host = shared.to("cpu", non_blocking=True)
        counts = shared[:_TARGETS]
        # DeepSpeed averages gradients over processes and micro batches; the product undoes that.
        scale = self._world_size * len(batches) / counts[:3].clamp(min=1).float()
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        sums = torch.zeros(3, dtype=torch.float64, device=self.engine.device)
        are_finite = []
        for micro, batch in enumerate(batches):
            self._seed_dropout(step, micro, len(batches))
            micro_sums = loss_sums(self.engine(**model_inputs(batch)))
            is_finite = micro_sums.detach().isfinite().all()
            # A loss that is not finite makes every gradient so, and DeepSpeed then leaves the weights alone.
            self.engine.backward((micro_sums * scale).sum() * torch.where(is_finite, 1.0, torch.nan))
            can_go_on = self._update()
            sums += micro_sums.detach().double()
            are_finite.append(is_finite)
        # DeepSpeed has waited for the gradients' norm, the one wait of a step, so the copy made before them is there.
        return StepResult(
            loss_sums=sums,
            counts=counts,
            was_applied=can_go_on and self.engine.was_step_applied(),
            is_finite=torch.stack(are_finite),
            stop_requested=bool(on_host[_TARGETS] > 0),
            sample_checksum=int(on_host[_TARGETS + 1]),
            exhausted_loss_scale=None if can_go_on else float(self.engine.loss_scale()),
        )

    def _update(self) -> bool:
        """DeepSpeed's update after the last micro batch; false where gradients overflow at the smallest loss scale."""
        try:
            self.engine.step()
        except Exception as error:  # DeepSpeed has no class of its own for this
            if "loss scale already at minimum" not in str(error):
                raise
            return False
        return True

    def _seed_dropout(self, step: int, micro: int, micro_batches: int) -> None:
        # A function of the micro batch's place in the whole run: a resumed run draws what the undisturbed one would
        # have, and so does one that goes on with another number of processes.
        place = (step * micro_batches + micro) * self._world_size + self._rank
        torch.manual_seed((self._seed * _DROPOUT_STREAM + place) % 2**63)


def _without_waiting(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from pageable memory a GPU would copy it only after all work that is under way."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def model_inputs(batch: Batch) -> Batch:
    """What the model takes of a batch."""
    return {name: tensor for name, tensor in batch.items() if name != "sample_ids"}
