"""A file that a run adds lines to: each whole or not at all, and none lost while the disk is full."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from kebiolm.console import error_console
from kebiolm.errors import UserError


class LineLog:
    """Append-only lines; those that the disk does not take wait in memory, and the next line tries again.

    Args:
        path: the file; half a line at its end, left by a killed run, was never confirmed and goes.
        what: plural noun of what a line holds, for messages.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self._what = path, what
        _cut_half_written_line(path)
        # Unbuffered: what a write has returned for is in the file, even if this process is killed.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (stays open as long as the run)
        self._size = path.stat().st_size
        self._waiting: list[bytes] = []

    def append(self, line: str) -> None:
        """Add a line; where the disk is full, one message says so and the run goes on."""
        self._waiting.append(line.encode() + b"\n")
        had_waited = len(self._waiting) > 1
        try:
            self._write_waiting()
        except OSError as error:
            if not had_waited:
                _say(
                    f"[yellow]{self.path} cannot be written ({error.strerror}):[/] {self._what} wait in memory and the "
                    "run goes on; make room before its next checkpoint"
                )
            return
        if had_waited:
            _say(f"{self.path} can be written again; none of the {self._what} is lost")

    def put_on_disk(self) -> None:
        """Return when every line is on disk.

        Raises:
            UserError: the disk is full; the message says how many lines are not there.
        """
        try:
            self._write_waiting()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                self.path,
                got=f"{error.strerror}, so {len(self._waiting)} records could not be written",
                expected=f"room for the {self._what} of the run",
                mend="make room and start the same command again: the steps since the last checkpoint are repeated",
            ) from None

    def close(self) -> None:
        """Put everything on disk; raises what `put_on_disk` does."""
        try:
            self.put_on_disk()
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


def _say(line: str) -> None:
    # The log of the run may lie on the same full disk.
    with suppress(OSError):
        error_console.print(line)


def _cut_half_written_line(path: Path) -> None:
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.truncate(path, whole)
