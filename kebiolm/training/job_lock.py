"""One job at a time on an output folder: a lock file that shows that its job is alive.

Locks of the operating system do not reach across hosts on every shared file system, so a job writes its name, host and
process into OUTPUT/job.json and renews that file. A job that was killed leaves it behind, and must not block the one
that goes on: a process of this machine is looked up; one elsewhere is dead if its file does not change for a while.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from kebiolm.console import USER_ERROR_STATUS, console, error_console
from kebiolm.errors import UserError
from kebiolm.files import write_json

LOCK_FILE = "job.json"
BEAT_S = 10.0
DEAD_AFTER_S = 45.0
"""A job on another host is taken for dead when its file has not changed for so long."""


@dataclass(frozen=True)
class Job:
    """Who works on an output folder, as its lock file says."""

    name: str
    """Random; tells one job from the next on the same host."""
    host: str
    namespace: int
    """Number of the process namespace: containers of one host see different processes under the same pid."""
    boot: str
    """Identity of the running kernel: a host that was started again has none of its processes."""
    pid: int
    started: int
    """When the process started, in clock ticks since the boot: process numbers are used again, and a time of day would
    move with the clock."""

    @classmethod
    def of_this_process(cls) -> Job:
        """This process, under a new name."""
        pid = os.getpid()
        return cls(secrets.token_hex(8), socket.gethostname(), _namespace(), _boot(), pid, _start_ticks(pid))

    @property
    def is_here(self) -> bool:
        """Whether its process can be looked up from this one."""
        return (self.host, self.namespace, self.boot) == (socket.gethostname(), _namespace(), _boot())

    @property
    def is_dead(self) -> bool:
        """Whether it `is_here` and its process is gone."""
        if not self.is_here:
            return False
        try:
            is_zombie = psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
            return is_zombie or _start_ticks(self.pid) != self.started
        except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
            return True


def running_job(output: Path) -> Job | None:
    """The job at work on a folder, as far as can be told at once; one on another host may have died."""
    job, _ = _read(output / LOCK_FILE)
    return None if job is None or job.is_dead else job


class JobLock:
    """This job's claim on an output folder, from `take` to the end of its `with` block."""

    def __init__(self, output: Path) -> None:
        self._path, self._beats = output / LOCK_FILE, 0
        self.job = Job.of_this_process()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="kebiolm-job-lock", daemon=True)

    def take(self) -> JobLock:
        """Claim the folder.

        Raises:
            UserError: another job is at work on it.
        """
        while not self._create():
            _wait_until_dead(self._path)
            self._path.unlink(missing_ok=True)
        # Two jobs may have found the same dead one: the second then removed the lock of the first.
        time.sleep(0.1)
        if not self._is_ours():
            raise _refusal(self._path, _read(self._path)[0])
        self._thread.start()
        return self

    def __enter__(self) -> JobLock:
        return self

    def __exit__(self, *_: object) -> None:
        """Give the folder free."""
        self._released.set()
        self._thread.join()
        if self._is_ours():
            self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            with open(self._path, "x", encoding="utf-8") as file:
                file.write(json.dumps(self._content()))
        except FileExistsError:
            return False
        return True

    def _keep_alive(self) -> None:
        while not self._released.wait(BEAT_S):
            try:
                found, _ = _read(self._path)
                # A lock that is gone, or that a network file system cannot read just now, is nobody's: it is renewed.
                if found is not None and found != self.job:
                    # It was suspended, and taken for dead: whatever it did now would be done to the other's files.
                    error_console.print(
                        f"[bold red]error:[/] another job has taken over {self._path.parent}", soft_wrap=True
                    )
                    os._exit(USER_ERROR_STATUS)
                self._beats += 1
                write_json(self._path, self._content())
            except OSError:
                continue  # a full or absent disk is said by the job itself; the next beat may do

    def _content(self) -> dict[str, object]:
        return asdict(self.job) | {"beats": self._beats}

    def _is_ours(self) -> bool:
        return _read(self._path)[0] == self.job


def _wait_until_dead(path: Path) -> None:
    """Return once the job of a lock file is known to be dead.

    Raises:
        UserError: it is alive.
    """
    job, beats = _read(path)
    if job is not None and job.is_here:
        if job.is_dead:
            return
        raise _refusal(path, job)
    who = "an unknown job" if job is None else f"process {job.pid} on {job.host}"
    console.print(f"{path} was left by {who}: waiting {DEAD_AFTER_S:.0f} s to see whether it is alive", soft_wrap=True)
    deadline = time.monotonic() + DEAD_AFTER_S
    while time.monotonic() < deadline and path.exists():
        time.sleep(1.0)
        if _read(path) != (job, beats) and path.exists():
            raise _refusal(path, _read(path)[0])


def _refusal(path: Path, job: Job | None) -> UserError:
    return UserError(
        path.parent,
        got="another job at work on it" + ("" if job is None else f" (process {job.pid} on {job.host})"),
        expected="one job at a time",
        mend="end that one with `kebiolm stop`, or choose another output folder",
    )


def _read(path: Path) -> tuple[Job | None, int]:
    """The job in a lock file and its beats; (None, -1) where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        beats = content.pop("beats")
        return Job(**content), beats
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, -1


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except FileNotFoundError:  # not Linux
        return ""


def _start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since the boot (field 22 of its stat file).

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
    """
    if not Path("/proc/self/stat").is_file():  # not Linux
        return int(psutil.Process(pid).create_time())
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The second field is the program's name in brackets, which may hold anything.
    return int(fields.rpartition(")")[2].split()[22 - 3])


def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux
        return 0
