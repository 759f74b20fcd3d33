"""Linear warm-up and decay."""

from __future__ import annotations

import pytest

from kebiolm.training.schedule import learning_rate_at


def test_rises_to_the_peak_and_falls_to_zero() -> None:
    rates = [learning_rate_at(step, peak=1.0, warmup_steps=4, total_steps=12) for step in range(13)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    assert rates[12] == 0.0
    assert all(rate > 0 for rate in rates[:12])


@pytest.mark.parametrize(("warmup_steps", "total_steps"), [(0, 5), (5, 5), (9, 5)])
def test_edges_stay_within_the_peak(warmup_steps: int, total_steps: int) -> None:
    rates = [
        learning_rate_at(step, peak=2.0, warmup_steps=warmup_steps, total_steps=total_steps)
        for step in range(total_steps)
    ]
    assert all(0 < rate <= 2.0 for rate in rates)
