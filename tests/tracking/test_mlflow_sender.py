"""Whatever becomes of the server, nobody waits for it while training, and every figure arrives once."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kebiolm.tracking import sender as sender_module
from kebiolm.tracking.delivery import Delivery, log_artifact
from kebiolm.tracking.metric_log import MetricLog, read_records
from kebiolm.tracking.run_description import RUN, described_run
from kebiolm.tracking.sender import Sender
from kebiolm.tracking.sync import sync_run
from kebiolm.tracking.system_metrics import SYSTEM_RECORDS
from tests.tracking.proxy import Proxy
from tests.tracking.runs import (
    assert_mlflow_has_every_record_once,
    describe,
    start_sender,
    status_of,
    wait_until,
    write_steps,
)


def test_local_database_gets_every_record_and_the_same_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri, run = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "run"
    run.mkdir()
    write_steps(run, range(600))  # more than one delivery
    (run / "report.html").write_text("first")
    files = ("report.html", "later/table.csv")
    start_sender(run, uri, system_metrics_seconds=0.2, artifacts=files).finish("KILLED")
    assert status_of(uri, run) == "KILLED"
    run_id = described_run(run)["run_id"]

    write_steps(run, range(600, 610))
    (run / "report.html").write_text("second")
    (run / "later").mkdir()
    (run / "later" / "table.csv").write_text("a,b\n")
    more = {"parameters": {"a.b": 2, "c": "x"}, "artifacts": files}
    start_sender(run, uri, system_metrics_seconds=0.2, **more).finish("FINISHED")
    assert described_run(run)["run_id"] == run_id
    assert_mlflow_has_every_record_once(uri, run)
    found = MlflowClient(uri).get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"a.b": "1"}  # MLflow's parameters cannot change
    assert found.data.tags["latest_start.a.b"] == "2"
    assert found.data.tags["kebiolm.starts"] == "2"
    files = {file.relative_to(tmp_path).parts[-1]: file for file in (tmp_path / "mlartifacts").rglob("*.*")}
    assert files["report.html"].read_text() == "second"
    assert files["table.csv"].parent.name == "later"
    assert 0 < found.data.metrics["system/system_memory_usage_percentage"] < 100
    steps = [record["step"] for record in read_records(run / SYSTEM_RECORDS)]
    assert steps == list(range(len(steps)))  # the second start goes on counting
    card = tmp_path / "card.md"
    card.write_text("x")
    log_artifact(run, card)
    assert list((tmp_path / "mlartifacts").rglob("card.md"))


@pytest.mark.parametrize("trouble", ["slow", "errors", "gone"])
def test_server_in_trouble_costs_no_time_and_no_figure(trouble: str, tmp_path: Path, proxy: Proxy) -> None:
    """The server is in trouble at the start, well for a while, in trouble again in the middle, and well at the end.

    Timed is all that the training process does for tracking at a step; whole steps: tests/benchmarks/bench_tracking.py.
    """
    errors = iter((500, 429, 401))

    def begin() -> None:
        proxy.delay_s = 2.0 if trouble == "slow" else 0.0
        proxy.status = next(errors) if trouble == "errors" else None
        if trouble == "gone":
            proxy.go()

    def end() -> None:
        proxy.delay_s, proxy.status = 0.0, None
        if trouble == "gone":
            proxy.listen()

    begin()
    log = MetricLog(tmp_path)
    sender = start_sender(tmp_path, proxy.uri)
    slowest = 0.0

    def append(steps: range) -> None:
        nonlocal slowest
        for step in steps:
            started = time.perf_counter()
            log.append("train", step, {"loss": float(step)})
            sender.look_after()
            slowest = max(slowest, time.perf_counter() - started)

    append(range(50))
    if trouble == "gone":
        time.sleep(2.5)
    else:
        wait_until(lambda: proxy.requests)
    if trouble == "errors":
        begin()
    end()
    wait_until(lambda: described_run(tmp_path)["run_id"])
    begin()
    append(range(50, 100))
    time.sleep(0.5)
    end()
    append(range(100, 120))
    log.close()
    sender.finish("FINISHED")
    assert slowest < 0.2
    assert_mlflow_has_every_record_once(proxy.uri, tmp_path)
    assert status_of(proxy.uri, tmp_path) == "FINISHED"


def test_server_that_never_answers_is_said_at_the_end_and_gets_all_later(
    tmp_path: Path, proxy: Proxy, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy.status = 500
    write_steps(tmp_path, range(30))
    sender = start_sender(tmp_path, proxy.uri)
    wait_until(lambda: proxy.requests)
    started = time.monotonic()
    sender.finish("FAILED")
    assert time.monotonic() - started < sender_module.SECONDS_AT_THE_END
    assert "nothing is lost: run `kebiolm track sync" in " ".join(capfd.readouterr().err.split())
    assert described_run(tmp_path)["run_id"] is None
    proxy.status = None
    assert sync_run(tmp_path) == 30
    assert status_of(proxy.uri, tmp_path) == "FAILED"
    assert_mlflow_has_every_record_once(proxy.uri, tmp_path)


def test_lost_answers_make_no_second_run_and_no_second_point(tmp_path: Path, proxy: Proxy) -> None:
    describe(tmp_path, proxy.uri)
    write_steps(tmp_path, range(10))
    lost = 0
    for answers_until_one_is_lost in range(100):
        proxy.loses_answer_after = answers_until_one_is_lost
        try:
            Delivery(tmp_path).send_figures()
            break
        except Exception:  # MLflow raises many kinds
            lost += 1
    assert lost > 3  # looking for the experiment, making it, looking for the run, making it
    proxy.loses_answer_after = None
    assert_mlflow_has_every_record_once(proxy.uri, tmp_path)


def test_store_that_takes_no_files_holds_no_figure_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "mlartifacts").write_text("a file where the folder should be")
    (tmp_path / "card.md").write_text("x")
    write_steps(tmp_path, range(3))
    sender = Sender(tmp_path, describe(tmp_path, uri, artifacts=("card.md",)), orders=0)
    assert sender.finish("FINISHED") is False
    assert_mlflow_has_every_record_once(uri, tmp_path)
    assert status_of(uri, tmp_path) == "FINISHED"


def test_relative_database_means_the_same_file_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    describe(tmp_path, "sqlite:///m.db")
    assert described_run(tmp_path)["tracking_uri"] == f"sqlite:///{tmp_path / 'm.db'}"


def test_description_counts_starts_and_keeps_the_first_parameters(tmp_path: Path) -> None:
    assert describe(tmp_path, "http://127.0.0.1:9", parameters={"x": 1, "y": 2}) == 1
    key = json.loads((tmp_path / RUN).read_text())["key"]
    assert describe(tmp_path, "http://127.0.0.1:9", parameters={"x": 1, "y": 3}) == 2
    described = described_run(tmp_path)
    assert (described["key"], described["parameters"], described["latest_start"]) == (
        key,
        {"x": "1", "y": "2"},
        {"y": "3"},
    )
