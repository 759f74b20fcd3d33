"""Which samples each step was trained on: one checksum per step, so that anyone can see that none is lost or repeated.

The checksum of a step is the sum of its samples' hashes over all processes. It depends neither on the number of
processes nor on the micro batch size, so a run that was killed, or went on with other ones, has the same file in the
end as an undisturbed run. A step that is repeated after a resume must have the checksum of the first time.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from torch import Tensor

from kebiolm.errors import UserError
from kebiolm.tracking.line_log import LineLog
from kebiolm.training.distributed import decide_on_first_process, run_on_first_process

SAMPLES = "samples.jsonl"
_32_BITS = 0xFFFFFFFF


def checksum_of_samples(sample_ids: Tensor) -> int:
    """Sum of 32-bit hashes of sample ids; below 2^53 for fewer than 2^21 samples, so float64 adds them exactly."""
    mixed = (sample_ids.long() + 1) & _32_BITS  # 0 would stay 0, and sample 0 could be lost unseen
    # The finaliser of MurmurHash3: every bit of the id moves half of the bits of the hash.
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & _32_BITS
    return int((mixed ^ (mixed >> 16)).sum())


class SampleLog:
    """Append-only JSON lines {"step", "checksum"} in OUTPUT/samples.jsonl; a step is written once only.

    Args:
        lines: the file; None on processes other than global rank 0, which only compare.
        earlier: checksums of the steps that an earlier job of this run has done, equal on all processes, so that all
            end together where a repeated step differs.
    """

    def __init__(self, lines: LineLog | None, earlier: dict[int, int]) -> None:
        self._lines, self._earlier = lines, earlier

    @classmethod
    def open(cls, output: Path) -> SampleLog:
        """Open the log of the run at `output`; every rank must call this.

        Raises:
            UserError: a line is broken.
        """
        lines = run_on_first_process(partial(LineLog, output / SAMPLES, "checksums of samples"))
        return cls(lines, decide_on_first_process(partial(read_checksums, output)))

    def record(self, step: int, checksum: int) -> None:
        """Note the checksum of one step, counted from 1; every rank must call this with the same ones.

        Raises:
            UserError: the step had another checksum before the run was resumed.
        """
        if step in self._earlier:
            if self._earlier[step] != checksum:
                raise UserError(
                    f"step {step}",
                    got="other samples than before the resume",
                    expected=f"those that {SAMPLES} of the run has",
                    mend="go on with the version of kebiolm that started the run",
                )
        elif self._lines is not None:
            self._lines.append(json.dumps({"step": step, "checksum": checksum}))

    def put_on_disk(self) -> None:
        """Return when every checksum is on disk; raises what `LineLog.put_on_disk` does."""
        if self._lines is not None:
            self._lines.put_on_disk()


def read_checksums(output: Path) -> dict[int, int]:
    """The checksums of a run's steps, counted from 1; empty where there are none.

    Raises:
        UserError: a line is broken.
    """
    path = output / SAMPLES
    if not path.is_file():
        return {}
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {record["step"]: record["checksum"] for record in records}
    except (ValueError, KeyError, TypeError) as error:
        mend = "restore the file or choose another output"
        raise UserError(path, got=f"a broken line ({error!r})", expected="one JSON record a line", mend=mend) from None
