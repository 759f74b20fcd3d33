"""Which samples each step was trained on: one checksum per step, so that anyone can see that none is lost or repeated.

The checksum of a step is the sum of its samples' hashes over all processes. It depends neither on the number of
processes nor on the micro batch size, so a run that was killed, or went on with other ones, has the same file in the
end as an undisturbed run. A step that is repeated after a resume must have the checksum of the first time.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch import Tensor

from kebiolm.errors import UserError

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
        output: the run's folder.
    """

    def __init__(self, output: Path) -> None:
        self._path = output / SAMPLES
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.is_file() else []
        if lines and not lines[-1].endswith(b"\n"):
            os.truncate(self._path, sum(map(len, lines[:-1])))  # half a line of a killed job
        self._checksums = read_checksums(output)
        self._file = open(self._path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (as long as the run)

    def record(self, step: int, checksum: int) -> None:
        """Note the checksum of one step, counted from 1.

        Raises:
            UserError: the step had another checksum before the run was resumed.
        """
        if step not in self._checksums:
            self._checksums[step] = checksum
            self._file.write(json.dumps({"step": step, "checksum": checksum}) + "\n")
        elif self._checksums[step] != checksum:
            raise UserError(
                f"step {step}",
                got="other samples than before the resume",
                expected=f"those that {self._path} has",
                mend="go on with the version of kebiolm that started the run",
            )


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
