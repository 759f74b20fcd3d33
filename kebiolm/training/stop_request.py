"""A request to stop: SIGTERM, SIGUSR1 or Ctrl-C on any process or the launch script, or `kebiolm stop OUTPUT`.

A scheduler warns a job before it ends it. The signal only raises a flag here; the step that is under way says of all
processes whether one of them was asked, and then all save a last checkpoint together and end with status 75, which
means "try again" (EX_TEMPFAIL). An evaluation that is under way is given up; the next job does it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kebiolm.console import console
from kebiolm.errors import UserError
from kebiolm.files import write_text
from kebiolm.training.job_lock import running_job
from kebiolm.training.run_folder import RUN_FILE

EXIT_STATUS = 75
STOP_FILE = "stop_requested"
"""In the output folder, with the name of the job that it asks. A launch script, whose signals pdsh does not carry, does
not know that name and makes a file of its own, `STOP_FILE`.LAUNCH; so a refused launch cannot stop the job at work."""
LAUNCH = "KEBIOLM_LAUNCH"
"""Variable of the environment by which `launch/pretrain.sh` names the launch: random letters and digits."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def ask_to_stop(output: Path) -> None:
    """Ask the run at `output` to stop after the step that is under way.

    Raises:
        UserError: `output` is not the folder of a run, or no job is at work on it.
    """
    if not (output / RUN_FILE).is_file():
        got = "another folder" if output.is_dir() else "no such folder"
        raise UserError(output, got=got, expected="the output folder of a pretraining run", mend="check the path")
    job = running_job(output)
    if job is None:
        raise UserError(
            output, got="no running job", expected="one that can be asked to stop", mend="nothing needs to be done"
        )
    write_text(output / STOP_FILE, job.name)
    console.print(
        f"asked: process {job.pid} on {job.host} saves a checkpoint and ends after the step that is under way",
        soft_wrap=True,
    )


class StopRequest:
    """Whether this process was asked to stop, and by what."""

    def __init__(self) -> None:
        self._stop_file: Path | None = None
        self._launch_file: Path | None = None
        self._job = ""
        self._signal: str | None = None

    @property
    def reason(self) -> str | None:
        """Name of the signal or of the file that asked; None while nobody did."""
        return self._signal or self._asking_file()

    def watch(self, output: Path, job: str) -> None:
        """Look for files that ask this job too, on the one process that does.

        Args:
            output: the run's folder.
            job: name of this job, as its lock has it.
        """
        self._stop_file, self._job = output / STOP_FILE, job
        if launch := os.environ.get(LAUNCH):
            self._launch_file = output / f"{STOP_FILE}.{launch}"

    def forget(self) -> None:
        """Remove the files that asked."""
        for path in (self._stop_file, self._launch_file):
            if path is not None:
                path.unlink(missing_ok=True)

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Raise the flag at a signal instead of ending; a second Ctrl-C ends at once."""

        def ask(number: int, frame: object) -> None:
            if number == signal.SIGINT and self._signal == "SIGINT":
                raise KeyboardInterrupt
            # Launchers send SIGTERM after Ctrl-C's SIGINT has reached everyone: still one request.
            self._signal = self._signal or signal.Signals(number).name

        former = {number: signal.signal(number, ask) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _asking_file(self) -> str | None:
        if self._launch_file is not None and self._launch_file.exists():
            return self._launch_file.name
        if self._stop_file is None or not self._stop_file.exists():
            return None
        # A request that was made to an earlier job is not for this one, however late it is found.
        return STOP_FILE if self._stop_file.read_text(encoding="utf-8").strip() == self._job else None
