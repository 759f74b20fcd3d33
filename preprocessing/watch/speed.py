"""How fast a stage works and when it will be done: arithmetic on the units that ended, with no word about screens."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from itertools import pairwise

# A stage ends units of minutes, in bursts where workers began together: the window must hold several bursts.
WINDOW_S = 120.0
LEAST_UNITS = 20


class MovingRate:
    """Work per second over the last two minutes, or over the last 20 units where these took longer.

    Only what is added counts, so the work of an earlier run never looks like speed.

    Args:
        started: when the work began, on any clock in seconds.
    """

    def __init__(self, started: float) -> None:
        self._events: deque[tuple[float, Mapping[str, int]]] = deque()
        self._begin = started
        self._sums: Counter[str] = Counter()

    def add(self, now: float, counts: Mapping[str, int]) -> None:
        """Count one unit that ended at `now`; later calls have later times."""
        self._events.append((now, counts))
        self._sums.update(counts)
        while len(self._events) > LEAST_UNITS and self._events[0][0] < now - WINDOW_S:
            self._begin, counts_before = self._events.popleft()
            self._sums.subtract(counts_before)

    def per_second(self, name: str, now: float) -> float | None:
        """Rate of one count; None before the first unit ended.

        Between two units the rate stands still. It falls only when no unit has ended for longer than ever before in the
        window: then something hangs.
        """
        if not self._events:
            return None
        times = [self._begin, *(time for time, _ in self._events)]
        longest_gap = max(after - before for before, after in pairwise(times))
        seconds = max(times[-1], now - longest_gap) - self._begin
        return self._sums[name] / seconds if seconds > 0 else None


def seconds_left(total: int, done: int, per_second: float | None) -> float | None:
    """Time for what is not done; None where the rate is unknown or nothing moves."""
    if done >= total:
        return 0.0
    return (total - done) / per_second if per_second else None


def job_seconds_left(
    stage: str, left: float | None, whole: Mapping[str, float], shares: Mapping[str, float]
) -> float | None:
    """Time left for the whole job: what is left of this stage, and what the later stages will take.

    Later stages are measured against the heaviest stage that has been timed: with shares of 85 and 5, one that takes
    100 minutes will be followed by one of about 6. While only light stages have been timed there is no answer, because
    their error would be multiplied.

    Args:
        stage: the one at work.
        left: its time left in seconds, None where unknown.
        whole: seconds that each timed stage takes for the whole job, from its speed, the one at work included.
        shares: all stages in order, each with its usual share of a job's time.
    """
    later = list(shares)[list(shares).index(stage) + 1 :]
    if left is None or not later:
        return left
    timed = max(whole, key=lambda name: shares[name], default=None)
    if timed is None or shares[timed] < max(shares[name] for name in later):
        return None
    return left + whole[timed] * sum(shares[name] for name in later) / shares[timed]


def cache_hits(mentions: int, texts: int) -> float | None:
    """Share of the mentions whose text stood there before, so that it is not searched for again; None of no mention."""
    return max(0.0, 1 - texts / mentions) if mentions else None
