"""Steps that DeepSpeed did not apply because a gradient was not finite: counted, named, and a stop where asked for.

In fp16 a gradient that overflows is part of finding the loss scale, and only counted (`overflowed_steps`). A loss that
is not finite, or such a gradient in another precision, is a fault of the batch or of the run: its samples are written
to OUTPUT/nonfinite.jsonl, and the run stops before the weights change or goes on without the step, as configured.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kebiolm.data.collator import Batch
from kebiolm.errors import UserError
from kebiolm.tracking.line_log import LineLog
from kebiolm.training.config import StabilitySection
from kebiolm.training.train_step import StepResult

RECORD = "nonfinite.jsonl"
_NAMED_SAMPLES = 16
_MEND = "lower optimization.learning_rate, or leave such batches out with stability.on_nonfinite=skip"


class NonfiniteGuard:
    """Decides what follows from a step that was not applied.

    Args:
        settings: stop or skip, and how many in a row are too many.
        output: the run's folder, where `RECORD` is written by rank 0.
        is_fp16: whether gradients are scaled and may overflow.
    """

    def __init__(self, settings: StabilitySection, output: Path, *, is_fp16: bool) -> None:
        self._settings, self._output, self._is_fp16 = settings, output, is_fp16
        self._in_a_row = 0
        self._log: LineLog | None = None  # opened by the first bad batch: most runs have none
        # From the file: a run that resumes goes on counting.
        self._skipped = {record["step"] for record in _read_records(output / RECORD) if record["then"] == "skip"}

    def skipped_batches(self, step: int) -> int:
        """Steps of the run up to `step` that were left out because of a batch, not to find the loss scale."""
        return sum(skipped <= step for skipped in self._skipped)

    def look_at(self, step: int, batches: list[Batch], result: StepResult) -> None:
        """Take note of a step; every process must call this with its own micro batches.

        Args:
            step: optimizer steps done, counting this one.
            batches: this process's micro batches.
            result: what the step came to.

        Raises:
            UserError: a batch is not finite and the run is to stop, too many steps in a row were left out, or the loss
                scale cannot fall any further (fp16).
        """
        if result.was_applied:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        culprits = _gather([_sample_ids(batches, ~result.is_finite)])
        if self._is_fp16 and not culprits:
            what, who = "a gradient that overflows", None
        else:
            what = "a loss that is not finite" if culprits else "a gradient that is not finite"
            # With finite losses any micro batch may have made the gradient.
            who = culprits or _gather([_sample_ids(batches, torch.ones_like(result.is_finite))])
            stops = self._settings.on_nonfinite == "stop" or result.exhausted_loss_scale is not None
            self._write(step, what, who, "stop" if stops else "skip")
            if self._settings.on_nonfinite == "stop":
                raise self._error(step, what, who)
            self._skipped.add(step)
        if result.exhausted_loss_scale is not None:
            what += f" at the smallest loss scale ({result.exhausted_loss_scale:g})"
            raise self._error(step, what, who, mend="lower optimization.learning_rate, or train in bf16 or fp32")
        if self._in_a_row >= self._settings.max_skipped_in_a_row:
            raise self._error(step, f"{what}, {self._in_a_row} steps in a row", who)

    def _write(self, step: int, what: str, sample_ids: list[int], then: str) -> None:
        if dist.get_rank() == 0:
            record = {"step": step, "what": what, "sample_ids": sample_ids, "then": then}
            self._log = self._log or LineLog(self._output / RECORD, "bad batches")
            self._log.append(json.dumps(record))

    def _error(self, step: int, what: str, sample_ids: list[int] | None, *, mend: str = _MEND) -> UserError:
        named = ""
        if sample_ids:
            more = f" and {len(sample_ids) - _NAMED_SAMPLES} more" if len(sample_ids) > _NAMED_SAMPLES else ""
            named = f" in samples {', '.join(map(str, sample_ids[:_NAMED_SAMPLES]))}{more} (all in {RECORD})"
        return UserError(
            f"step {step}",
            got=what + named,
            expected="finite losses and gradients; the weights are as before this step",
            mend=mend,
        )


def _read_records(path: Path) -> list[dict[str, Any]]:
    """What earlier jobs of the run have written; half a line of a killed one is passed over."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            records.append(json.loads(line))
    return records


def _sample_ids(batches: list[Batch], chosen: torch.Tensor) -> list[int]:
    flags = chosen.tolist()
    return [int(i) for batch, take in zip(batches, flags, strict=True) if take for i in batch["sample_ids"]]


def _gather(mine: list[Any]) -> list[int]:
    """The sample ids of all processes, sorted."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return sorted(sample_id for of_process in everyone for ids in of_process for sample_id in ids)
