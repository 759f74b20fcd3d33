"""The fp16 kernels for NVIDIA GPUs against float64: on the CPU by an emulator, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention import cuda
from kebiolm.kernels.knn_entity_attention.build_cache import BuildError
from kebiolm.kernels.knn_entity_attention.contract import Found, Gradients, Options, Saved
from kebiolm.kernels.knn_entity_attention.reference import reference_knn_entity_attention
from tests.kernels import emulate_cuda
from tests.kernels.through_operator import check_through_the_operator

NAMES = ("att", "lse", "gold_logit", "topk_val")
# fp16 has a rounding error of 5e-4 at most: in att, in the gradients, and in probabilities on their way to a product.
# Sums of fp32 are cut off, not rounded, in tensor cores.
TOLERANCE = {"att": 1e-3, "mean": 1e-3, "lse": 1e-5, "gold_logit": 1e-5, "topk_val": 2e-6}


GPU = pytest.param("gpu", marks=pytest.mark.gpu)
with_every_tile = pytest.mark.parametrize("device", ["tile 64", "tile 32", GPU], indirect=True)


@pytest.fixture(params=["tile 64", GPU])
def device(request, monkeypatch) -> str:
    """Where the tensors of the test lie; on the CPU the emulator stands in for a device with three processors."""
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        if reason := cuda.available(torch.empty(0, device="cuda").device):
            pytest.skip(reason)
        return "cuda"
    if reason := emulate_cuda.missing():
        pytest.skip(reason)
    tile = int(request.param.split()[1])
    monkeypatch.setattr(
        cuda, "launcher_for", lambda device, size, width: emulate_cuda.Emulator(size, width, tile, multiprocessors=3)
    )
    return "cpu"


@pytest.fixture
def emulated(device) -> str:
    if device != "cpu":
        pytest.skip("of the host code alone")
    return device


class Problem(NamedTuple):
    h: Tensor
    table: Tensor
    gold: Tensor | None
    options: Options


def make_problem(
    device, mentions=37, entities=300, size=20, k=7, *, first_row=0, stride=None, scale=0.4, filter_eps=0.0, seed=0
) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(mentions, size, generator=generator).half()
    table = torch.full((entities, stride or size), torch.nan, dtype=torch.float16)
    table[:, :size] = scale * torch.randn(entities, size, generator=generator)
    gold = torch.randint(first_row, entities, (mentions,), generator=generator)
    gold[::5] = -1
    if mentions > 1:
        gold[1] = entities - 1  # in the last, short tile
    options = Options(min(k, entities - first_row), first_row, 32, filter_eps, True, True)
    return Problem(h.to(device), table.to(device)[:, :size], gold.to(device), options)


def make_gradients(problem: Problem, through=NAMES, scale=1.0) -> Gradients:
    (mentions, size), k = problem.h.shape, problem.options.k
    generator = torch.Generator().manual_seed(1)
    shapes = ((mentions, size), (mentions,), (mentions,), (mentions, k))
    grads = [scale * torch.randn(shape, generator=generator).to(problem.h.device) for shape in shapes]
    grads[0] = grads[0].half()
    return Gradients(*(grad if name in through else None for name, grad in zip(NAMES, grads, strict=True)))


@contextmanager
def host_never_waits(problem: Problem) -> Iterator[None]:
    if problem.h.is_cuda:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if problem.h.is_cuda:
            torch.cuda.set_sync_debug_mode("default")


def forward(problem: Problem) -> Found:
    with host_never_waits(problem):
        return cuda.cuda_forward(*problem)


def backward(problem: Problem, found: Found, grads: Gradients, *, need_h=True, need_table=True):
    h, table, gold, options = problem
    saved = Saved(h, table, gold, found.att, found.lse, found.topk_val, found.topk_idx, found.mean, options)
    with host_never_waits(problem):
        return cuda.cuda_backward(saved, grads, need_h=need_h, need_table=need_table)


def exact(problem: Problem, grads: Gradients | None = None, dtype=torch.float64):
    """Results of the reference, and gradients of h and table."""
    leaves = [tensor.to(dtype).requires_grad_() for tensor in problem[:2]]
    gold = torch.full_like(leaves[0][:, 0], -1).long() if problem.gold is None else problem.gold
    k, first_row = problem.options.k, problem.options.first_row
    results = reference_knn_entity_attention(*leaves, gold, k, ignore_index=-1, first_row=first_row)
    if grads is None:
        return results, None
    pairs = zip(results[:4], grads, strict=True)
    loss = sum((result * grad.to(dtype)).sum() for result, grad in pairs if grad is not None)
    return results, torch.autograd.grad(loss, leaves)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-3):
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).norm()
    assert error <= tolerance * expected.double().norm(), error / expected.double().norm()


def assert_results(found: Found, problem: Problem, results) -> None:
    for name, result in zip(NAMES, results, strict=False):
        assert_near(getattr(found, name), result, TOLERANCE[name])
    h, table, _, options = problem
    # Ranks of almost equal scores may differ, the scores may not.
    scores = h.double() @ table.double().T
    assert_near(scores.gather(1, found.topk_idx), results[3], TOLERANCE["topk_val"])
    assert all(len(set(row)) == len(row) for row in found.topk_idx.tolist())
    assert not found.topk_idx.numel() or found.topk_idx.min() >= options.first_row
    if options.want_mean:
        shares = scores[:, options.first_row :].softmax(dim=1)
        assert_near(found.mean, shares @ table[options.first_row :].double(), TOLERANCE["mean"])


@with_every_tile
@pytest.mark.parametrize(
    "shape",
    [  # mentions, entities, size, k, first_row, stride: around the widths of tiles, blocks, fragments and loads
        (1, 1, 8, 1, 0, 8),
        (5, 1, 20, 3, 0, 20),
        (127, 31, 100, 100, 0, 104),
        (128, 33, 100, 5, 1, 104),
        (129, 64, 104, 64, 0, 104),
        (130, 65, 112, 7, 1, 112),
        (9, 300, 128, 20, 3, 128),
        (130, 1000, 100, 100, 3, 104),
        (40, 1000, 100, 10, 3, 100),
        (17, 260, 102, 4, 0, 104),
        (33, 200, 13, 8, 1, 13),
    ],
    ids=str,
)
def test_results_and_gradients_against_float64(device, shape):
    *sizes, first_row, stride = shape
    problem = make_problem(device, *sizes, first_row=first_row, stride=stride)
    grads = make_gradients(problem)
    results, gradients = exact(problem, grads)
    found = forward(problem)
    assert_results(found, problem, results)
    for grad, expected in zip(backward(problem, found, grads), gradients, strict=True):
        assert_near(grad, expected)
        assert grad.dtype == torch.float16
    assert (backward(problem, found, grads)[1][:first_row] == 0).all()


@pytest.mark.parametrize("through", [*((name,) for name in NAMES), ("lse", "gold_logit"), ("att", "lse")], ids=str)
def test_gradients_alone(device, through):
    problem = make_problem(device, first_row=3)
    grads = make_gradients(problem, through)
    gradients = exact(problem, grads)[1]
    found = forward(problem)
    for need_h, need_table in [(True, True), (True, False), (False, True)]:
        given = backward(problem, found, grads, need_h=need_h, need_table=need_table)
        for needed, grad, expected in zip((need_h, need_table), given, gradients, strict=True):
            assert_near(grad, expected) if needed else None
            assert grad.numel() == (expected.numel() if needed else 0)


@pytest.mark.parametrize("gold", ["none", "all ignored"])
def test_no_mention_with_gold(device, gold):
    problem = make_problem(device)
    problem = problem._replace(gold=None if gold == "none" else torch.full_like(problem.gold, -1))
    # Without gold entities the operator asks for no mean: a gradient of lse then makes it in the backward pass.
    problem = problem._replace(options=problem.options._replace(want_mean=gold != "none"))
    grads = make_gradients(problem)
    results, gradients = exact(problem, grads)
    found = forward(problem)
    assert found.mean.shape == (problem.h.shape if gold != "none" else (0,))
    assert_results(found, problem, results)
    for grad, expected in zip(backward(problem, found, grads), gradients, strict=True):
        assert_near(grad, expected)


def test_no_mention_and_no_gradient(device):
    problem = make_problem(device, mentions=0)
    found = forward(problem)
    assert [tuple(part.shape) for part in found] == [(0, 20), (0,), (0,), (0, 7), (0, 7), (0, 20)]
    grad_h, grad_table = backward(problem, found, make_gradients(problem))
    assert grad_h.shape == (0, 20)
    assert grad_table.shape == (300, 20)
    assert not grad_table.any()
    problem = make_problem(device)
    for grad in backward(problem, forward(problem), make_gradients(problem, ())):
        assert not grad.any()


@with_every_tile
@pytest.mark.parametrize("values", ["constant", "duplicates", "few"])
def test_of_equal_scores_the_lower_row_comes_first(device, values):
    generator = torch.Generator().manual_seed(2)
    # Sums of such numbers are exact, so that equal scores are equal in any order of summation.
    h = torch.randint(-2, 3, (20, 8), generator=generator).half()
    table = torch.randint(-2, 3, (2500, 8), generator=generator).half()
    if values == "constant":
        table[:] = 0.25
    elif values == "duplicates":
        table = table[:50].repeat(50, 1)
    problem = Problem(h.to(device), table.to(device), None, Options(40, 3, 32, 0.0, True, False))
    found, (results, _) = forward(problem), exact(problem)
    assert torch.equal(found.topk_idx, results[4])
    assert torch.equal(found.topk_val.double(), results[3])


def test_more_mentions_than_are_searched_at_once(device, monkeypatch):
    monkeypatch.setattr(cuda, "MENTIONS_AT_ONCE", 128)
    problem = make_problem(device, mentions=140)
    found = forward(problem)
    assert_results(found, problem, exact(problem)[0])
    grads = make_gradients(problem)
    without_mean = found._replace(mean=found.mean[:0, 0])
    for one, other in zip(backward(problem, found, grads), backward(problem, without_mean, grads), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("with_gold", [True, False])
def test_shares_are_those_of_the_given_log_sum_exp(device, with_gold):
    # As for a shard of a table: its rows have less than all of the softmax.
    problem = make_problem(device, first_row=3)
    problem = problem if with_gold else problem._replace(gold=None)
    problem = problem._replace(options=problem.options._replace(want_mean=False))
    found, grads = forward(problem), make_gradients(problem, ("lse",))
    gradients = exact(problem, grads)[1]
    more = torch.linspace(0, 3, len(found.lse), device=device)
    given = backward(problem, found._replace(lse=found.lse + more), grads)
    share = (-more).exp().unsqueeze(1)
    assert_near(given[0], share * gradients[0])
    # The gradient of the table sums over mentions: each with its share.
    scaled = grads._replace(lse=grads.lse * share.squeeze(1))
    assert_near(given[1], exact(problem, scaled)[1][1])


def test_kernels_that_cannot_be_built_for_a_size(monkeypatch):
    def fails(device, size, width):
        raise BuildError("no room")

    monkeypatch.setattr(cuda, "launcher_for", fails)
    problem = make_problem("cpu")
    with pytest.raises(
        RuntimeError, match=r"^the GPU kernels for 20 .* 4 .* \(no room\); set KEBIOLM_KNN_BACKEND=tiled"
    ):
        forward(problem)


def test_loss_close_to_zero_keeps_its_gradient(device):
    problem = make_problem(device, 48, 1000, 32)
    table = torch.nn.functional.normalize(problem.table.float()).half()
    gold = problem.gold.masked_fill(problem.gold < 0, 7)
    problem = problem._replace(h=(table[gold] * 16 + 0.1 * problem.h), table=table, gold=gold)
    one = torch.ones(48, device=device)
    grads = Gradients(None, one, -one, None)
    results, gradients = exact(problem, grads)
    found = forward(problem)
    loss = results[1] - results[2]
    assert loss.median() < 0.02
    torch.testing.assert_close((found.lse - found.gold_logit).double(), loss, atol=1e-5, rtol=0)
    # A GPU may round the scores of the backward pass otherwise than those of the forward pass.
    for grad, expected in zip(backward(problem, found, grads), gradients, strict=True):
        assert_near(grad, expected, 1e-3 if device == "cpu" else 5e-3)


@pytest.mark.parametrize("scale", [1e-3, 3.0], ids=["flat", "peaked"])
def test_flat_and_peaked_scores(device, scale):
    problem = make_problem(device, 30, 2000, 16, 20, scale=scale)
    grads = make_gradients(problem)
    results, gradients = exact(problem, grads)
    found = forward(problem)
    assert_results(found, problem, results)
    for grad, expected in zip(backward(problem, found, grads), gradients, strict=True):
        assert_near(grad, expected)


@with_every_tile
def test_every_entity_is_the_gold_one_of_a_mention(device):
    problem = make_problem(device, 260, 260, 8, 3)
    problem = problem._replace(gold=torch.arange(260, device=device))
    grads = make_gradients(problem, ("lse", "gold_logit"))
    for _ in range(4):  # the emulator runs thread blocks in one order or the other
        results, gradients = exact(problem, grads)
        found = forward(problem)
        assert_results(found, problem, results)
        for grad, expected in zip(backward(problem, found, grads), gradients, strict=True):
            assert_near(grad, expected)


def test_small_shares_keep_their_digits(device):
    # Mention 0 has entity 0, and mention 1 all alike, at a gradient 256 times smaller: fp16 has no digits for 2e-6.
    problem = make_problem(device, 2, 2000, 16, 3, scale=1e-2)
    problem.h[:, 0] = torch.tensor([8.0, 0.0])
    problem.table[:, 0] = 0
    problem.table[0, 0] = 4
    grads = Gradients(None, torch.tensor([1.0, 2.0**-8], device=device), None, None)
    # A larger loss scale lifts the result out of the range where fp16 has few digits.
    grads = grads._replace(lse=grads.lse * 2**14)
    grad_table = backward(problem, forward(problem), grads, need_h=False)[1]
    assert_near(grad_table[1:], exact(problem, grads)[1][1][1:])


def test_shares_of_all_entities_sum_to_one(device):
    problem = make_problem(device, 30, 2000, 17, 3, stride=24)
    problem.table[:, -1] = 1
    problem.h[:, -1] = 0
    # The gradient of lse is the mean row under the softmax; in a column of ones that is the sum of the softmax.
    assert_near(forward(problem).mean[:, -1], torch.ones(30, device=device), 1e-4)


@with_every_tile
@pytest.mark.parametrize("where", ["h", "table"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_do_as_in_the_reference(device, where, value):
    problem = make_problem(device, first_row=3)
    (problem.h if where == "h" else problem.table)[4, 2] = value
    grads = make_gradients(problem)
    found = forward(problem)
    results, gradients = exact(problem, grads, torch.float32)
    for name, result in zip(NAMES, results, strict=False):
        torch.testing.assert_close(getattr(found, name).float(), result, equal_nan=True, atol=2e-3, rtol=2e-3)
    assert torch.equal(found.topk_idx, results[4])
    grad_h, grad_table = backward(problem, found, grads)
    finite = results[1].isfinite() & gradients[0].isfinite().all(dim=1)
    assert_near(grad_h[finite], gradients[0][finite])
    assert torch.equal(grad_table.isnan(), gradients[1].isnan())


def test_loss_scale(device):
    problem = make_problem(device)
    found = forward(problem)
    for scale in (2.0**-12, 2.0**10):
        grads = make_gradients(problem, ("lse", "gold_logit"), scale)
        for grad, expected in zip(backward(problem, found, grads), exact(problem, grads)[1], strict=True):
            assert_near(grad, expected)
    # A loss scale that is too large must show in the gradients, whatever overflows first.
    for grad in backward(problem, found, make_gradients(problem, ("lse", "gold_logit"), 1e36)):
        assert not grad.isfinite().all()
    # Small gradients under a large loss scale: 2^16 * 1e-4.
    grads = make_gradients(problem, NAMES, 2.0**16 * 1e-4)
    for grad, expected in zip(backward(problem, found, grads), exact(problem, grads)[1], strict=True):
        assert_near(grad, expected)


@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_gradients_that_are_not_finite_flow_on(device, odd):
    problem = make_problem(device)
    grads = make_gradients(problem)
    grads.lse[3] = odd
    grad_h, grad_table = backward(problem, forward(problem), grads)
    assert grad_h.isfinite().all(dim=1).tolist() == [mention != 3 for mention in range(len(grad_h))]
    assert not grad_table.isfinite().any()


def test_the_same_bits_each_time_also_in_poisoned_memory(device):
    problem = make_problem(device, 130, 1000, 100, 100, first_row=3, stride=104)
    grads = make_gradients(problem)
    found = forward(problem)
    first = *found, *backward(problem, found, grads)
    # Fills new memory with NaN, so that what is never written shows.
    torch.use_deterministic_algorithms(True)
    try:
        found = forward(problem)
        again = *found, *backward(problem, found, grads)
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)


@with_every_tile
def test_a_mention_does_not_depend_on_the_others(device):
    problem = make_problem(device, 140, 1000)
    grads = make_gradients(problem)
    together = forward(problem)
    grad_h = backward(problem, together, grads)[0]
    for chosen in ([5], [139, 0, 33], list(range(1, 140))):
        part = problem._replace(h=problem.h[chosen], gold=problem.gold[chosen])
        alone = forward(part)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one, other[chosen])
        of_part = Gradients(*(grad[chosen] for grad in grads))
        assert torch.equal(backward(part, alone, of_part, need_table=False)[0], grad_h[chosen])


@with_every_tile
def test_filter_leaves_out_tiles_of_small_probabilities(device):
    problem = make_problem(device, 40, 1000, 20, 3)
    grads = make_gradients(problem, ("lse",))
    found = forward(problem)
    exact_grad = exact(problem, grads)[1][1]

    def grad_table(filter_eps, of=problem):
        of = of._replace(options=of.options._replace(filter_eps=filter_eps))
        return backward(of, found, grads, need_h=False)[1]

    shares = (problem.h.double() @ problem.table.double().T).softmax(dim=1)
    assert_near(grad_table(1e-9), exact_grad)
    largest = shares.max().item()
    without_gold = problem._replace(gold=None)
    assert not grad_table(min(0.999, largest * 1.01), without_gold).any()
    # Tiles with a gold entity always add: 16 entities, 32 or 64 mentions.
    kept = grad_table(0.999)
    assert kept.any()
    rows = torch.zeros(1000, dtype=torch.bool, device=device)
    for row in problem.gold[problem.gold >= 0].tolist():
        rows[row // 16 * 16 : row // 16 * 16 + 16] = True
    assert not kept[~rows].any()
    largest_of_tiles = shares.amax(dim=0)[:992].view(62, 16).amax(dim=1)
    some = grad_table(largest_of_tiles.median().item(), without_gold)[:992].view(62, -1)
    assert not some[largest_of_tiles < largest_of_tiles.median()].any()
    assert some[largest_of_tiles >= largest_of_tiles.median()].any(dim=1).all()


@pytest.mark.parametrize("layout", ["odd offset", "odd stride", "by column", "short storage", "expanded"])
def test_tables_in_other_places_of_memory(device, layout):
    problem = make_problem(device, 20, 100, 20, 4, first_row=1)
    values = problem.table.clone()
    if layout == "odd offset":
        table = torch.cat([values.new_zeros(1), values.flatten()])[1:].view(values.shape)
    elif layout == "odd stride":
        table = torch.nn.functional.pad(values, (1, 2))[:, 1:-2]
    elif layout == "by column":
        table = values.T.contiguous().T
    elif layout == "short storage":  # aligned rows, but no memory after the last one
        table = torch.nn.functional.pad(values, (0, 4)).flatten()[:-4].clone().as_strided((100, 20), (24, 1))
    else:
        table = values = values[:1].expand(100, 20)
    grads = make_gradients(problem)
    of_copy, of_view = problem._replace(table=values.contiguous()), problem._replace(table=table)
    expected, found = forward(of_copy), forward(of_view)
    expected = *expected, *backward(of_copy, expected, grads)
    for one, other in zip((*found, *backward(of_view, found, grads)), expected, strict=True):
        assert torch.equal(one, other)


def test_mentions_and_gradients_that_are_not_contiguous(device):
    problem = make_problem(device)
    grads = make_gradients(problem)
    found = forward(problem)
    expected = *found, *backward(problem, found, grads)
    problem = problem._replace(h=problem.h.T.contiguous().T, gold=problem.gold.repeat_interleave(2)[::2])
    grads = Gradients(*(torch.stack([grad, grad], dim=-1)[..., 0] for grad in grads))
    assert not any(grad.is_contiguous() for grad in grads)
    found = forward(problem)
    for one, other in zip((*found, *backward(problem, found, grads)), expected, strict=True):
        assert torch.equal(one, other)


def test_the_mean_is_made_only_where_it_is_wanted(emulated, monkeypatch):
    problem = make_problem(emulated)
    emulator = emulate_cuda.Emulator(20, 4, 64, multiprocessors=3)
    monkeypatch.setattr(cuda, "launcher_for", lambda *_: emulator)
    forward(problem._replace(options=problem.options._replace(want_mean=False)))
    assert emulator.launched[:2] == ["search", "merge_splits"]
    found = forward(problem)
    assert "search_with_mean" in emulator.launched
    emulator.launched.clear()
    backward(problem, found, make_gradients(problem, ("lse", "gold_logit")), need_h=False)
    assert emulator.launched == ["table_gradient"]


@pytest.mark.parametrize("with_gold", [True, False])
def test_through_the_operator(device, monkeypatch, with_gold):
    monkeypatch.setattr(cuda, "available", lambda device: None)
    problem = make_problem(device, mentions=9, entities=200, size=12, first_row=3)
    gold = problem.gold.masked_fill(problem.gold < 0, -100) if with_gold else None
    check_through_the_operator("cuda", problem.h, problem.table, gold, tolerance=1e-3)


def test_what_the_backend_does_not_take():
    half, single = torch.float16, torch.float32
    assert cuda.unsupported((half, half)) is None
    assert "fp16" in cuda.unsupported((half, single))
    assert cuda.available(torch.device("cpu")) == "no CUDA device: the tensors are on cpu"
