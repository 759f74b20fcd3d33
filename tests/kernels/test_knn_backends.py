"""The backends against the reference in float64: results, gradients, odd inputs, and the same bits each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from kebiolm.kernels import KnnEntityAttentionOutput, knn_entity_attention
from kebiolm.kernels.knn_entity_attention import tiled

DIFFERENTIABLE = ["att", "lse", "gold_logit", "topk_val"]
SHAPES = [  # mentions, entities, size, k, first_row: around the widths of panels, blocks and tiles
    (1, 1, 1, 1, 0),
    (1, 70, 5, 3, 3),
    (23, 31, 7, 100, 0),
    (25, 36, 8, 5, 3),
    (24, 64, 16, 64, 0),
    (49, 133, 100, 20, 3),
    (97, 1000, 13, 1, 1),
    (300, 8300, 12, 100, 3),
    (520, 70, 3, 4, 0),
]


@pytest.fixture(params=["cpu", "tiled", "tiled, many tiles"])
def backend(request, monkeypatch) -> str:
    if "many" in request.param:
        monkeypatch.setattr(tiled, "MENTIONS_AT_ONCE", 16)
        monkeypatch.setattr(tiled, "ENTITIES_AT_ONCE", 64)
    return request.param.split(",")[0]


def make_inputs(mentions, entities, size, *, first_row=0, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(mentions, size, generator=generator) * scale
    table = torch.randn(entities, size, generator=generator)
    gold = torch.randint(first_row, entities, (mentions,), generator=generator)
    gold[::5] = -100
    if mentions > 1:
        gold[1] = entities - 1  # in the last, short block
    return h, table, gold


def run(h, table, gold, k, backend, *, through=(), dtype=torch.float32, **options):
    """Results, and gradients of h and table through the named results, each weighted by fixed random numbers."""
    h, table = (tensor.detach().to(dtype).requires_grad_() for tensor in (h, table))
    out = knn_entity_attention(h, table, gold, k, backend=backend, **options)
    if not through:
        return out, None
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(getattr(out, name).shape, generator=generator) for name in DIFFERENTIABLE}
    loss = sum((getattr(out, name) * weights[name]).sum() for name in through)
    return out, torch.autograd.grad(loss, (h, table))


def assert_near(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * (1 + largest))


def assert_same_bits(first: KnnEntityAttentionOutput, second: KnnEntityAttentionOutput):
    for name, one, other in zip(first._fields, first, second, strict=True):
        assert torch.equal(one, other), name


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients_against_float64(backend, shape, num_threads):
    mentions, entities, size, k, first_row = shape
    h, table, gold = make_inputs(mentions, entities, size, first_row=first_row)
    with threads(num_threads):
        out, grads = run(h, table, gold, k, backend, through=DIFFERENTIABLE, first_row=first_row)
    exact, exact_grads = run(
        h, table, gold, k, "reference", through=DIFFERENTIABLE, first_row=first_row, dtype=torch.float64
    )
    for name in DIFFERENTIABLE:
        assert_near(getattr(out, name), getattr(exact, name))
    # Ranks of almost equal scores may differ, the scores may not.
    assert_near((h.double() @ table.double().T).gather(1, out.topk_idx), exact.topk_val)
    assert all(len(set(row)) == len(row) for row in out.topk_idx.tolist())
    assert out.topk_idx.min() >= first_row
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert_near(grad, exact_grad)
    assert (grads[1][:first_row] == 0).all()


@pytest.mark.parametrize("through", [*([name] for name in DIFFERENTIABLE), ["lse", "gold_logit"], ["att", "lse"]])
@pytest.mark.parametrize("frozen", ["none", "table", "h"])
def test_gradients_alone(backend, through, frozen):
    h, table, gold = make_inputs(30, 140, 9, first_row=3)
    _, exact = run(h, table, gold, 7, "reference", through=through, dtype=torch.float64, first_row=3)
    h.requires_grad_(frozen != "h")
    table.requires_grad_(frozen != "table")
    out = knn_entity_attention(h, table, gold, 7, backend=backend, first_row=3)
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(getattr(out, name).shape, generator=generator) for name in DIFFERENTIABLE}
    sum((getattr(out, name) * weights[name]).sum() for name in through).backward()
    for tensor, expected in zip((h, table), exact, strict=True):
        if tensor.requires_grad:
            assert_near(tensor.grad, expected)
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("gold", [None, torch.full((30,), -100)])
def test_no_mention_with_gold(backend, gold):
    h, table, _ = make_inputs(30, 140, 9)
    out, grads = run(h, table, gold, 7, backend, through=DIFFERENTIABLE)
    exact, exact_grads = run(h, table, gold, 7, "reference", through=DIFFERENTIABLE, dtype=torch.float64)
    assert out.gold_logit.tolist() == [0.0] * 30
    assert_near(out.lse, exact.lse)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert_near(grad, exact_grad)


@pytest.mark.parametrize("values", ["constant", "duplicates", "few"])
def test_of_equal_scores_the_lower_row_comes_first(backend, values):
    generator = torch.Generator().manual_seed(2)
    # Sums of such numbers are exact, so that equal scores are equal in any order of summation.
    h = torch.randint(-2, 3, (40, 6), generator=generator).float()
    table = torch.randint(-2, 3, (5000, 6), generator=generator).float()
    if values == "constant":
        table[:] = 0.25
    elif values == "duplicates":
        table = table[:50].repeat(100, 1)
    out, _ = run(h, table, None, 100, backend, first_row=3)
    exact, _ = run(h, table, None, 100, "reference", first_row=3)
    assert torch.equal(out.topk_idx, exact.topk_idx)
    assert torch.equal(out.topk_val, exact.topk_val)


def test_loss_close_to_zero_keeps_its_gradient(backend):
    h, table, gold = make_inputs(48, 3000, 32)
    gold[gold < 0] = 7
    table = torch.nn.functional.normalize(table)
    h = table[gold] * 16 + 0.1 * h

    def gradients(backend, dtype):
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in (h, table)]
        out = knn_entity_attention(*inputs, gold, 5, backend=backend)
        loss = (out.lse - out.gold_logit).sum()
        return (out.lse - out.gold_logit).detach(), torch.autograd.grad(loss, inputs)

    loss, grads = gradients(backend, torch.float32)
    exact_loss, exact_grads = gradients("reference", torch.float64)
    assert exact_loss.median() < 0.02
    torch.testing.assert_close(loss.double(), exact_loss, atol=1e-5, rtol=0)
    for grad, exact in zip(grads, exact_grads, strict=True):
        assert (grad - exact).norm() < 1e-4 * exact.norm()


def test_flat_scores_give_every_entity_its_share(backend):
    h, table, gold = make_inputs(30, 9000, 16, scale=1e-4)
    out, grads = run(h, table, gold, 100, backend, through=["lse"])
    exact, exact_grads = run(h, table, gold, 100, "reference", through=["lse"], dtype=torch.float64)
    torch.testing.assert_close(out.lse.double(), exact.lse, atol=2e-6, rtol=0)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(grad.double(), exact_grad, atol=1e-5 * exact_grad.abs().max().item(), rtol=0)


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_large_scores(backend, scale):
    h, table, gold = make_inputs(30, 300, 16, scale=scale)
    out, _ = run(h, table, gold, 20, backend)
    exact, _ = run(h, table, gold, 20, "reference", dtype=torch.float64)
    for name in DIFFERENTIABLE:
        assert_near(getattr(out, name), getattr(exact, name), 1e-6 * scale)  # fp32 scores are that coarse


@pytest.mark.parametrize("where", ["h", "table"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_do_as_in_the_reference(backend, where, value):
    h, table, gold = make_inputs(30, 300, 6)
    (h if where == "h" else table)[4, 2] = value
    out, grads = run(h, table, gold, 20, backend, through=DIFFERENTIABLE)
    exact, exact_grads = run(h, table, gold, 20, "reference", through=DIFFERENTIABLE)
    for name in DIFFERENTIABLE:
        torch.testing.assert_close(getattr(out, name), getattr(exact, name), equal_nan=True, atol=1e-5, rtol=1e-5)
    assert torch.equal(out.topk_idx, exact.topk_idx)
    finite = exact.lse.isfinite() & exact_grads[0].isfinite().all(dim=1)
    torch.testing.assert_close(grads[0][finite], exact_grads[0][finite], atol=1e-4, rtol=1e-4)
    assert torch.equal(grads[1].isnan(), exact_grads[1].isnan())


def test_tensors_that_are_not_contiguous(backend):
    h, table, gold = make_inputs(60, 280, 18)
    views = h[::2, 1::2], table.T.contiguous().T[::2, ::2], gold[::2].clamp(max=139)
    assert not any(view.is_contiguous() for view in views[:2])
    copies = [view.contiguous() for view in views]
    out, _ = run(*views, 7, backend)
    expected, _ = run(*copies, 7, backend)
    for one, other in zip(out, expected, strict=True):
        torch.testing.assert_close(one, other)
    leaves = h.requires_grad_(), table.requires_grad_()
    views = h[::2, 1::2], table.T[::2, ::2].T, views[2]
    knn_entity_attention(*views, 7, backend=backend).att.sum().backward()  # its gradient is an expanded scalar
    reference = [copy.detach().double().requires_grad_() for copy in copies[:2]]
    knn_entity_attention(*reference, copies[2], 7, backend="reference").att.sum().backward()
    assert_near(leaves[0].grad[::2, 1::2], reference[0].grad)
    assert_near(leaves[1].grad[::2, ::2], reference[1].grad)


def test_an_expanded_table(backend):
    h, table, gold = make_inputs(12, 40, 8)
    views = h[:1].expand(12, 8), table[:1].expand(40, 8)
    out, _ = run(h, table[:1], None, 1, "reference")
    found = knn_entity_attention(h, views[1], gold, 4, backend=backend)
    torch.testing.assert_close(found.att, out.att)
    assert found.topk_idx.tolist() == [[0, 1, 2, 3]] * 12
    torch.testing.assert_close(
        knn_entity_attention(views[0], table, gold, 4, backend=backend).att.std(dim=0).max().item(), 0.0
    )


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_same_bits_each_time_also_in_poisoned_memory(backend, num_threads):
    h, table, gold = make_inputs(70, 5000, 20)
    with threads(num_threads):
        first = run(h, table, gold, 100, backend, through=DIFFERENTIABLE, first_row=3)
        # Fills new memory with NaN, so that what is never written shows.
        torch.use_deterministic_algorithms(True)
        try:
            again = run(h, table, gold, 100, backend, through=DIFFERENTIABLE, first_row=3)
        finally:
            torch.use_deterministic_algorithms(False)
    assert_same_bits(first[0], again[0])
    for one, other in zip(first[1], again[1], strict=True):
        assert torch.equal(one, other)


def test_a_mention_does_not_depend_on_the_others(backend):
    h, table, gold = make_inputs(70, 5000, 20)
    together, _ = run(h, table, gold, 100, backend)
    for chosen in ([5], [69, 0, 33], list(range(1, 70))):
        alone, _ = run(h[chosen], table, gold[chosen], 100, backend)
        of_chosen = KnnEntityAttentionOutput(*(part[chosen] for part in together))
        if backend == "cpu":
            assert_same_bits(alone, of_chosen)
        else:  # BLAS sums in another order for another number of rows
            torch.testing.assert_close(alone.lse, of_chosen.lse)
            assert torch.equal(alone.topk_idx, of_chosen.topk_idx)


def test_shares_of_all_entities_sum_to_one(backend):
    h, table, gold = make_inputs(30, 5000, 16)
    table = torch.cat([table, torch.ones(5000, 1)], dim=1)
    h = torch.cat([h, torch.zeros(30, 1)], dim=1).requires_grad_()
    # The gradient of lse is the mean row under the softmax; in a column of ones that is the sum of the softmax.
    knn_entity_attention(h, table, gold, 3, backend=backend).lse.sum().backward()
    torch.testing.assert_close(h.grad[:, -1], torch.ones(30), atol=3e-6, rtol=0)


def test_many_small_shares_beside_a_large_one_are_not_lost(backend):
    # 60,000 entities share 1e-4, so that a block of them is below the rounding of a sum that has the large share.
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(20, 16, generator=generator)
    table = 1e-3 * torch.randn(60_000, 16, generator=generator)
    table[:20] = h * ((torch.tensor(60_000.0).log() + 9.2) / h.square().sum(dim=1, keepdim=True))
    # A column of ones: the gradient of lse there is the sum of the small shares.
    h = torch.cat([h, torch.zeros(20, 1)], dim=1)
    table = torch.cat([table, torch.ones(60_000, 1)], dim=1)
    table[:20, -1] = 0
    gold = torch.arange(20)
    out, grads = run(h, table, gold, 3, backend, through=["lse"])
    exact, exact_grads = run(h, table, gold, 3, "reference", through=["lse"], dtype=torch.float64)
    torch.testing.assert_close((out.lse - out.gold_logit).double(), exact.lse - exact.gold_logit, atol=4e-6, rtol=0)
    torch.testing.assert_close(grads[0][:, -1].double(), exact_grads[0][:, -1], atol=0, rtol=0.02)
