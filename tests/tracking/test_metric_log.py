"""Figures reach the local file whole and once, whatever happens to the process or the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from kebiolm.errors import UserError
from kebiolm.tracking.metric_log import MetricLog, read_records
from tests.full_disk import room_for


def steps_in(path: Path) -> list[tuple[str, int, float]]:
    return [(record["kind"], record["step"], record["metrics"]["loss"]) for record in read_records(path)]


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
    seen = [("train", 1, 1.0), ("train", 2, 2.0), ("train", 3, 3.0), ("train", 4, -1.0), ("heldout", 2, 9.0)]
    assert steps_in(log.path) == seen


def test_broken_records_are_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind"\n{}\n')
    with pytest.raises(UserError, match="broken line"):
        MetricLog(tmp_path)


def test_full_disk_is_said_once_and_nothing_is_lost_when_there_is_room_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = MetricLog(tmp_path)
    log.append("train", 0, {"loss": 0.0})
    full = log.path.stat().st_size + 30  # less than a line: a part of one could be written
    with room_for(full):
        for step in (1, 2, 3):
            log.append("train", step, {"loss": float(step)})
    assert steps_in(log.path) == [("train", 0, 0.0)]
    said = capfd.readouterr().err
    assert said.count("cannot be written (File too large)") == 1
    log.append("train", 4, {"loss": 4.0})
    log.close()
    assert steps_in(log.path) == [("train", step, float(step)) for step in range(5)]
    assert "none of the figures is lost" in capfd.readouterr().err


def test_disk_that_stays_full_is_one_line_at_the_end(tmp_path: Path) -> None:
    log = MetricLog(tmp_path)
    log.append("train", 0, {"loss": 0.0})
    with room_for(log.path.stat().st_size):
        log.append("train", 1, {"loss": 1.0})
        log.append("train", 2, {"loss": 2.0})
        with pytest.raises(UserError, match="2 records could not be written") as caught:
            log.close()
    assert "\n" not in str(caught.value)
    assert steps_in(log.path) == [("train", 0, 0.0)]


def test_step_of_a_kind_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    log = MetricLog(tmp_path)
    for _ in range(2):
        log.append("train", 5, {"loss": 1.0})
    log.close()
    assert (log.last_step("train"), log.last_step("heldout")) == (5, -1)
    assert len(read_records(log.path)) == 1
