"""What cannot be measured on a machine never ends the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from kebiolm.tracking import system_metrics
from kebiolm.tracking.metric_log import read_records
from kebiolm.tracking.system_metrics import SYSTEM_RECORDS, SystemMetrics
from tests.tracking.runs import wait_until


def test_part_of_the_machine_that_cannot_be_measured_is_said_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(system_metrics, "_gpus", lambda: dict)

    def no_network() -> dict[str, float]:
        raise AttributeError("no interface")

    monkeypatch.setattr(system_metrics, "_network", lambda: no_network)
    metrics = SystemMetrics(tmp_path, 0.01)
    metrics.start()
    wait_until(lambda: len(read_records(tmp_path / SYSTEM_RECORDS)) > 3)
    metrics.stop()
    said = capfd.readouterr().err
    assert said.count("a part is left out") == 1
    assert "no interface" in said
    for record in read_records(tmp_path / SYSTEM_RECORDS):
        assert {"disk_usage_percentage", "system_memory_usage_percentage"} <= record["metrics"].keys()
