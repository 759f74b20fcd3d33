"""Speeds, times left and hits: arithmetic that must be right after a resume, in bursts, and when something hangs."""

from __future__ import annotations

import pytest

from preprocessing.watch.readable import printable, readable_bytes, readable_duration
from preprocessing.watch.speed import LEAST_UNITS, WINDOW_S, MovingRate, cache_hits, job_seconds_left, seconds_left

SHARES = {"read": 0.1, "find": 0.8, "link": 0.05, "join": 0.05}


def rate_of(times: list[float], count: int = 10) -> MovingRate:
    rate = MovingRate(started=0.0)
    for moment in times:
        rate.add(moment, {"documents": count})
    return rate


def test_no_speed_before_the_first_unit() -> None:
    assert MovingRate(started=5.0).per_second("documents", 100.0) is None


def test_a_steady_stage_has_its_speed_also_between_two_units() -> None:
    rate = rate_of([10.0, 20.0, 30.0])
    assert rate.per_second("documents", 30.0) == rate.per_second("documents", 39.0) == 1.0


def test_the_speed_falls_where_a_unit_hangs() -> None:
    rate = rate_of([10.0, 20.0, 30.0])
    assert rate.per_second("documents", 70.0) == pytest.approx(30 / 60)


def test_bursts_of_workers_that_began_together_do_not_shake_the_speed() -> None:
    rate = rate_of([40.0] * 8)
    assert rate.per_second("documents", 40.0) == rate.per_second("documents", 79.0) == 2.0


def test_only_the_last_minutes_count() -> None:
    slow = [float(moment) for moment in range(100, 2100, 100)]
    fast = [2000.0 + step for step in range(1, int(WINDOW_S) + 2)]
    assert rate_of(slow + fast).per_second("documents", fast[-1]) == pytest.approx(10.0)


def test_long_units_stay_in_the_window() -> None:
    rate = rate_of([100.0 * (number + 1) for number in range(LEAST_UNITS + 5)])
    assert rate.per_second("documents", 100.0 * (LEAST_UNITS + 5)) == pytest.approx(0.1)


def test_a_count_that_never_came_has_speed_zero() -> None:
    assert rate_of([1.0]).per_second("mentions_found", 1.0) == 0


def test_time_left_of_a_stage() -> None:
    assert seconds_left(100, 40, 2.0) == 30.0
    assert seconds_left(100, 100, None) == 0.0
    assert seconds_left(100, 40, None) is None
    assert seconds_left(100, 40, 0.0) is None


def test_the_job_s_time_left_adds_the_later_stages_by_their_usual_share() -> None:
    assert job_seconds_left("find", 50.0, {"read": 10.0, "find": 80.0}, SHARES) == pytest.approx(50 + 10)
    # Linking is at work; what joining will take follows from finding, the heaviest stage that was timed.
    assert job_seconds_left("link", 3.0, {"find": 80.0, "link": 6.0}, SHARES) == pytest.approx(3 + 5)
    assert job_seconds_left("join", 2.0, {}, SHARES) == 2.0


def test_the_job_s_time_left_is_not_guessed_from_a_light_stage() -> None:
    assert job_seconds_left("read", 5.0, {"read": 10.0}, SHARES) is None
    assert job_seconds_left("find", None, {"find": 80.0}, SHARES) is None


def test_cache_hits() -> None:
    assert cache_hits(1000, 250) == 0.75
    assert cache_hits(0, 0) is None


def test_figures_are_readable() -> None:
    assert [readable_duration(s) for s in (0.4, 59.6, 3599, 11109, 4.2 * 86400)] == [
        "0:00",
        "1:00",
        "59:59",
        "3:05:09",
        "4.2 days",
    ]
    assert [readable_bytes(b) for b in (0, 999, 1000, 4_210_000, 99_960_000, 999_960, 2.5e15)] == [
        "0 bytes",
        "999 bytes",
        "1.00 KB",
        "4.21 MB",
        "100 MB",
        "1.00 MB",
        "2,500 TB",
    ]
    assert printable("a\x1b[2J\n b\x00") == "a�[2J b�"
