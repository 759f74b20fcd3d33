"""A request to stop: SIGTERM, SIGUSR1 or Ctrl-C on any process, or `kebiolm stop OUTPUT` from anywhere.

A scheduler warns a job before it ends it. The signal only raises a flag here; the step that is under way says of all
processes whether one of them was asked, and then all save a last checkpoint together and end with status 75, which
means "try again" (EX_TEMPFAIL).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kebiolm.console import console
from kebiolm.errors import UserError
from kebiolm.training.run_folder import RUN_FILE

EXIT_STATUS = 75
STOP_FILE = "stop_requested"
"""In the output folder; for clusters where a signal does not reach the processes (pdsh)."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def ask_to_stop(output: Path) -> None:
    """Ask the run at `output` to stop after the step that is under way.

    Raises:
        UserError: `output` is not the folder of a run.
    """
    if not (output / RUN_FILE).is_file():
        got = "another folder" if output.is_dir() else "no such folder"
        raise UserError(output, got=got, expected="the output folder of a pretraining run", mend="check the path")
    (output / STOP_FILE).touch()
    console.print(f"asked: the run at {output} saves a checkpoint and ends after the step that is under way")


class StopRequest:
    """Whether this process was asked to stop, and by what.

    Args:
        output: the run's folder, where `STOP_FILE` is looked for; None on processes that need not look.
    """

    def __init__(self, output: Path | None) -> None:
        self._stop_file = None if output is None else output / STOP_FILE
        self._signal: str | None = None

    @property
    def reason(self) -> str | None:
        """Name of the signal or of the stop file; None while nobody asked."""
        if self._signal is None and self._stop_file is not None and self._stop_file.exists():
            return self._stop_file.name
        return self._signal

    def forget(self) -> None:
        """Remove the stop file: it asks one job to stop, not the next one too."""
        if self._stop_file is not None:
            self._stop_file.unlink(missing_ok=True)

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
