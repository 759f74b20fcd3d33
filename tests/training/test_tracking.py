"""Figures reach the local file first and MLflow later; none is lost or doubled."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kebiolm.errors import UserError
from kebiolm.training.tracking import (
    RUN,
    MetricLog,
    MlflowSender,
    describe_run,
    described_run,
    log_artifact,
    read_records,
    sync_records,
)


def start_sender(output: Path, uri: str) -> MlflowSender:
    describe_run(output, tracking_uri=uri, experiment="test", run_name="one", parameters={"a.b": 1}, artifacts=[])
    sender = MlflowSender(output)
    sender.start()
    return sender


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in MlflowClient(uri).get_metric_history(run_id, key)]


def run_id_of(output: Path) -> str:
    return json.loads((output / RUN).read_text())["run_id"]


def test_resumed_log_neither_loses_nor_repeats(tmp_path: Path) -> None:
    log = MetricLog(tmp_path)
    for step in (1, 2, 3):
        log.append("train", step, {"loss": float(step)})
    log.close()
    with open(log.path, "ab") as file:
        file.write(b'{"kind": "train", "st')  # killed in the middle of a line

    resumed = MetricLog(tmp_path)
    for step in (2, 3, 4):
        resumed.append("train", step, {"loss": -1.0})
    resumed.append("heldout", 2, {"loss": 9.0})
    resumed.close()
    seen = [(record["kind"], record["step"], record["metrics"]["loss"]) for record in read_records(log.path)]
    assert seen == [("train", 1, 1.0), ("train", 2, 2.0), ("train", 3, 3.0), ("train", 4, -1.0), ("heldout", 2, 9.0)]


def test_local_database_gets_every_record_and_the_same_run_goes_on(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    log = MetricLog(tmp_path)
    for step in range(1200):  # more than one delivery
        log.append("train", step, {"loss": float(step)})
    start_sender(tmp_path, uri).finish("KILLED")
    run_id = run_id_of(tmp_path)
    assert MlflowClient(uri).get_run(run_id).info.status == "KILLED"
    assert history(uri, run_id, "train/loss") == [(step, float(step)) for step in range(1200)]

    log.append("train", 1200, {"loss": 0.0})
    log.close()
    start_sender(tmp_path, uri).finish("FINISHED")
    assert run_id_of(tmp_path) == run_id
    run = MlflowClient(uri).get_run(run_id)
    assert (run.info.status, run.data.params["a.b"]) == ("FINISHED", "1")
    assert len(history(uri, run_id, "train/loss")) == 1201
    card = tmp_path / "card.md"
    card.write_text("x")
    log_artifact(tmp_path, card)
    assert list((tmp_path / "mlartifacts").rglob("card.md"))
    assert [file.path for file in MlflowClient(uri).list_artifacts(run_id)] == ["card.md"]


def test_store_that_takes_no_files_holds_no_figures_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kebiolm.training.tracking._SECONDS_AT_THE_END", 3.0)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "mlartifacts").write_text("a file where the folder should be")
    card = tmp_path / "card.md"
    card.write_text("x")
    describe_run(tmp_path, tracking_uri=uri, experiment="test", run_name="one", parameters={}, artifacts=[card])
    log = MetricLog(tmp_path)
    log.append("train", 1, {"loss": 1.0})
    log.close()
    for _ in range(2):
        sender = MlflowSender(tmp_path)
        sender.start()
        sender.finish("FINISHED")
        assert sender.last_error
    assert len(MlflowClient(uri).search_runs(["1"])) == 1
    assert history(uri, run_id_of(tmp_path), "train/loss") == [(1, 1.0)]


def test_relative_database_means_the_same_file_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    describe_run(tmp_path, tracking_uri="sqlite:///m.db", experiment="e", run_name="r", parameters={}, artifacts=[])
    assert described_run(tmp_path)["tracking_uri"] == f"sqlite:///{tmp_path / 'm.db'}"


def test_broken_records_are_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind"\n{}\n')
    with pytest.raises(UserError, match="broken line"):
        MetricLog(tmp_path)


def test_server_that_is_down_costs_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kebiolm.training.tracking._SECONDS_AT_THE_END", 1.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]

    log = MetricLog(tmp_path)
    sender = start_sender(tmp_path, uri)
    slowest = 0.0
    for step in range(200):
        started = time.perf_counter()
        log.append("train", step, {"loss": float(step)})
        slowest = max(slowest, time.perf_counter() - started)
    log.close()
    sender.finish("FAILED")
    assert slowest < 0.5
    assert "kebiolm track sync" in capfd.readouterr().err
    assert run_id_of(tmp_path) is None

    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        assert sync_records(tmp_path) == 200
        run_id = run_id_of(tmp_path)
        assert history(uri, run_id, "train/loss") == [(step, float(step)) for step in range(200)]
        assert MlflowClient(uri).get_run(run_id).info.status == "FAILED"
        assert sync_records(tmp_path) == 0
    finally:
        server.terminate()
        server.wait(20)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail("the MLflow server did not start")
