"""Killed or asked to stop at any moment, a run goes on with the losses and samples of an undisturbed one."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from kebiolm.data.loader import PretrainingLoader
from kebiolm.errors import UserError
from kebiolm.tracking.line_log import LineLog
from kebiolm.tracking.metric_log import RECORDS
from kebiolm.training import assemble, checkpoint
from kebiolm.training.checkpoint import MARKER
from kebiolm.training.evaluation import Evaluator
from kebiolm.training.nonfinite import NonfiniteGuard
from kebiolm.training.sample_log import SAMPLES, read_checksums
from kebiolm.training.stop_request import EXIT_STATUS, STOP_FILE, ask_to_stop
from tests.training.launch import Finished, Job, losses, run_in_this_process

# launch.py of DeepSpeed looks every second, and gives the other processes 30 seconds before it kills them.
SECONDS_FOR_THE_OTHERS = 35.0
SMALL = ["optimization.max_steps=6", "checkpoints.every_steps=3", "evaluation.every_steps=2"]


def has_trained(output: Path, step: int) -> bool:
    return (output / SAMPLES).is_file() and f'"step": {step},' in (output / SAMPLES).read_text()


def test_two_processes_killed_and_stopped_give_the_undisturbed_losses_bit_for_bit(
    trained_run: Path, sample_shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"

    def disturb(after_step: int, rank: int, number: signal.Signals) -> Finished:
        job = Job(sample_shards, output)
        ranks = job.wait_for_ranks()
        assert job.wait_until(lambda: has_trained(output, after_step)), job.wait().output
        ranks[rank].send_signal(number)
        return job.wait()

    killed = disturb(14, 1, signal.SIGKILL)
    assert killed.status not in {0, EXIT_STATUS}
    assert killed.seconds_to_end < SECONDS_FOR_THE_OTHERS

    stopped = disturb(23, 1, signal.SIGTERM)
    assert "resuming after step 10 of 40" in stopped.output
    assert stopped.status == EXIT_STATUS, stopped.output
    assert "Traceback" not in stopped.output
    last = max(read_checksums(output))
    assert (output / "checkpoints" / f"step-{last:08d}" / MARKER).is_file()

    finished = Job(sample_shards, output).wait().check()
    assert f"resuming after step {last} of 40" in finished.output
    for kind in ("train", "heldout"):
        assert losses(output, kind) == losses(trained_run, kind)
    assert read_checksums(output) == read_checksums(trained_run)


@pytest.fixture(scope="module")
def undisturbed(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run of one process, 6 steps, evaluated after 0, 2, 4 and 6. Read only."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run_in_this_process(sample_shards, output, *SMALL)
    return output


class Sends:
    """Calls something real, and at the chosen call sends this process a signal first."""

    def __init__(self, real: Any, number: int, at_call: int = 1, wait_s: float = 0.0) -> None:
        self.real, self.number, self.at_call, self.wait_s, self.calls = real, number, at_call, wait_s, 0

    def __get__(self, instance: object, _: type) -> Any:
        return lambda *arguments, **named: self(instance, *arguments, **named)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.at_call:
            os.kill(os.getpid(), self.number)
            time.sleep(self.wait_s)
        return self.real(*arguments, **named)


STAGES = {
    "set-up": (assemble, "make_initial_model", signal.SIGTERM, 1),
    "evaluation": (Evaluator, "__call__", signal.SIGUSR1, 2),
    "loader-waits": (PretrainingLoader, "step_batches", signal.SIGTERM, 5),
}
"""Name of a stage: (where and what is called then, signal, at which call it comes)."""
# The evaluation after step 2 is given up, and done by the next job; the loader is some steps ahead when it waits.
STEPS_SAVED = {"set-up": {0}, "evaluation": {2}, "loader-waits": {1, 2, 3, 4, 5}}


@pytest.mark.parametrize("stage", STAGES)
def test_asked_to_stop_at_any_stage_it_saves_and_goes_on(
    stage: str, undisturbed: Path, sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name, number, at_call = STAGES[stage]
    monkeypatch.setattr(where, name, Sends(getattr(where, name), number, at_call, wait_s=0.3))
    assert not run_in_this_process(sample_shards, tmp_path / "run", *SMALL)
    saved = sorted((tmp_path / "run" / "checkpoints").glob(f"step-*/{MARKER}"))
    steps = max(read_checksums(tmp_path / "run"), default=0)
    assert steps in STEPS_SAVED[stage]
    assert [int(marker.parent.name[-1]) for marker in saved][-1:] == ([steps] if steps else [])
    monkeypatch.undo()
    assert run_in_this_process(sample_shards, tmp_path / "run", *SMALL)
    for kind in ("train", "heldout"):
        assert losses(tmp_path / "run", kind) == losses(undisturbed, kind)
    assert read_checksums(tmp_path / "run") == read_checksums(undisturbed)


def test_stop_file_of_this_job_is_obeyed_and_that_of_an_earlier_one_is_not(
    undisturbed: Path, sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    real = PretrainingLoader.step_batches

    def ask_at_the_third_step(loader: PretrainingLoader, step: int) -> Any:
        if step == 2 and not (output / STOP_FILE).exists():
            ask_to_stop(output)
        return real(loader, step)

    monkeypatch.setattr(PretrainingLoader, "step_batches", ask_at_the_third_step)
    assert not run_in_this_process(sample_shards, output, *SMALL)
    assert not (output / STOP_FILE).exists()
    monkeypatch.undo()
    with pytest.raises(UserError, match="no running job"):
        ask_to_stop(output)
    # A request that came too late for the job it was meant for.
    (output / STOP_FILE).write_text("name of the job before")
    assert run_in_this_process(sample_shards, output, *SMALL)
    assert losses(output) == losses(undisturbed)


def test_stop_just_before_an_evaluation_does_not_lose_it(
    undisturbed: Path, sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The signal comes after step 1, so that step 2 is the last one; after it an evaluation is due.
    monkeypatch.setattr(NonfiniteGuard, "look_at", Sends(NonfiniteGuard.look_at, signal.SIGTERM))
    assert not run_in_this_process(sample_shards, tmp_path / "run", *SMALL)
    assert sorted(losses(tmp_path / "run", "heldout")) == [0]
    assert max(read_checksums(tmp_path / "run")) == 2
    monkeypatch.undo()
    assert run_in_this_process(sample_shards, tmp_path / "run", *SMALL)
    assert losses(tmp_path / "run", "heldout") == losses(undisturbed, "heldout")


def test_stop_in_the_last_evaluation_does_not_lose_it(
    undisturbed: Path, sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*SMALL, "evaluation.every_steps=4"]
    monkeypatch.setattr(Evaluator, "__call__", Sends(Evaluator.__call__, signal.SIGTERM, at_call=3))
    assert not run_in_this_process(sample_shards, tmp_path / "run", *settings)
    assert (tmp_path / "run" / "checkpoints" / "step-00000006" / MARKER).is_file()
    assert sorted(losses(tmp_path / "run", "heldout")) == [0, 4]
    monkeypatch.undo()
    assert run_in_this_process(sample_shards, tmp_path / "run", *settings)
    expected = losses(undisturbed, "heldout")
    assert losses(tmp_path / "run", "heldout") == {step: expected[step] for step in (0, 4, 6)}


def test_resume_between_logged_steps(sample_shards: Path, tmp_path: Path) -> None:
    steps = ["optimization.max_steps=6", "checkpoints.every_steps=3", "tracking.every_steps=100"]
    run_in_this_process(sample_shards, tmp_path / "run", *steps)
    assert sorted(losses(tmp_path / "run")) == [1, 3, 6]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    run_in_this_process(sample_shards, tmp_path / "run", *steps)
    assert (tmp_path / "run" / "checkpoints" / "step-00000006" / MARKER).is_file()


def test_figures_and_checksums_are_on_disk_before_the_checkpoint_that_follows_them(
    sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    put_on_disk, mark = LineLog.put_on_disk, checkpoint._mark_complete
    monkeypatch.setattr(LineLog, "put_on_disk", lambda log: (done.append(log.path.name), put_on_disk(log)))
    monkeypatch.setattr(checkpoint, "_mark_complete", lambda *given: (done.append(MARKER), mark(*given)))
    run_in_this_process(sample_shards, tmp_path / "run", "optimization.max_steps=1")
    assert done[:3] == [RECORDS, SAMPLES, MARKER]
