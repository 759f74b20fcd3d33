"""Small runs to track, and what MLflow has of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient

from kebiolm.tracking.delivery import SPOOLS
from kebiolm.tracking.metric_log import MetricLog, read_records
from kebiolm.tracking.metric_names import mlflow_name
from kebiolm.tracking.mlflow_sender import MlflowSender
from kebiolm.tracking.run_description import RunDescription, describe_run, described_run

PATIENCE_S = 60


def describe(output: Path, uri: str | None, **more: object) -> int:
    """Describe a start of the run at `output`; returns its number."""
    given = {"experiment": "test", "run_name": output.name, "parameters": {"a.b": 1}} | more
    return describe_run(output, RunDescription(tracking_uri=uri, **given))


def start_sender(output: Path, uri: str, *, system_metrics_seconds: float = 0.0, **more: object) -> MlflowSender:
    """Start the sender of a run, described first."""
    return MlflowSender(output, describe(output, uri, **more), system_metrics_seconds=system_metrics_seconds)


def write_steps(output: Path, steps: range) -> None:
    """Record training losses."""
    log = MetricLog(output)
    for step in steps:
        log.append("train", step, {"loss": 1.0 / (step + 1), "loss_mlm": float(step)})
    log.close()


def wait_until(is_so: Callable[[], object]) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def status_of(uri: str, output: Path) -> str:
    """MLflow's word for the state of the run."""
    return MlflowClient(uri).get_run(described_run(output)["run_id"]).info.status


def assert_mlflow_has_every_record_once(uri: str, output: Path) -> None:
    """Compare every point that MLflow has of a run with its spools: key, step, time and value."""
    expected = sorted(
        (mlflow_name(record["kind"], name), record["step"], record["time_ms"], value)
        for spool in SPOOLS
        for record in read_records(output / spool)
        for name, value in record["metrics"].items()
    )
    client = MlflowClient(uri)
    described = described_run(output)
    experiment = client.get_experiment_by_name(described["experiment"]).experiment_id
    (run,) = [run for run in client.search_runs([experiment]) if run.data.tags["kebiolm.run"] == described["key"]]
    assert run.info.run_id == described["run_id"]
    found = [
        (key, point.step, point.timestamp, point.value)
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
    ]
    assert expected
    assert sorted(found) == expected
