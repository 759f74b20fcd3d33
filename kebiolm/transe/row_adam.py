"""Adam for a large table of which each step touches few rows, at a cost that does not grow with the table."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


class RowAdam:
    r"""Adam (Kingma and Ba, 2014) by row: `read` some rows, then `step` with their gradients.

    Dense Adam moves every row at every step, also the rows without a gradient: their first moment m still pushes them
    while both moments fade (m by beta1, v by beta2 a step). At 477,039 x 100 values this costs some 100 times as much
    as the rows of one batch. Usual sparse or "lazy" Adam (`torch.optim.SparseAdam`) leaves untouched rows and their
    moments as they are: as cheap, but another algorithm. Rows seen at few steps then move several times less, and
    TransE learns measurably worse (tests/benchmarks/bench_transe.py).

    This class gives dense Adam's result at the sparse price. The steps that a row was not touched at are made up for
    when it is next read, all at once. Step j moves it by

        lr * c(j) * m / sqrt(v),   c(j) = sqrt(1 - beta2^j) / (1 - beta1^j),

    and m / sqrt(v) shrinks by q = beta1 / sqrt(beta2) a step, so that the way from step s to step t is

        lr * m / sqrt(v) * sum_{j=s+1..t} q^(j-s) c(j) = lr * m / sqrt(v) * (F(s) - q^(t-s) F(t)),

    with the numbers F(s) = sum_{j>s} q^(j-s) c(j) computed once. Two things differ from dense Adam. Epsilon, which is
    not negligible only where the root of v is below some 1e-7, is let fade with v in the skipped steps. And a
    `project` is applied once to the sum of the skipped steps, not after each of them.

    Memory: three tables (value, first and second moment), as dense Adam less the gradient.

    Args:
        table: [rows, dim] float32 values at the start; copied.
        learning_rate: lr, the same at all steps.
        total_steps: number of steps that will be taken, at most.
        betas: fading of the first and the second moment.
        epsilon: added to the root of the second moment.
        project: applied to rows [n, dim] after each move, such as scaling to length 1; None for nothing.
    """

    def __init__(
        self,
        table: torch.Tensor,
        *,
        learning_rate: float,
        total_steps: int,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        project: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._learning_rate, self._betas, self._epsilon = learning_rate, betas, epsilon
        self._project = project or (lambda rows: rows)
        # One row's value, first and second moment lie side by side: one memory access instead of three.
        self._state = torch.zeros(len(table), 3, table.shape[1], dtype=table.dtype, device=table.device)
        self._state[:, 0] = table
        self._last_step = torch.zeros(len(table), dtype=torch.int64, device=table.device)
        self._step = 0
        self._open: tuple[torch.Tensor, torch.Tensor] | None = None  # rows of the last `read` and their state
        corrections, tails = _bias_corrections_and_tails(betas, total_steps)
        self._corrections, self._tails = corrections, tails.to(table.device)

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """Values of the given rows after all steps so far; the next `step` is about these rows.

        Args:
            rows: [n] int64, distinct.

        Returns:
            [n, dim] float32, a copy.
        """
        state = self._current_state(rows)
        self._open = (rows, state)
        return state[:, 0].clone()

    def step(self, gradients: torch.Tensor) -> None:
        """Take one Adam step; all rows but those of the last `read` have gradient zero.

        Args:
            gradients: [n, dim] of the values that `read` returned.
        """
        assert self._open is not None, "a step needs the rows of a `read` before it"
        (rows, state), self._open = self._open, None
        self._step += 1
        beta1, beta2 = self._betas
        values, first, second = state.unbind(1)
        first.lerp_(gradients, 1 - beta1)
        second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        epsilon = self._epsilon * math.sqrt(1 - beta2**self._step)
        rate = self._learning_rate * self._corrections[self._step]
        values.addcdiv_(first, second.sqrt().add_(epsilon), value=-rate)
        values.copy_(self._project(values))
        self._state.index_copy_(0, rows, state)
        self._last_step[rows] = self._step

    def table(self, *, chunk_rows: int = 1 << 16) -> torch.Tensor:
        """All values after all steps so far: [rows, dim] float32, a copy."""
        count, _, dim = self._state.shape
        table = self._state.new_empty(count, dim)
        for rows in torch.arange(count, device=table.device).split(chunk_rows):
            table[rows] = self._current_state(rows)[:, 0]
        return table

    def _current_state(self, rows: torch.Tensor) -> torch.Tensor:
        """A copy of the rows' state [n, 3, dim] with the steps between each row's last one and now made up for."""
        beta1, beta2 = self._betas
        state, since = self._state.index_select(0, rows), self._last_step[rows]
        skipped = (self._step - since).to(torch.float64)
        ratio = beta1 / math.sqrt(beta2)
        way = self._learning_rate * (self._tails[since] - ratio**skipped * self._tails[self._step])
        factors = torch.stack([-way, beta1**skipped, beta2**skipped]).to(state.dtype).unsqueeze(-1)
        values, first, second = state.unbind(1)
        # The smallest positive float stands for epsilon: rows that never had a gradient have 0 / 0.
        direction = first / second.sqrt().add_(torch.finfo(state.dtype).tiny)
        values.addcmul_(direction, factors[0])
        values.copy_(self._project(values))
        first.mul_(factors[1])
        second.mul_(factors[2])
        return state


def _bias_corrections_and_tails(betas: tuple[float, float], total_steps: int) -> tuple[list[float], torch.Tensor]:
    """c(j) for j = 0 .. total_steps (c(0) is unused) and F(s) for s = 0 .. total_steps, as in `RowAdam`."""
    beta1, beta2 = betas
    ratio = beta1 / math.sqrt(beta2)
    assert ratio < 1, "the push of an untouched row must fade"
    corrections = [math.nan] + [math.sqrt(1 - beta2**j) / (1 - beta1**j) for j in range(1, total_steps + 1)]
    # Any F(total_steps) is right, since only differences F(s) - q^(t-s) F(t) with t <= total_steps are used.
    tails = [0.0]
    for j in range(total_steps, 0, -1):
        tails.append(ratio * (corrections[j] + tails[-1]))
    return corrections, torch.tensor(tails[::-1], dtype=torch.float64)
