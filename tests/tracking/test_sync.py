"""`kebiolm track sync` delivers later, mends the run's state, and says in one line why it cannot."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kebiolm.errors import UserError
from kebiolm.tracking.delivery import CURSOR
from kebiolm.tracking.metric_log import RECORDS
from kebiolm.tracking.mlflow_sender import NoSender
from kebiolm.tracking.run_description import described_run, end_run
from kebiolm.tracking.sync import SILENCE_S, sync_run
from tests.tracking.proxy import Proxy
from tests.tracking.runs import assert_mlflow_has_every_record_once, describe, status_of, write_steps


def test_all_figures_arrive_once_with_the_times_of_the_run(
    tmp_path: Path, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    describe(tmp_path, proxy.uri, artifacts=("report.html",))
    (tmp_path / "report.html").write_text("page")
    write_steps(tmp_path, range(3))
    end_run(tmp_path, "FINISHED")
    assert sync_run(tmp_path) == 3
    assert sync_run(tmp_path) == 0
    assert "nothing to send" in capsys.readouterr().out
    (tmp_path / CURSOR).unlink()
    assert sync_run(tmp_path) == 3  # all of it again
    assert_mlflow_has_every_record_once(proxy.uri, tmp_path)
    described = described_run(tmp_path)
    run = MlflowClient(proxy.uri).get_run(described["run_id"])
    assert (run.info.status, run.info.start_time, run.info.end_time) == (
        "FINISHED",
        described["started_ms"],
        described["ended_ms"],
    )
    assert [file.path for file in MlflowClient(proxy.uri).list_artifacts(run.info.run_id)] == ["report.html"]


def test_run_that_was_killed_is_marked_failed_but_not_while_it_gives_signs_of_life(
    tmp_path: Path, proxy: Proxy
) -> None:
    describe(tmp_path, proxy.uri)
    write_steps(tmp_path, range(3))
    (tmp_path / CURSOR).touch()
    assert sync_run(tmp_path) == 3
    assert status_of(proxy.uri, tmp_path) == "RUNNING"
    long_ago = time.time() - SILENCE_S - 60
    for name in (CURSOR, RECORDS):
        os.utime(tmp_path / name, (long_ago, long_ago))
    sync_run(tmp_path)
    assert status_of(proxy.uri, tmp_path) == "FAILED"


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        sync_run(tmp_path / "absent")
    with pytest.raises(UserError, match=r"metrics\.jsonl: got no such file"):
        sync_run(tmp_path)


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    describe(tmp_path, "http://127.0.0.1:9")
    write_steps(tmp_path, range(3))
    with pytest.raises(UserError, match="no good answer from MLflow") as caught:
        sync_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_run_without_mlflow_is_sent_once_somebody_says_where_to(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)  # the recipe's null wins
    describe(tmp_path, None)
    write_steps(tmp_path, range(3))
    NoSender(tmp_path).finish("FINISHED")
    assert described_run(tmp_path)["tracking_uri"] is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match=r"tracking_uri is null\); .* set MLFLOW_TRACKING_URI"):
        sync_run(tmp_path)
    assert proxy.requests == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    assert sync_run(tmp_path) == 3
    assert_mlflow_has_every_record_once(proxy.uri, tmp_path)
    assert status_of(proxy.uri, tmp_path) == "FINISHED"


def test_run_without_mlflow_may_get_an_address_when_it_is_resumed(tmp_path: Path, proxy: Proxy) -> None:
    describe(tmp_path, None)
    describe(tmp_path, proxy.uri)
    assert described_run(tmp_path)["tracking_uri"] == proxy.uri
    describe(tmp_path, None)
    assert described_run(tmp_path)["tracking_uri"] == proxy.uri


def test_wrong_address_can_be_mended_until_a_server_has_the_run(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    describe(tmp_path, "http://127.0.0.1:9")
    write_steps(tmp_path, range(3))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    assert sync_run(tmp_path) == 3
    assert_mlflow_has_every_record_once(proxy.uri, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert sync_run(tmp_path) == 0
    assert f"MLFLOW_TRACKING_URI is passed over: this run is at {proxy.uri}" in capsys.readouterr().out
