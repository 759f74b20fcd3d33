"""The checksums of the steps' samples: what changes them, what does not, and what a killed job leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kebiolm.errors import UserError
from kebiolm.tracking.line_log import LineLog
from kebiolm.training.sample_log import SAMPLES, SampleLog, checksum_of_samples, read_checksums
from tests.full_disk import room_for


def test_checksum_adds_up_over_any_cut_and_order() -> None:
    ids = torch.randperm(1000)
    whole = checksum_of_samples(ids)
    assert whole == sum(checksum_of_samples(part) for part in ids.split(7)) == checksum_of_samples(ids.sort().values)


def test_checksum_sees_a_sample_that_is_lost_repeated_or_another() -> None:
    ids = torch.arange(512)
    changed = [ids[1:], torch.cat([ids, ids[:1]]), torch.cat([ids[:-1], ids[:1]]), torch.cat([ids[:-1], ids[-1:] + 1])]
    assert len({checksum_of_samples(ids), *map(checksum_of_samples, changed)}) == 5
    # Small changes that a plain sum of ids would not see.
    assert checksum_of_samples(torch.tensor([1, 4])) != checksum_of_samples(torch.tensor([2, 3]))


def test_hashes_of_a_million_samples_are_spread_and_exact_in_float64() -> None:
    hashes = [checksum_of_samples(torch.tensor([i])) for i in range(2000)]
    assert len(set(hashes)) == 2000
    assert 0.45 < sum(hashes) / 2000 / 2**32 < 0.55
    assert checksum_of_samples(torch.arange(2**20)) < 2**53


def reopen(output: Path) -> SampleLog:
    """The log as the first process of a job opens it."""
    return SampleLog(LineLog(output / SAMPLES, "checksums"), read_checksums(output))


def test_a_repeated_step_is_written_once_and_must_be_equal(tmp_path: Path) -> None:
    log = reopen(tmp_path)
    log.record(1, 11)
    log.record(2, 22)
    resumed = reopen(tmp_path)
    resumed.record(2, 22)
    resumed.record(3, 33)
    assert read_checksums(tmp_path) == {1: 11, 2: 22, 3: 33}
    assert len((tmp_path / SAMPLES).read_text().splitlines()) == 3
    # The process that writes and the others find it alike, so that none waits for one that has ended.
    for log in (reopen(tmp_path), SampleLog(None, read_checksums(tmp_path))):
        with pytest.raises(UserError, match="step 3: got other samples than before the resume"):
            log.record(3, 34)


def test_half_a_line_of_a_killed_job_goes(tmp_path: Path) -> None:
    reopen(tmp_path).record(1, 11)
    with open(tmp_path / SAMPLES, "a") as file:
        file.write('{"step": 2, "che')
    reopen(tmp_path).record(2, 22)
    assert read_checksums(tmp_path) == {1: 11, 2: 22}


def test_full_disk_ends_the_run_at_its_next_checkpoint_only(tmp_path: Path) -> None:
    log = reopen(tmp_path)
    log.record(1, 11)
    with room_for((tmp_path / SAMPLES).stat().st_size):
        log.record(2, 22)
        log.record(3, 33)
        with pytest.raises(UserError, match=r"File too large, so 2 records could not be written.*make room"):
            log.put_on_disk()
    log.put_on_disk()
    assert read_checksums(tmp_path) == {1: 11, 2: 22, 3: 33}


def test_a_broken_line_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / SAMPLES).write_text("nonsense\n")
    with pytest.raises(UserError, match="a broken line"):
        reopen(tmp_path)
