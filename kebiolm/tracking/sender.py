"""The process beside global rank 0 that talks to MLflow: `python -m kebiolm.tracking.sender OUTPUT START SECONDS`.

A process of its own, because MLflow's client holds Python's lock for seconds when it is imported and its database runs
in the caller: in a thread both would delay steps. It ends when its parent writes a status to its standard input, or is
gone.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kebiolm.console import error_console
from kebiolm.tracking.delivery import CURSOR, Delivery
from kebiolm.tracking.run_description import FAILED, RUNNING, described_run, end_run, mark_as_running
from kebiolm.tracking.system_metrics import SystemMetrics

SECONDS_AT_THE_END = 20.0
"""How long the last delivery is tried again."""

SAID = 3
"""Exit status where MLflow does not have everything, which has been said."""

_POLL_S = 2.0
_LONGEST_WAIT_S = 30.0
_SECONDS_AFTER_A_CRASH = 10.0
_FAILURES_AT_THE_END = 3
_FAILURES_UNTIL_SAID = 2
_REASON_CHARACTERS = 200


class Sender:
    """Delivers until it is told the run's last status, then what is left.

    Args:
        output: the run's folder.
        start: number of the start of the run that this sender belongs to.
        orders: file descriptor on which the parent writes the last status.
    """

    def __init__(self, output: Path, start: int, orders: int) -> None:
        self._output, self._start, self._orders = output, start, orders
        self._delivery = Delivery(output)
        self._is_open = False
        self._failures, self._reason = 0, ""

    def follow(self) -> str:
        """Deliver as long as the run goes on; returns the parent's last word, "" if it has gone without one."""
        wait = 0.0
        while (status := self._wait_for_status(wait)) is None:
            wait = _POLL_S if self._try(self._deliver) else min(2.0**self._failures, _LONGEST_WAIT_S)
        return status

    def finish(self, status: str) -> bool:
        """Deliver what is left; returns whether MLflow has everything.

        Args:
            status: what `follow` returned.
        """
        seconds = SECONDS_AT_THE_END
        if not status:
            # It may be back already, with a sender of its own.
            if not self._is_of_latest_start():
                return True
            status, seconds = FAILED, _SECONDS_AFTER_A_CRASH
            end_run(self._output, status)
        ended_ms, deadline = int(time.time() * 1000), time.monotonic() + seconds
        self._failures = 0
        while True:
            if self._try(lambda: self._deliver_last(status, ended_ms)):
                return True
            pause = 2.0 ** (self._failures - 1)
            if self._failures >= _FAILURES_AT_THE_END or time.monotonic() + pause > deadline:
                say_undelivered(self._output, self._reason)
                return False
            time.sleep(pause)

    def _is_of_latest_start(self) -> bool:
        return described_run(self._output)["starts"] == self._start

    def _deliver(self) -> None:
        (self._output / CURSOR).touch()  # the sign of life that `kebiolm track sync` looks for
        if described_run(self._output)["status"] != RUNNING and self._is_of_latest_start():
            # The sender of the start before was just writing down the end of that one when this one began.
            mark_as_running(self._output)
            self._is_open = False
        if not self._is_open:
            self._delivery.set_status(RUNNING)
            self._is_open = True
        self._delivery.send_figures()
        # After the figures: a server that cannot store files must not hold them back.
        self._delivery.send_files()

    def _deliver_last(self, status: str, ended_ms: int) -> None:
        self._delivery.send_figures()
        # The figures may have taken minutes, and the run may have been started again meanwhile.
        if not self._is_of_latest_start():
            return
        self._delivery.set_status(status, ended_ms)
        self._delivery.send_files()

    def _try(self, deliver: Callable[[], None]) -> bool:
        """Deliver; a failure is counted, and said when it begins and when it is over."""
        try:
            deliver()
        except Exception as error:  # MLflow raises many kinds, and every one is a reason to try again
            self._failures += 1
            self._reason = reason_of(error)
            if self._failures == _FAILURES_UNTIL_SAID:
                error_console.print(
                    f"[yellow]MLflow does not take the figures ({self._reason}):[/] they wait in {self._output}",
                    markup=True,
                )
            return False
        if self._failures >= _FAILURES_UNTIL_SAID:
            error_console.print("MLflow takes the figures again")
        self._failures = 0
        return True

    def _wait_for_status(self, seconds: float) -> str | None:
        """The parent's last word, "" if it is gone, None if it is still at work after so many seconds."""
        ready, _, _ = select.select([self._orders], [], [], seconds)
        return os.read(self._orders, 64).decode().strip() if ready else None


def say_undelivered(output: Path, reason: str) -> None:
    """Say what is missing at MLflow and how it gets there."""
    error_console.print(
        f"[yellow]MLflow did not take everything ({reason}); nothing is lost:[/] run `kebiolm track sync {output}` "
        "when it answers"
    )


def reason_of(error: Exception) -> str:
    """An MLflow failure in a few words."""
    return " ".join(str(error).split())[:_REASON_CHARACTERS].replace("[", "(") or type(error).__name__


def main(arguments: list[str]) -> int:
    """Entry point; status 0 if MLflow has everything, `SAID` if not."""
    output, start, seconds = Path(arguments[0]), int(arguments[1]), float(arguments[2])
    # Schedulers and terminals signal all processes of a job; this one ends when its parent has.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)
    system = SystemMetrics(output, seconds) if seconds else None
    if system:
        system.start()
    sender = Sender(output, start, sys.stdin.fileno())
    status = sender.follow()
    if system:
        system.stop()
    return 0 if sender.finish(status) else SAID


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
