"""Losses and gradients that are not finite never reach the weights: stop or skip, with the samples named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from kebiolm.errors import UserError
from kebiolm.training import train_step
from kebiolm.training.config import StabilitySection
from kebiolm.training.deepspeed_engine import init_distributed
from kebiolm.training.metrics import loss_sums
from kebiolm.training.nonfinite import RECORD, NonfiniteGuard
from kebiolm.training.train_step import StepResult, TrainStep, model_inputs
from tests.full_disk import room_for
from tests.training.launch import losses, run_in_this_process
from tests.training.one_process import make_one_process

STEPS = "optimization.max_steps=6"
BAD_STEP = 3  # counted from 1


@pytest.fixture
def bad_batch(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Makes one loss of the first micro batch of step BAD_STEP infinite; yields that batch's sample ids."""
    seen: list[int] = []
    samples: list[int] = []

    def note(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(1)
        if len(seen) == place:
            samples[:] = batch["sample_ids"].tolist()
        return model_inputs(batch)

    def sums(output: object) -> Tensor:
        found = loss_sums(output)
        return found * torch.tensor([1.0, torch.inf, 1.0]) if len(seen) == place else found

    place = 2 * (BAD_STEP - 1) + 1  # two micro batches a step
    monkeypatch.setattr(train_step, "model_inputs", note)
    monkeypatch.setattr(train_step, "loss_sums", sums)
    yield samples


def weights_after(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Collects a copy of all weights before the first and after each optimizer step."""
    copies: list[dict[str, Tensor]] = []
    run_step = TrainStep.__call__

    def step_and_copy(self: TrainStep, *arguments: object, **options: object) -> StepResult:
        if not copies:
            copies.append({name: value.clone() for name, value in self.engine.module.state_dict().items()})
        result = run_step(self, *arguments, **options)
        copies.append({name: value.clone() for name, value in self.engine.module.state_dict().items()})
        return result

    monkeypatch.setattr(TrainStep, "__call__", step_and_copy)
    return copies


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_samples(
    bad_batch: list[int], sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    copies = weights_after(monkeypatch)
    with pytest.raises(UserError, match="a loss that is not finite in samples") as error:
        run_in_this_process(sample_shards, run, STEPS)
    named = ", ".join(map(str, sorted(bad_batch)))
    assert f"step {BAD_STEP}: got a loss that is not finite in samples {named} (all in {RECORD})" in str(error.value)
    assert differing(copies[BAD_STEP - 2], copies[BAD_STEP - 1])
    assert not differing(copies[BAD_STEP - 1], copies[BAD_STEP])
    [record] = [json.loads(line) for line in (run / RECORD).read_text().splitlines()]
    assert record == {
        "step": BAD_STEP,
        "what": "a loss that is not finite",
        "sample_ids": sorted(bad_batch),
        "then": "stop",
    }
    assert sorted(losses(run)) == [1, 2]


def test_a_run_that_skips_goes_on_without_the_step_and_counts_it(
    bad_batch: list[int], sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    copies = weights_after(monkeypatch)
    run_in_this_process(sample_shards, run, STEPS, "stability.on_nonfinite=skip")
    assert not differing(copies[BAD_STEP - 1], copies[BAD_STEP])
    assert differing(copies[BAD_STEP], copies[BAD_STEP + 1])
    recorded = losses(run)
    assert "loss" not in recorded[BAD_STEP]
    for name in ("skipped_steps", "skipped_batches"):
        assert [recorded[step][name] for step in sorted(recorded)] == [0, 0, 1, 1, 1, 1]
    assert json.loads((run / RECORD).read_text())["sample_ids"] == sorted(bad_batch)


def test_a_stopped_run_may_go_on_by_skipping(bad_batch: list[int], sample_shards: Path, tmp_path: Path) -> None:
    settings = [STEPS, "checkpoints.every_steps=2"]
    with pytest.raises(UserError, match=r"stability\.on_nonfinite=skip"):
        run_in_this_process(sample_shards, tmp_path / "run", *settings)
    run_in_this_process(sample_shards, tmp_path / "run", *settings, "stability.on_nonfinite=skip")
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4, 5, 6]


def test_a_gradient_that_is_not_finite_names_all_samples_of_the_step(
    sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(1, 100))

    def sums(output: object) -> Tensor:
        found = loss_sums(output)
        if next(steps) == 2 * BAD_STEP:
            found.register_hook(lambda gradient: gradient * torch.inf)
        return found

    monkeypatch.setattr(train_step, "loss_sums", sums)
    with pytest.raises(UserError, match="a gradient that is not finite in samples"):
        run_in_this_process(sample_shards, tmp_path / "run", STEPS)
    assert len(json.loads((tmp_path / "run" / RECORD).read_text())["sample_ids"]) == 4  # the global batch


def left_out(*finite: bool, exhausted_loss_scale: float | None = None) -> StepResult:
    """A step that was not applied, with these micro batches."""
    nothing = torch.zeros(4)
    return StepResult(nothing[:3], nothing, False, torch.tensor(finite), False, 0, exhausted_loss_scale)


@pytest.mark.parametrize("then", ["stop", "skip"])
def test_bad_batch_is_named_even_when_the_loss_scale_cannot_fall_any_further(then: str, tmp_path: Path) -> None:
    init_distributed()
    batches = [{"sample_ids": torch.tensor([micro])} for micro in (7, 8)]
    guard = NonfiniteGuard(StabilitySection(on_nonfinite=then), tmp_path, is_fp16=True)
    with pytest.raises(UserError, match="in samples 8 "):
        guard.look_at(4, batches, left_out(True, False, exhausted_loss_scale=1.0))
    assert json.loads((tmp_path / RECORD).read_text())["then"] == "stop"
    with pytest.raises(UserError, match=r"overflows at the smallest loss scale \(1\); .* or train in bf16"):
        guard.look_at(4, batches, left_out(True, True, exhausted_loss_scale=1.0))


def test_step_says_when_the_loss_scale_cannot_fall_any_further(
    sample_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_one_process(sample_shards)

    def refuse() -> None:
        """In DeepSpeed's words; fp16 itself needs a GPU."""
        raise Exception("Current loss scale already at minimum - cannot decrease scale anymore. Exiting run.")

    monkeypatch.setattr(run.engine.optimizer, "step", refuse)
    (result,) = run.train(0, 1)
    assert not result.was_applied
    assert result.exhausted_loss_scale is not None


def test_count_of_skipped_batches_goes_on_after_a_resume(tmp_path: Path) -> None:
    init_distributed()
    settings = StabilitySection(on_nonfinite="skip")
    batches = [{"sample_ids": torch.tensor([0])}]
    first = NonfiniteGuard(settings, tmp_path, is_fp16=True)
    for step in (3, 8):
        first.look_at(step, batches, left_out(False))
    with open(tmp_path / RECORD, "a") as file:
        file.write('{"step": 9')  # killed while it wrote
    resumed = NonfiniteGuard(settings, tmp_path, is_fp16=True)
    assert [resumed.skipped_batches(step) for step in (2, 5, 8)] == [0, 1, 2]  # from the checkpoint of step 5
    resumed.look_at(8, batches, left_out(False))
    assert resumed.skipped_batches(9) == 2


def look(rank: int, folder: str, is_fp16: bool, queue: multiprocessing.Queue) -> None:
    """One of two processes: the second one's second micro batch is bad; then nothing but overflows."""
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    settings = StabilitySection(on_nonfinite="skip", max_skipped_in_a_row=5)
    guard = NonfiniteGuard(settings, Path(folder), is_fp16=is_fp16)
    batches = [{"sample_ids": torch.tensor([10 * rank + micro])} for micro in range(2)]

    def result(*finite: bool) -> StepResult:
        return left_out(*finite)

    # In one of the two cases the disk is full at first; the record must wait, and both processes go on.
    with nullcontext() if is_fp16 else room_for(0):
        guard.look_at(1, batches, result(True, rank == 0))
    try:
        for step in range(2, 9):
            guard.look_at(step, batches, result(True, True))
    except UserError as error:
        queue.put((rank, step, guard.skipped_batches(step), str(error)))
    dist.destroy_process_group()


@pytest.mark.parametrize("is_fp16", [True, False])
def test_all_processes_agree_on_the_culprit_and_end_together(is_fp16: bool, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=look, args=(rank, str(tmp_path), is_fp16, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    ends = sorted(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert [end[1] for end in ends] == [5, 5]
    assert [end[2] for end in ends] == ([1, 1] if is_fp16 else [5, 5])
    what = "a gradient that overflows" if is_fp16 else "a gradient that is not finite"
    assert all(f"{what}, 5 steps in a row" in end[3] for end in ends)
    records = [json.loads(line) for line in (tmp_path / RECORD).read_text().splitlines()]
    assert records[0]["sample_ids"] == [11]
    assert len(records) == (1 if is_fp16 else 5)
