"""Which document killed the process that searched it? A journal that outlives the process, and what follows from it.

Before a worker searches a batch it writes the batch's rows to the unit's journal. If it dies or hangs there (a watchdog
ends a process that hangs), the next attempt reads what was under way, and searches those rows first and one by one. A
document during which two processes died while it was searched alone is set aside. One death alone proves nothing: the
machine or a person may have ended that process.
"""

from __future__ import annotations

import faulthandler
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

DEATHS_ALONE = 2

# A unit that loses more documents than this has another trouble, such as too little memory; it fails, loudly.
MAX_CONDEMNED = 10

# Attempts that found something out do not count as failures of the unit; this ends a unit that goes on for ever.
MAX_ATTEMPTS = 3 * MAX_CONDEMNED + 10

KILLED, TIMED_OUT = "kills-its-process", "time-limit"

# What `faulthandler` writes where it ends a process.
_WATCHDOG_SAYS = "Timeout ("


@dataclass(kw_only=True)
class Findings:
    """What a journal tells the next attempt.

    Attributes:
        attempts: attempts that were begun.
        suspects: rows that were searched with others when a process died, and not yet cleared.
        condemned: row -> reason, for rows that are set aside.
        ended_in_batch: the last attempt ended while it searched a batch.
    """

    attempts: int = 0
    suspects: set[int] = field(default_factory=set)
    condemned: dict[int, str] = field(default_factory=dict)
    ended_in_batch: bool = False


class Journal:
    """Writes one attempt into the journal of a unit.

    Args:
        file: the journal, open for appending.
        seconds: a batch that takes longer ends this process.
    """

    def __init__(self, file: TextIO, seconds: float) -> None:
        self._file, self._seconds = file, seconds

    def begin(self, rows: Sequence[int]) -> None:
        """These rows are searched from now on; ends what was under way before."""
        self._write({"rows": list(rows)})
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def end(self) -> None:
        """Nothing is searched from now on."""
        faulthandler.cancel_dump_traceback_later()
        self._write({"rows": []})

    def _write(self, entry: dict[str, object]) -> None:
        # Flushed to the kernel, which outlives this process; a power cut may lose it, which costs one attempt more.
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


@contextmanager
def open_journal(path: Path, seconds: float) -> Iterator[Journal]:
    """Begin an attempt; the watchdog is off again when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        # A watchdog's last words have no line feed of their own before the next entry.
        file.write("\n" + json.dumps({"attempt": True}) + "\n")
        try:
            yield Journal(file, seconds)
        finally:
            faulthandler.cancel_dump_traceback_later()


def read_journal(path: Path) -> Findings:
    """What the attempts so far have found out; nothing where there was none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return Findings()
    findings, deaths_alone = Findings(), Counter[int]()
    rows: list[int] = []
    timed_out = False

    def close_attempt() -> None:
        findings.ended_in_batch = bool(rows)
        findings.suspects.update(rows)
        if len(rows) == 1:
            deaths_alone[rows[0]] += 1
            if deaths_alone[rows[0]] >= DEATHS_ALONE:
                findings.condemned[rows[0]] = TIMED_OUT if timed_out else KILLED

    for line in lines:
        if line.startswith(_WATCHDOG_SAYS):
            timed_out = True
        elif (entry := _entry(line)) is not None:
            if "attempt" in entry:
                if findings.attempts:
                    close_attempt()
                findings.attempts += 1
                rows, timed_out = [], False
            else:
                findings.suspects -= set(rows)  # the process went on to the next batch: these did it no harm
                rows = entry["rows"]
    close_attempt()
    findings.suspects -= findings.condemned.keys()
    return findings


def forgive_last_attempt(path: Path) -> None:
    """Note in a journal that the attempt was ended from outside, so that no document is blamed for it."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"rows": []}) + "\n")


def _entry(line: str) -> dict | None:
    """An entry, or None for a traceback's line or one that was cut short."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and ("attempt" in entry or "rows" in entry) else None
