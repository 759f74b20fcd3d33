"""The training process's end of the sender: start it, and tell it how the run ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import kebiolm
from kebiolm.tracking.run_description import end_run
from kebiolm.tracking.sender import SECONDS_AT_THE_END, say_undelivered

_PATIENCE_S = SECONDS_AT_THE_END + 10.0  # for a request that was under way


class MlflowSender:
    """Carries a run's figures to MLflow in a process of its own, which has started when this returns.

    Args:
        output: the run's folder, described by `describe_run`.
        start: what `describe_run` returned.
        system_metrics_seconds: between two samples of this machine's load; 0 for none.
    """

    def __init__(self, output: Path, start: int, *, system_metrics_seconds: float = 0.0) -> None:
        self._output = output
        command = [sys.executable, "-W", "ignore", "-m", "kebiolm.tracking.sender"]
        self._process = subprocess.Popen(
            [*command, str(output.resolve()), str(start), str(system_metrics_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": _with_this_package(os.environ.get("PYTHONPATH"))},
            start_new_session=True,
        )

    def finish(self, status: str) -> None:
        """Wait for the last delivery, 40 seconds at most; what could not be delivered is said, and waits for a sync.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
        """
        try:
            self._process.communicate(status.encode(), timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            say_undelivered(self._output, "no answer")
        if self._process.returncode not in (0, 1, -signal.SIGKILL):
            say_undelivered(self._output, f"the sender ended with status {self._process.returncode}")
        # Last: the sender may have added the MLflow run's id.
        end_run(self._output, status)


def _with_this_package(python_path: str | None) -> str:
    """PYTHONPATH with which the sender finds this package too, wherever it is started."""
    return os.pathsep.join(filter(None, [str(Path(kebiolm.__file__).resolve().parents[1]), python_path]))
