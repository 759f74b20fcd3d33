"""Two jobs never work on one output folder at once, and a killed one does not block the next."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from kebiolm.console import USER_ERROR_STATUS
from kebiolm.errors import UserError
from kebiolm.training import job_lock
from kebiolm.training.job_lock import LOCK_FILE, Job, JobLock, running_job
from tests.training.launch import REPOSITORY

HOLD = """
import sys, time
from pathlib import Path
from kebiolm.training import job_lock
from kebiolm.training.job_lock import JobLock
job_lock.BEAT_S = 0.05
with JobLock(Path(sys.argv[1])).take():
    print("taken", flush=True)
    time.sleep(60)
"""


def start_holder(output: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock of `output`."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "taken\n"
    return holder


def test_second_job_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    try:
        with pytest.raises(UserError, match=rf"another job at work on it \(process {holder.pid} on .*kebiolm stop"):
            JobLock(tmp_path).take()
        assert running_job(tmp_path).pid == holder.pid
        holder.kill()
        # Not waited for: a killed process that its parent has not asked for yet is dead all the same.
        deadline = time.monotonic() + 10.0
        while running_job(tmp_path) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        with JobLock(tmp_path).take() as lock:
            assert running_job(tmp_path) == lock.job
        assert not (tmp_path / LOCK_FILE).exists()
    finally:
        holder.kill()
        holder.communicate()


def write_lock(output: Path, job: Job, beats: int = 0) -> None:
    (output / LOCK_FILE).write_text(json.dumps(asdict(job) | {"beats": beats}))


def test_process_number_that_was_used_again_does_not_block(tmp_path: Path) -> None:
    write_lock(tmp_path, replace(Job.of_this_process(), started=1))
    with JobLock(tmp_path).take():
        pass


def test_moving_the_clock_does_not_make_a_job_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.of_this_process()
    now = psutil.Process().create_time()
    # What psutil says after the clock of the host was put forward.
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: now + 3600.0)
    write_lock(tmp_path, job)
    assert running_job(tmp_path) == job


ELSEWHERE = [{"host": "other-host"}, {"namespace": 1}, {"boot": "before"}]


@pytest.mark.parametrize("elsewhere", ELSEWHERE, ids=["host", "container", "host-started-again"])
def test_job_elsewhere_is_dead_once_its_file_does_not_change(
    elsewhere: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job_lock, "DEAD_AFTER_S", 1.5)
    job = replace(Job.of_this_process(), **elsewhere)
    write_lock(tmp_path, job)
    assert running_job(tmp_path) == job
    with JobLock(tmp_path).take():
        assert "waiting 2 s to see whether it is alive" in capsys.readouterr().out


def test_job_elsewhere_is_alive_while_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_lock, "DEAD_AFTER_S", 20.0)
    job = replace(Job.of_this_process(), host="other-host")
    write_lock(tmp_path, job)
    threading.Timer(0.5, write_lock, (tmp_path, job, 1)).start()
    with pytest.raises(UserError, match="on other-host"):
        JobLock(tmp_path).take()


def test_lock_that_cannot_be_read_is_waited_for_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_lock, "DEAD_AFTER_S", 1.0)
    (tmp_path / LOCK_FILE).write_text('{"name": "ha')
    with JobLock(tmp_path).take():
        pass


def beats_in(output: Path) -> int:
    """How often the job has renewed its lock; 0 where that cannot be read."""
    try:
        return json.loads((output / LOCK_FILE).read_text())["beats"]
    except (OSError, ValueError):
        return 0


def test_holder_whose_lock_is_lost_or_cannot_be_read_renews_it(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    try:
        deadline = time.monotonic() + 20.0
        lock = tmp_path / LOCK_FILE
        for spoil in (lock.unlink, lambda: lock.write_text("nonsense")):
            before = beats_in(tmp_path)
            spoil()
            while beats_in(tmp_path) <= before and holder.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            assert beats_in(tmp_path) > before
        # A folder in its place can neither be read nor replaced, like a file system that has lost its server.
        while not lock.is_dir():
            lock.unlink(missing_ok=True)
            with suppress(FileExistsError):
                lock.mkdir()
        time.sleep(0.3)
        lock.rmdir()
        while beats_in(tmp_path) == 0 and holder.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert running_job(tmp_path).pid == holder.pid
        assert holder.poll() is None
    finally:
        holder.kill()
        holder.communicate()


def test_holder_renews_its_lock_and_ends_when_another_has_taken_it(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    try:
        deadline = time.monotonic() + 10.0
        while json.loads((tmp_path / LOCK_FILE).read_text())["beats"] < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert json.loads((tmp_path / LOCK_FILE).read_text())["beats"] >= 2
        other = replace(Job.of_this_process(), name="another", host="other-host")
        # Until it is seen: a renewal that is under way may cover it.
        while holder.poll() is None and time.monotonic() < deadline:
            write_lock(tmp_path, other)
            time.sleep(0.02)
        assert holder.communicate()[0].startswith(f"error: another job has taken over {tmp_path}")
        assert holder.returncode == USER_ERROR_STATUS
        # What belongs to the other is left alone.
        assert running_job(tmp_path) == other
    finally:
        holder.kill()
