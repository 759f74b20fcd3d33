"""What a dead process's journal tells the next attempt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from preprocessing.annotation.journal import KILLED, TIMED_OUT, forgive_last_attempt, open_journal, read_journal


def attempt(path: Path, *batches: list[int]) -> None:
    """An attempt that died in its last batch."""
    with open_journal(path, 60.0) as journal:
        for rows in batches:
            journal.begin(rows)


def test_no_journal_tells_nothing(tmp_path: Path) -> None:
    findings = read_journal(tmp_path / "absent")
    assert (findings.attempts, findings.suspects, findings.condemned) == (0, set(), {})
    assert not findings.ended_in_batch


def test_only_the_last_batch_is_suspect(tmp_path: Path) -> None:
    attempt(tmp_path / "j", [0, 1], [2, 3, 4])
    findings = read_journal(tmp_path / "j")
    assert findings.suspects == {2, 3, 4}
    assert findings.ended_in_batch and not findings.condemned


def test_a_document_is_condemned_by_the_second_death_alone(tmp_path: Path) -> None:
    attempt(tmp_path / "j", [2, 3, 4])
    attempt(tmp_path / "j", [2], [3])
    assert read_journal(tmp_path / "j").condemned == {}
    attempt(tmp_path / "j", [2], [3])
    findings = read_journal(tmp_path / "j")
    assert findings.condemned == {3: KILLED}
    assert findings.suspects == {4}, "2 was searched alone and did no harm"


def test_deaths_of_different_documents_condemn_none(tmp_path: Path) -> None:
    for row in (5, 6, 7):
        attempt(tmp_path / "j", [row])
    findings = read_journal(tmp_path / "j")
    assert (findings.condemned, findings.suspects, findings.attempts) == ({}, {5, 6, 7}, 3)


def test_a_death_outside_a_batch_is_nobodys_fault(tmp_path: Path) -> None:
    with open_journal(tmp_path / "j", 60.0) as journal:
        journal.begin([1, 2])
        journal.end()
    findings = read_journal(tmp_path / "j")
    assert not findings.ended_in_batch and not findings.suspects and findings.attempts == 1


def test_a_process_that_hangs_is_ended_and_the_journal_says_so(tmp_path: Path) -> None:
    """Also one that hangs in C code and never gives Python a turn."""
    code = """if True:
        import re, sys
        from pathlib import Path
        from preprocessing.annotation.journal import open_journal
        with open_journal(Path(sys.argv[1]), 0.5) as journal:
            journal.begin([9])
            re.match(r"(a+)+$", "a" * 60 + "b")"""
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "j")], timeout=60, check=False)
        assert ended.returncode == 1
    assert read_journal(tmp_path / "j").condemned == {9: TIMED_OUT}


def test_who_stops_a_job_puts_no_blame_on_a_document(tmp_path: Path) -> None:
    attempt(tmp_path / "j", [1, 2])
    for _ in range(3):
        attempt(tmp_path / "j", [1])
        forgive_last_attempt(tmp_path / "j")
    findings = read_journal(tmp_path / "j")
    assert (findings.condemned, findings.suspects, findings.ended_in_batch) == ({}, {2}, False)


def test_a_line_cut_short_is_no_line(tmp_path: Path) -> None:
    attempt(tmp_path / "j", [1, 2])
    with open(tmp_path / "j", "a") as file:
        file.write('{"rows": [1')
    attempt(tmp_path / "j", [1])
    assert read_journal(tmp_path / "j").suspects == {1, 2}
