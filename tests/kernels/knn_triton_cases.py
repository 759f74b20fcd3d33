"""The Triton backend against the reference in float64, in Triton's interpreter or on a GPU.

Run by `test_knn_triton`, each in a process of its own: whether Triton interprets is decided when it is imported.
"""

from __future__ import annotations

import warnings

import pytest
import torch

from kebiolm.kernels.knn_entity_attention import triton_forward as host
from kebiolm.kernels.knn_entity_attention import triton_settings
from kebiolm.kernels.knn_entity_attention.contract import Found, Gradients, Options, Saved
from kebiolm.kernels.knn_entity_attention.triton_backend import triton_backward, triton_forward
from kebiolm.kernels.knn_entity_attention.triton_common import interpreting
from kebiolm.kernels.knn_entity_attention.triton_settings import Settings
from tests.kernels.test_knn_backends import DIFFERENTIABLE, assert_near, make_inputs
from tests.kernels.test_knn_backends import run as run_operator
from tests.kernels.through_operator import check_through_the_operator

IN_INTERPRETER = interpreting()
DEVICE = "cpu" if IN_INTERPRETER else "cuda"
SMALL = Settings(mentions=16, entities=32, warps=4, stages=1)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        # NumPy, in the interpreter: infinities and NaN are part of what is tested.
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch):
    """The interpreter multiplies the bits of bf16 numbers as if they were whole numbers; widened, they are right."""
    if not IN_INTERPRETER:
        return
    from triton.runtime import interpreter

    multiply = interpreter.InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != interpreter.tl.bfloat16:
            return handle
        bits = handle.data.astype("uint32") << 16
        return interpreter.TensorHandle(bits.view("float32"), interpreter.tl.float32)

    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda builder, a, b, *others: multiply(builder, widened(a), widened(b), *others),
    )


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 16 x 32, so that little data has many of them."""
    monkeypatch.setattr(triton_settings, "default_settings", lambda _: SMALL)


def options_for(table, k, *, first_row=0, block=32, filter_eps=0.0, deterministic=True, want_mean=True) -> Options:
    k = min(k, table.shape[0] - first_row)
    return Options(k, first_row, block, filter_eps, deterministic, want_mean)


def forward(h, table, gold, options) -> Found:
    return triton_forward(h.to(DEVICE), table.to(DEVICE), None if gold is None else gold.to(DEVICE), options)


def weights_of(found, through) -> Gradients:
    """The same weights as in `test_knn_backends.run`, of the results named."""
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(getattr(found, name).shape, generator=generator) for name in DIFFERENTIABLE}
    return Gradients(*(weights[name].to(DEVICE) if name in through else None for name in DIFFERENTIABLE))


def run(h, table, gold, k, *, through=DIFFERENTIABLE, scale=1.0, need_h=True, need_table=True, **numbers):
    """Results, and gradients of h and table through the named results; all on the CPU."""
    options = options_for(table, k, want_mean=gold is not None and need_h, **numbers)
    found = forward(h, table, gold, options)
    if not through:
        return Found(*(part.cpu() for part in found)), None
    grads = weights_of(found, through)
    grads = Gradients(*(None if grad is None else grad * scale for grad in grads))
    grads = grads._replace(att=None if grads.att is None else grads.att.to(h.dtype))
    device_gold = None if gold is None else gold.to(DEVICE)
    after = (found.att, found.lse, found.topk_val, found.topk_idx, found.mean)
    saved = Saved(h.to(DEVICE), table.to(DEVICE), device_gold, *after, options)
    gradients = triton_backward(saved, grads, need_h=need_h, need_table=need_table)
    return Found(*(part.cpu() for part in found)), tuple(grad.cpu() for grad in gradients)


def exact(h, table, gold, k, *, through=DIFFERENTIABLE, **numbers):
    return run_operator(h, table, gold, k, "reference", through=through, dtype=torch.float64, **numbers)


def assert_right(h, table, gold, k, *, through=DIFFERENTIABLE, first_row=0, **numbers):
    found, grads = run(h, table, gold, k, through=through, first_row=first_row, **numbers)
    expected, expected_grads = exact(h, table, gold, k, through=through, first_row=first_row)
    for name in DIFFERENTIABLE:
        assert_near(getattr(found, name), getattr(expected, name))
    # Ranks of almost equal scores may differ, the scores may not.
    assert_near((h.double() @ table.double().T).gather(1, found.topk_idx), expected.topk_val)
    assert all(len(set(row)) == len(row) for row in found.topk_idx.tolist())
    assert found.topk_idx.min() >= first_row
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_near(grad, expected_grad)
    assert (grads[1][:first_row] == 0).all()


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


SHAPES = [  # mentions, entities, size, k, first_row: around the widths of tiles and blocks
    (1, 1, 1, 1, 0),
    (1, 70, 5, 3, 3),
    (17, 31, 7, 100, 0),
    (16, 64, 16, 64, 0),
    (15, 99, 17, 5, 3),
    (9, 1000, 13, 1, 1),
    (6, 133, 100, 20, 3),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients_against_float64(shape, small_tiles):
    mentions, entities, size, k, first_row = shape
    h, table, gold = make_inputs(mentions, entities, size, first_row=first_row)
    assert_right(h, table, gold, k, first_row=first_row)


@pytest.mark.parametrize("block", [16, 32, 64])
def test_tiles_as_on_a_gpu(block):
    h, table, gold = make_inputs(5, 708, 24)  # the last tile has less blocks than others
    assert_right(h, table, gold, 9, block=block)


def test_gold_entities_in_any_of_many_tiles(monkeypatch, small_tiles):
    # Of 64 tiles and more the search kernel keeps note in groups.
    monkeypatch.setattr(host, "CPU_SPLITS", 1)
    h, table, _ = make_inputs(16, 130 * SMALL.entities + 5, 4, scale=2.0)
    gold = torch.arange(16) * 277
    found, grads = run(h, table, gold, 2, through=["lse"], need_table=False)
    expected, expected_grads = exact(h, table, gold, 2, through=["lse"])
    assert_near(found.lse, expected.lse)
    assert_near(grads[0], expected_grads[0])


def test_no_mention():
    h, table, gold = make_inputs(0, 70, 8)
    found, grads = run(h, table, gold, 5, first_row=3)
    assert [tuple(part.shape) for part in found] == [(0, 8), (0,), (0,), (0, 5), (0, 5), (0, 8)]
    assert grads[0].shape == (0, 8)
    assert torch.equal(grads[1], torch.zeros(70, 8))


def test_mentions_in_groups(monkeypatch, small_tiles):
    h, table, gold = make_inputs(9, 140, 6)
    at_once, _ = run(h, table, gold, 4, through=())
    monkeypatch.setattr(host, "LARGEST_TILE", 4)
    monkeypatch.setattr(host, "BUFFER_BYTES", 1)
    in_groups, _ = run(h, table, gold, 4, through=())
    for one, other in zip(at_once, in_groups, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("k", [1, 3, 7, 40, 300])
@pytest.mark.parametrize("most", [host.MAX_SELECT, 128])
def test_places_of_the_largest(k, most, monkeypatch):
    monkeypatch.setattr(host, "MAX_SELECT", most)
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-2, 3, (21, 300), generator=generator).float()
    values[:7] = torch.randn(7, 300, generator=generator)
    values[7:9] = -torch.inf
    values[8, 5] = 0.0
    values[9, ::2] = -0.0
    values[10, ::3] = torch.nan
    values[11, ::3] = -torch.tensor(torch.nan)
    values[12, ::5] = torch.inf
    expected = values.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    places = host._places_of_largest(values.to(DEVICE), k).cpu()
    assert torch.equal(places.long(), expected)


@pytest.mark.parametrize("values", ["constant", "duplicates", "few"])
@pytest.mark.parametrize("most", [host.MAX_SELECT, 64])
def test_of_equal_scores_the_lower_row_comes_first(values, most, monkeypatch, small_tiles):
    monkeypatch.setattr(host, "MAX_SELECT", most)
    generator = torch.Generator().manual_seed(2)
    # Sums of such numbers are exact, so that equal scores are equal in any order of summation.
    h = torch.randint(-2, 3, (10, 6), generator=generator).float()
    table = torch.randint(-2, 3, (500, 6), generator=generator).float()
    if values == "constant":
        table[:] = 0.25
    elif values == "duplicates":
        table = table[:50].repeat(10, 1)
    # All mentions have the same few neighbours here: many terms for each row of the gradient.
    found, grads = run(h, table, None, 12, through=["att", "topk_val"], first_row=3)
    expected, expected_grads = exact(h, table, None, 12, through=["att", "topk_val"], first_row=3)
    assert torch.equal(found.topk_idx, expected.topk_idx)
    assert torch.equal(found.topk_val.double(), expected.topk_val)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_near(grad, expected_grad)


@pytest.mark.parametrize("through", [*([name] for name in DIFFERENTIABLE), ["lse", "gold_logit"], ["att", "lse"]])
@pytest.mark.parametrize("needed", ["both", "h", "table"])
def test_gradients_alone(through, needed, small_tiles):
    h, table, gold = make_inputs(7, 100, 5, first_row=3)
    need = {"need_h": needed != "table", "need_table": needed != "h"}
    _, grads = run(h, table, gold, 4, through=through, first_row=3, **need)
    _, expected = exact(h, table, gold, 4, through=through, first_row=3)
    for grad, expected_grad, wanted in zip(grads, expected, need.values(), strict=True):
        if wanted:
            assert_near(grad, expected_grad)
        else:
            assert grad.numel() == 0


@pytest.mark.parametrize("gold", [None, torch.full((6,), -100), torch.full((6,), 2**32 + 7)])
def test_no_mention_with_gold(gold, small_tiles):
    h, table, _ = make_inputs(6, 140, 9)
    found, grads = run(h, table, gold, 7)
    expected, expected_grads = exact(h, table, None, 7)
    assert found.gold_logit.tolist() == [0.0] * 6
    assert_near(found.lse, expected.lse)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_near(grad, expected_grad)


def test_the_average_of_the_table(small_tiles):
    h, table, gold = make_inputs(6, 140, 9, first_row=3)
    found = forward(h, table, gold, options_for(table, 7, first_row=3))
    visible = table[3:].double()
    assert_near(found.mean.cpu(), (h.double() @ visible.T).softmax(dim=1) @ visible)
    assert forward(h, table, gold, options_for(table, 7, want_mean=False)).mean.shape == (0,)


@pytest.mark.parametrize(
    "dtype,tolerance", [(torch.float32, 1e-4), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)], ids=str
)
def test_loss_close_to_zero_keeps_its_gradient(dtype, tolerance):
    h, table, gold = make_inputs(8, 1500, 32)
    gold[gold < 0] = 7
    table = torch.nn.functional.normalize(table)
    h, table = (table[gold] * 16 + 0.1 * h).to(dtype), table.to(dtype)
    options = options_for(table, 5)
    found = forward(h, table, gold, options)
    ones = torch.ones_like(found.lse)
    after = (found.att, found.lse, found.topk_val, found.topk_idx, found.mean)
    saved = Saved(h.to(DEVICE), table.to(DEVICE), gold.to(DEVICE), *after, options)
    grads = triton_backward(saved, Gradients(None, ones, -ones, None), need_h=True, need_table=True)
    inputs = [tensor.double().requires_grad_() for tensor in (h, table)]
    scores = inputs[0] @ inputs[1].T
    loss = scores.logsumexp(dim=1) - scores.gather(1, gold.unsqueeze(1)).squeeze(1)
    assert loss.median() < 0.02
    torch.testing.assert_close((found.lse - found.gold_logit).cpu().double(), loss.detach(), atol=1e-5, rtol=0)
    for grad, expected in zip(grads, torch.autograd.grad(loss.sum(), inputs), strict=True):
        assert relative_error(grad.cpu(), expected) < tolerance


@pytest.mark.parametrize("h_scale", [1e-3, 3.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("scale", [1.0, 2.0**16, 2.0**-16])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)], ids=str)
def test_half_precision_whatever_the_scale_of_the_loss(dtype, tolerance, scale, h_scale):
    h, table, gold = make_inputs(6, 900, 20, scale=h_scale)
    table = table * 0.3
    h, table = h.to(dtype), table.to(dtype)
    through = ["lse", "gold_logit", *(["att"] if scale < 2.0**10 else [])]  # fp16 has no room for that in att
    found, grads = run(h, table, gold, 9, through=through, scale=scale)
    expected, expected_grads = exact(h, table, gold, 9, through=through)
    for name in ("lse", "gold_logit", "topk_val"):
        assert_near(getattr(found, name), getattr(expected, name), 3e-6)
    assert relative_error(found.att, expected.att) < tolerance
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        wanted = expected_grad * scale
        # What fp16 cannot hold is not the kernel's mistake: large numbers, and steps between the smallest.
        fits = wanted.abs() < (60_000 if dtype == torch.float16 else torch.inf)
        error = (grad.double() - wanted)[fits].norm()
        assert error < tolerance * wanted[fits].norm() + 2.0**-25 * fits.sum().sqrt()


def test_small_probabilities_are_within_the_range_of_fp16():
    h, table, _ = make_inputs(6, 900, 24)
    table = torch.nn.functional.normalize(table)
    h[:] = table[7] * 20 + 0.1 * h
    gold = torch.full((6,), 7)
    h, table = h.half(), table.half()
    _, (_, grad_table) = run(h, table, gold, 5, through=["lse"], scale=2.0**14)
    expected, (_, expected_table) = exact(h, table, gold, 5, through=["lse"])
    assert (expected.lse - expected.gold_logit).max() < 0.002  # others share that: 2e-6 each
    others = torch.arange(900) != 7
    assert relative_error(grad_table[others], expected_table[others] * 2.0**14) < 1e-3


def test_mixed_dtypes_are_computed_in_fp32(small_tiles):
    h, table, gold = make_inputs(5, 140, 9)
    h = h.half()
    found, grads = run(h, table, gold, 7)
    expected, _ = exact(h, table, gold, 7)
    assert (found.att.dtype, grads[0].dtype, grads[1].dtype) == (torch.float16, torch.float16, torch.float32)
    assert_near(found.lse, expected.lse)


@pytest.mark.parametrize("where", ["h", "table"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(where, value, small_tiles):
    h, table, gold = make_inputs(6, 700, 6)
    (h if where == "h" else table)[4, 2] = value
    found, grads = run(h, table, gold, 20, block=16)  # fewer neighbours than blocks: some must be chosen
    expected, expected_grads = run_operator(h, table, gold, 20, "reference", through=DIFFERENTIABLE)
    for name in DIFFERENTIABLE:
        expected_part = getattr(expected, name)
        torch.testing.assert_close(getattr(found, name), expected_part, equal_nan=True, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.topk_idx, expected.topk_idx)
    finite = expected.lse.isfinite() & expected_grads[0].isfinite().all(dim=1)
    torch.testing.assert_close(grads[0][finite], expected_grads[0][finite], atol=1e-4, rtol=1e-4)
    assert torch.equal(grads[1].isfinite(), expected_grads[1].isfinite())


def test_a_part_of_the_table_with_nothing_but_minus_infinity(small_tiles):
    h, table = torch.full((2, 3), 10.0), torch.full((300, 3), -20.0) - torch.arange(300).unsqueeze(1) / 100
    table[:150] = -torch.inf
    found = forward(h, table, None, options_for(table, 5, want_mean=False))
    torch.testing.assert_close(found.lse.cpu(), (h @ table.T).logsumexp(dim=1))
    assert found.topk_idx.cpu().tolist() == [list(range(150, 155))] * 2


def test_nan_does_not_lead_outside_the_table(small_tiles):
    h, table, gold = make_inputs(5, 200, 6)
    h[1], h[2, 0], table[7::9] = torch.nan, torch.inf, torch.nan
    found, _ = run(h, table, gold, 30, first_row=3)
    assert found.topk_idx.min() >= 3
    assert found.topk_idx.max() < 200
    assert all(len(set(row)) == len(row) for row in found.topk_idx.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_same_bits_each_time_also_in_poisoned_memory(dtype, small_tiles):
    h, table, gold = make_inputs(9, 200, 7)
    h, table = h.to(dtype), table.to(dtype)
    first = run(h, table, gold, 20, first_row=3)
    # Fills new memory with NaN, so that what is never written shows.
    torch.use_deterministic_algorithms(True)
    try:
        again = run(h, table, gold, 20, first_row=3, deterministic=False)
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip((*first[0], *first[1]), (*again[0], *again[1]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_mention_does_not_depend_on_the_others(dtype):
    h, table, gold = make_inputs(20, 700, 9)
    h, table = h.to(dtype), table.to(dtype)
    together, (grad_h, _) = run(h, table, gold, 9, need_table=False)
    options = options_for(table, 9)
    weights = weights_of(together, DIFFERENTIABLE)
    for chosen in ([5], [19, 0, 13]):
        alone = forward(h[chosen], table, gold[chosen], options)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one.cpu(), other[chosen])
        grads = Gradients(*(weight[chosen] for weight in weights))
        grads = grads._replace(att=grads.att.to(dtype))
        after = (alone.att, alone.lse, alone.topk_val, alone.topk_idx, alone.mean)
        saved = Saved(h[chosen].to(DEVICE), table.to(DEVICE), gold[chosen].to(DEVICE), *after, options)
        alone_grad, _ = triton_backward(saved, grads, need_h=True, need_table=False)
        assert torch.equal(alone_grad.cpu(), grad_h[chosen])


def test_tensors_that_are_not_contiguous(small_tiles):
    h, table, gold = make_inputs(10, 150, 26)
    padded = torch.cat([table, torch.full((150, 6), torch.nan)], dim=1)  # nobody may look behind the rows
    found, grads = run(h, table, gold, 7)
    strided, strided_grads = run(h.repeat(1, 2)[:, :26], padded[:, :26], gold, 7)
    transposed, transposed_grads = run(h.T.contiguous().T, table.T.contiguous().T, gold, 7)
    for others in ((*strided, *strided_grads), (*transposed, *transposed_grads)):
        for one, other in zip((*found, *grads), others, strict=True):
            assert torch.equal(one, other)


def test_an_expanded_gradient(small_tiles):
    h, table, gold = make_inputs(4, 70, 5)
    options = options_for(table, 3)
    found = forward(h, table, gold, options)
    after = (found.att, found.lse, found.topk_val, found.topk_idx, found.mean)
    saved = Saved(h.to(DEVICE), table.to(DEVICE), gold.to(DEVICE), *after, options)
    one = torch.ones((), device=DEVICE)
    expanded = Gradients(one.expand(4, 5), one.expand(4), None, None)
    copied = Gradients(*(None if grad is None else grad.contiguous() for grad in expanded))
    results = [triton_backward(saved, grads, need_h=True, need_table=True) for grads in (expanded, copied)]
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_filter_leaves_out_small_probabilities_and_never_the_gold(small_tiles):
    h, table, gold = make_inputs(8, 400, 12, scale=0.5)
    through = ["lse", "gold_logit"]
    _, (_, everything) = run(h, table, gold, 5, through=through)
    _, (_, almost) = run(h, table, gold, 5, through=through, filter_eps=1e-4 / 400)
    assert relative_error(almost, everything.double()) < 1e-3
    _, (_, gold_only) = run(h, table, gold, 5, through=through, filter_eps=0.9)
    without_gold = torch.ones(400, dtype=torch.bool)
    without_gold[gold[gold >= 0]] = False
    assert (gold_only[without_gold] == 0).all()
    assert (gold_only[~without_gold] != 0).any(dim=1).all()


def test_many_small_shares_beside_a_large_one_are_not_lost():
    # 6,000 entities share 1e-4, so that a block of them is close to the rounding of a sum that has the large share.
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(4, 16, generator=generator)
    table = 1e-3 * torch.randn(6000, 16, generator=generator)
    table[:4] = h * ((torch.tensor(6000.0).log() + 9.2) / h.square().sum(dim=1, keepdim=True))
    gold = torch.arange(4)
    found = forward(h, table, gold, options_for(table, 3))
    expected, _ = exact(h, table, gold, 3, through=())
    loss = (found.lse - found.gold_logit).cpu().double()
    torch.testing.assert_close(loss, expected.lse - expected.gold_logit, atol=2e-6, rtol=0)


@pytest.mark.parametrize("with_gold", [True, False])
def test_through_the_operator(with_gold):
    h, table, gold = make_inputs(9, 200, 12, first_row=3)
    check_through_the_operator("triton", h.to(DEVICE), table.to(DEVICE), gold.to(DEVICE) if with_gold else None)
