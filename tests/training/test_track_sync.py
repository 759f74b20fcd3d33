"""`kebiolm track sync` delivers later, and says in one line why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from kebiolm.errors import UserError
from kebiolm.training.track_sync import sync_run
from kebiolm.training.tracking import MetricLog, describe_run


def _make_run(output: Path, uri: str) -> None:
    describe_run(output, tracking_uri=uri, experiment="test", run_name="one", parameters={}, artifacts=[])
    log = MetricLog(output)
    for step in (1, 2, 3):
        log.append("train", step, {"loss": 1.0 / step})
    log.close()


def test_all_figures_arrive_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    _make_run(tmp_path, uri)
    assert sync_run(tmp_path) == 3
    assert sync_run(tmp_path) == 0
    assert "nothing to send" in capsys.readouterr().out
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3]


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        sync_run(tmp_path / "absent")
    with pytest.raises(UserError, match=r"metrics\.jsonl: got no such file"):
        sync_run(tmp_path)


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _make_run(tmp_path, "http://127.0.0.1:9")
    with pytest.raises(UserError, match="no answer from MLflow") as caught:
        sync_run(tmp_path)
    assert "\n" not in str(caught.value)
