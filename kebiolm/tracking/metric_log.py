"""The spool: every figure of a run is a line of a local file before anything else happens to it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from kebiolm.errors import UserError
from kebiolm.tracking.line_log import LineLog

RECORDS = "metrics.jsonl"
"""Figures of training and evaluation; written by global rank 0."""


class MetricLog:
    """Append-only JSON lines {"kind", "step", "time_ms", "metrics"}; a (kind, step) is written once only.

    A run that resumes repeats the steps since its last checkpoint and would record them twice; those are skipped. Where
    the disk is full, they wait in memory, as `LineLog` says.

    Args:
        output: the run's folder.
        name: of the file in it.

    Raises:
        UserError: the file has a broken line that is not the last one.
    """

    def __init__(self, output: Path, name: str = RECORDS) -> None:
        self.path = output / name
        self._lines = LineLog(self.path, "figures")
        self._last_step = {record["kind"]: record["step"] for record in read_records(self.path)}

    def last_step(self, kind: str) -> int:
        """Step of the newest record of a kind, -1 where there is none."""
        return self._last_step.get(kind, -1)

    def append(self, kind: str, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of one step; `kind` is a word such as "train" or "heldout"."""
        if step <= self.last_step(kind):
            return
        self._last_step[kind] = step
        record = {"kind": kind, "step": step, "time_ms": int(time.time() * 1000), "metrics": metrics}
        self._lines.append(json.dumps(record))

    def put_on_disk(self) -> None:
        """Return when every record is on disk.

        Raises:
            UserError: the disk is full; the message says how many records are not there.
        """
        self._lines.put_on_disk()

    def close(self) -> None:
        """Put everything on disk; raises what `put_on_disk` does."""
        self._lines.close()


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
