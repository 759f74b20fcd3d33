from __future__ import annotations

import pytest
import torch

from kebiolm.transe.model import unit_length
from kebiolm.transe.row_adam import RowAdam

ROWS, DIM, RATE = 40, 6, 1e-2


def draws(steps: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows and gradients of each step; half of the rows are touched ten times as often as the others."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for step in range(steps):
        among = ROWS if step % 10 == 0 else ROWS // 2
        rows = torch.randperm(among, generator=generator)[:4]
        result.append((rows, 0.1 * torch.randn(4, DIM, generator=generator)))
    return result


@pytest.fixture
def start() -> torch.Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))


def dense_adam(start: torch.Tensor, steps: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    weight = start.clone().requires_grad_()
    adam = torch.optim.Adam([weight], lr=RATE)
    for rows, gradients in steps:
        weight.grad = torch.zeros_like(start).index_copy_(0, rows, gradients)
        adam.step()
    return weight.detach()


def test_first_step_is_that_of_adam_and_leaves_the_other_rows_alone(start: torch.Tensor) -> None:
    steps = draws(1)
    adam = RowAdam(start, learning_rate=RATE, total_steps=1)
    rows, gradients = steps[0]
    assert torch.equal(adam.read(rows), start[rows])
    adam.step(gradients)
    torch.testing.assert_close(adam.table(), dense_adam(start, steps), rtol=0, atol=1e-7)
    untouched = torch.ones(ROWS, dtype=torch.bool).index_fill_(0, rows, False)
    assert torch.equal(adam.table()[untouched], start[untouched])


def test_rows_touched_at_every_step_follow_adam_to_rounding(start: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.arange(ROWS)
    steps = [(rows, torch.randn(ROWS, DIM, generator=generator)) for _ in range(50)]
    adam = RowAdam(start, learning_rate=RATE, total_steps=50)
    for _, gradients in steps:
        adam.read(rows)
        adam.step(gradients)
    torch.testing.assert_close(adam.table(), dense_adam(start, steps), rtol=0, atol=2e-6)


@pytest.mark.parametrize("steps", [30, 400])
def test_skipped_steps_are_made_up_for(start: torch.Tensor, steps: int) -> None:
    taken = draws(steps)
    adam = RowAdam(start, learning_rate=RATE, total_steps=steps)
    for rows, gradients in taken:
        adam.read(rows)
        adam.step(gradients)
    dense = dense_adam(start, taken)
    # The limit is set by epsilon, which dense Adam does not let fade; rows move by tenths.
    assert (dense - start).abs().max() > 0.1
    torch.testing.assert_close(adam.table(), dense, rtol=0, atol=3e-5)


def test_sparse_adam_is_another_algorithm(start: torch.Tensor) -> None:
    """The reason for this class: without skipped steps, rarely seen rows stay far behind dense Adam's."""
    taken = draws(400)
    weight = start.clone().requires_grad_()
    sparse = torch.optim.SparseAdam([weight], lr=RATE)
    for rows, gradients in taken:
        weight.grad = torch.sparse_coo_tensor(rows[None], gradients, start.shape, check_invariants=True)
        sparse.step()
    dense = dense_adam(start, taken)
    rare = slice(ROWS // 2, None)
    assert (weight.detach() - start)[rare].abs().mean() < 0.5 * (dense - start)[rare].abs().mean()


def test_reading_shows_values_after_all_steps_and_changes_nothing(start: torch.Tensor) -> None:
    adam = RowAdam(start, learning_rate=RATE, total_steps=20)
    for rows, gradients in draws(20):
        adam.read(rows)
        adam.step(gradients)
    table = adam.table(chunk_rows=7)
    assert torch.equal(adam.read(torch.tensor([30, 3])), table[[30, 3]])
    assert torch.equal(adam.table(), table)


def test_project_holds_for_every_row(start: torch.Tensor) -> None:
    adam = RowAdam(unit_length(start), learning_rate=RATE, total_steps=60, project=unit_length)
    for rows, gradients in draws(60):
        adam.read(rows)
        adam.step(gradients)
    torch.testing.assert_close(adam.table().norm(dim=1), torch.ones(ROWS))


def test_a_step_without_read_is_refused(start: torch.Tensor) -> None:
    with pytest.raises(AssertionError, match="read"):
        RowAdam(start, learning_rate=RATE, total_steps=1).step(start)
