"""The spool: every figure of a run is a line of a local file before anything else happens to it."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from kebiolm.console import error_console
from kebiolm.errors import UserError

RECORDS = "metrics.jsonl"
"""Figures of training and evaluation; written by global rank 0."""


class MetricLog:
    """Append-only JSON lines {"kind", "step", "time_ms", "metrics"}; a (kind, step) is written once only.

    A run that resumes repeats the steps since its last checkpoint and would record them twice; those are skipped. Where
    the disk is full, lines wait in memory, one line says so, and the next record tries again.

    Args:
        output: the run's folder.
        name: of the file in it.

    Raises:
        UserError: the file has a broken line that is not the last one.
    """

    def __init__(self, output: Path, name: str = RECORDS) -> None:
        self.path = output / name
        _cut_half_written_line(self.path)
        self._last_step: dict[str, int] = {}
        for record in read_records(self.path):
            self._last_step[record["kind"]] = record["step"]
        # Unbuffered: what a write has returned for is in the file, even if this process is killed.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (stays open as long as the run)
        self._size = self.path.stat().st_size
        self._waiting: list[bytes] = []

    def last_step(self, kind: str) -> int:
        """Step of the newest record of a kind, -1 where there is none."""
        return self._last_step.get(kind, -1)

    def append(self, kind: str, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of one step; `kind` is a word such as "train" or "heldout"."""
        if step <= self.last_step(kind):
            return
        record = {"kind": kind, "step": step, "time_ms": int(time.time() * 1000), "metrics": metrics}
        self._waiting.append(json.dumps(record).encode() + b"\n")
        self._last_step[kind] = step
        had_waited = len(self._waiting) > 1
        try:
            self._write_waiting()
        except OSError as error:
            if not had_waited:
                _say(
                    f"[yellow]{self.path} cannot be written ({error.strerror}):[/] figures wait in memory and the run "
                    "goes on; make room before it ends"
                )
            return
        if had_waited:
            _say(f"{self.path} can be written again; no figure is lost")

    def close(self) -> None:
        """Put everything on disk.

        Raises:
            UserError: the disk is still full; the message says how many records are lost.
        """
        try:
            self._write_waiting()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                self.path,
                got=f"{error.strerror}, so {len(self._waiting)} records could not be written",
                expected="room for the figures of the run",
                mend="make room and start the same command again: the steps since the last checkpoint are repeated",
            ) from None
        finally:
            self._file.close()

    def _write_waiting(self) -> None:
        """Write the lines that wait, each whole or not at all."""
        while self._waiting:
            line = self._waiting[0]
            try:
                done = 0
                while done < len(line):
                    done += self._file.write(line[done:])
            except OSError:
                # A full disk may take the first half of a line.
                os.ftruncate(self._file.fileno(), self._size)
                raise
            self._size += len(line)
            del self._waiting[0]


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole records of a spool, oldest first; empty where there is no file.

    Raises:
        UserError: a line is broken that is not the last one.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    try:
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        mend = "restore the file or choose another output"
        raise UserError(path, got=f"a broken line ({error})", expected="one JSON record a line", mend=mend) from None


def _say(line: str) -> None:
    # The log of the run may lie on the same full disk.
    with suppress(OSError):
        error_console.print(line)


def _cut_half_written_line(path: Path) -> None:
    """A killed run may leave half a line at the end; it was never confirmed, so it goes."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.truncate(path, whole)
