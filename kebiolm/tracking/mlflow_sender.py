"""The training process's end of the sender: start it, look after it, and tell it how the run ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import kebiolm
from kebiolm.console import error_console
from kebiolm.tracking.run_description import end_run
from kebiolm.tracking.sender import SAID, SECONDS_AT_THE_END, say_undelivered

_PATIENCE_S = SECONDS_AT_THE_END + 8.0  # for a request under way; DeepSpeed's launcher kills after 30 s in all
_SECONDS_TO_RESTART = 60.0
_MOST_SECONDS_TO_RESTART = 3600.0


class NoSender:
    """In the place of a sender where MLflow is switched off: only the run's own folder says how it ended.

    Args:
        output: the run's folder, described by `describe_run`.
    """

    def __init__(self, output: Path) -> None:
        self._output = output

    def look_after(self) -> None:
        """There is nothing to look after."""

    def finish(self, status: str) -> None:
        """Write down the status."""
        end_run(self._output, status)


class MlflowSender:
    """Carries a run's figures to MLflow in a process of its own, which has started when this returns.

    Args:
        output: the run's folder, described by `describe_run`.
        start: what `describe_run` returned.
        system_metrics_seconds: between two samples of this machine's load; 0 for none.
        seconds_to_restart: at least so long after a start the process is started again if it dies; doubled each time.
    """

    def __init__(
        self,
        output: Path,
        start: int,
        *,
        system_metrics_seconds: float = 0.0,
        seconds_to_restart: float = _SECONDS_TO_RESTART,
    ) -> None:
        self._output = output
        self._arguments = [str(output.resolve()), str(start), str(system_metrics_seconds)]
        self._seconds_to_restart = seconds_to_restart
        self._start_process()

    def look_after(self) -> None:
        """Start the process again if it has died; takes microseconds otherwise, so it can be called after each step."""
        if self._process.poll() is None or time.monotonic() - self._started < self._seconds_to_restart:
            return
        error_console.print(
            f"[yellow]the process that talks to MLflow has ended (status {self._process.returncode}):[/] "
            "another one goes on where it stopped"
        )
        self._process.stdin.close()
        self._seconds_to_restart = min(2 * self._seconds_to_restart, _MOST_SECONDS_TO_RESTART)
        self._start_process()

    def finish(self, status: str) -> None:
        """Wait for the last delivery, 28 seconds at most; what could not be delivered is said, and waits for a sync.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
        """
        try:
            self._process.communicate(status.encode(), timeout=_PATIENCE_S)
            if self._process.returncode not in (0, SAID):
                say_undelivered(self._output, f"the sender ended with status {self._process.returncode}")
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            say_undelivered(self._output, "no answer")
        # Last: the sender may have added the MLflow run's id.
        end_run(self._output, status)

    def _start_process(self) -> None:
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "kebiolm.tracking.sender", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": _with_this_package(os.environ.get("PYTHONPATH"))},
            start_new_session=True,
        )


def _with_this_package(python_path: str | None) -> str:
    """PYTHONPATH with which the sender finds this package too, wherever it is started."""
    return os.pathsep.join(filter(None, [str(Path(kebiolm.__file__).resolve().parents[1]), python_path]))
