"""A job or its sender that dies, or is followed by another: MLflow shows the run's true state, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kebiolm.tracking.delivery import Delivery
from kebiolm.tracking.mlflow_sender import MlflowSender
from kebiolm.tracking.run_description import described_run, end_run
from kebiolm.tracking.sender import Sender
from tests.tracking.proxy import Proxy
from tests.tracking.runs import (
    assert_mlflow_has_every_record_once,
    describe,
    start_sender,
    status_of,
    wait_until,
    write_steps,
)


def test_run_whose_process_dies_is_shown_as_failed_and_goes_on_as_the_same(tmp_path: Path, proxy: Proxy) -> None:
    code = (
        "import os, sys; from pathlib import Path; from tests.tracking.runs import *\n"
        "write_steps(Path(sys.argv[1]), range(5)); start_sender(Path(sys.argv[1]), sys.argv[2])\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path), proxy.uri]
    training = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert training.stdout.readline() == b"ready\n"
    wait_until(lambda: described_run(tmp_path)["run_id"] and status_of(proxy.uri, tmp_path) == "RUNNING")
    training.send_signal(signal.SIGKILL)
    training.wait()
    wait_until(lambda: status_of(proxy.uri, tmp_path) == "FAILED")

    write_steps(tmp_path, range(5, 8))
    sender = start_sender(tmp_path, proxy.uri)
    wait_until(lambda: status_of(proxy.uri, tmp_path) == "RUNNING")
    # A scheduler signals all processes of a job; this one must live until the training process has ended.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(sender._process.pid, number)
    sender.finish("KILLED")
    assert status_of(proxy.uri, tmp_path) == "KILLED"
    assert_mlflow_has_every_record_once(proxy.uri, tmp_path)


def test_sender_of_an_earlier_start_leaves_the_run_alone(tmp_path: Path, proxy: Proxy) -> None:
    write_steps(tmp_path, range(3))
    first = Sender(tmp_path, describe(tmp_path, proxy.uri), orders=0)
    describe(tmp_path, proxy.uri)
    assert first.finish("")  # its training process has died, and is back already
    assert described_run(tmp_path)["status"] == "RUNNING"
    assert proxy.requests == 0


def test_run_that_is_started_again_during_the_last_delivery_of_the_job_before_stays_running(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_steps(tmp_path, range(3))
    first = Sender(tmp_path, describe(tmp_path, proxy.uri), orders=0)
    first._deliver()
    send_figures = Delivery.send_figures

    def start_again_meanwhile(delivery: Delivery) -> int:
        monkeypatch.undo()
        describe(tmp_path, proxy.uri)
        return send_figures(delivery)

    monkeypatch.setattr(Delivery, "send_figures", start_again_meanwhile)
    assert first.finish("")
    assert described_run(tmp_path)["status"] == "RUNNING"
    assert status_of(proxy.uri, tmp_path) == "RUNNING"


def test_run_that_was_taken_for_ended_while_it_goes_on_is_shown_as_running_again(tmp_path: Path, proxy: Proxy) -> None:
    write_steps(tmp_path, range(3))
    sender = Sender(tmp_path, describe(tmp_path, proxy.uri), orders=0)
    sender._deliver()
    end_run(tmp_path, "FAILED")
    Delivery(tmp_path).set_status("FAILED", 1)
    sender._deliver()
    assert (described_run(tmp_path)["status"], described_run(tmp_path)["ended_ms"]) == ("RUNNING", None)
    assert status_of(proxy.uri, tmp_path) == "RUNNING"


def test_sender_that_dies_is_said_and_another_one_goes_on(
    tmp_path: Path, proxy: Proxy, capfd: pytest.CaptureFixture[str]
) -> None:
    write_steps(tmp_path, range(3))
    start = describe(tmp_path, proxy.uri)
    sender = MlflowSender(tmp_path, start, seconds_to_restart=0.0)
    first = sender._process
    first.kill()
    first.wait()
    sender.look_after()
    assert "the process that talks to MLflow has ended (status -9)" in capfd.readouterr().err
    assert sender._process.pid != first.pid
    sender.finish("FINISHED")
    assert_mlflow_has_every_record_once(proxy.uri, tmp_path)
    assert status_of(proxy.uri, tmp_path) == "FINISHED"


@pytest.mark.parametrize("status", [-signal.SIGKILL, 1])
def test_sender_that_died_unseen_is_said_at_the_end(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start = describe(tmp_path, "http://127.0.0.1:9")
    code = f"import os; os._exit({status})" if status > 0 else "import os; os.kill(os.getpid(), 9)"
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -S -c '{code}'\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    MlflowSender(tmp_path, start).finish("FINISHED")
    said = " ".join(capfd.readouterr().err.split())
    assert f"the sender ended with status {status}" in said
    assert "run `kebiolm track sync" in said
