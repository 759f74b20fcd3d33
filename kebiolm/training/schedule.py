"""The learning rate as a pure function of the step, so that a resumed run has nothing to restore."""

from __future__ import annotations

WARMUP_LIMIT = 0.3
"""Share of a run's steps above which a warm-up is too long (requirement U7)."""


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up to `peak`, then linear decay to zero (paper section 4.1).

    Args:
        step: optimizer step, counted from 0 for the first.
        peak: the highest learning rate.
        warmup_steps: number of steps over which the rate rises; step `warmup_steps - 1` is the first at `peak`.
        total_steps: number of steps of the whole run; the rate would be zero at step `total_steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * max(total_steps - step, 0) / max(total_steps - warmup_steps, 1)
