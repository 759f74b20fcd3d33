"""Options that change how the CPU backends work: the size of blocks, the filter of the table's gradient; and what they
leave undone where only some gradients are asked for."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kebiolm.kernels import knn_entity_attention
from kebiolm.kernels.knn_entity_attention import cpu, tiled
from tests.kernels.test_knn_backends import DIFFERENTIABLE, assert_near, assert_same_bits, make_inputs, run

BACKENDS = ["cpu", "tiled"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["normal", "many equal"])
def test_the_size_of_blocks_changes_nothing(backend, kind, monkeypatch):
    monkeypatch.setattr(tiled, "ENTITIES_AT_ONCE", 64)
    h, table, gold = make_inputs(40, 5000, 6)
    if kind == "many equal":  # sums of such numbers are exact
        h, table = h.round(), table.round()
    results = {block: run(h, table, gold, 60, backend, through=DIFFERENTIABLE, block=block) for block in (16, 32, 64)}
    for block in (16, 64):
        assert_same_bits(results[block][0], results[32][0])
        for one, other in zip(results[block][1], results[32][1], strict=True):
            assert torch.equal(one, other)


def peaked_inputs():
    """Each mention has almost all of its softmax on its gold entity, one of the first 100 or the last."""
    h, table, gold = make_inputs(70, 3000, 20)
    gold[:] = torch.arange(len(gold)) % 100
    gold[1] = len(table) - 1
    table = torch.nn.functional.normalize(table)
    return table[gold] * 20 + 0.1 * h, table, gold


@pytest.mark.parametrize("through", [["lse"], ["lse", "gold_logit"], DIFFERENTIABLE])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_filter_loses_no_more_than_it_may(backend, through, monkeypatch):
    monkeypatch.setattr(tiled, "MENTIONS_AT_ONCE", 16)
    monkeypatch.setattr(tiled, "ENTITIES_AT_ONCE", 64)
    h, table, gold = peaked_inputs()
    eps = 0.01
    out, (grad_h, grad_table) = run(h, table, gold, 10, backend, through=through, filter_eps=eps)
    all_out, (all_grad_h, all_grad_table) = run(h, table, gold, 10, backend, through=through)
    assert_same_bits(out, all_out)
    assert torch.equal(grad_h, all_grad_h)
    _, (exact_grad_h, exact_grad_table) = run(h, table, gold, 10, "reference", through=through, dtype=torch.float64)
    assert_near(grad_h, exact_grad_h)
    # Left out are g * P * h with P below eps; at most these, and all of nothing else.
    weights = torch.Generator().manual_seed(1)
    of_names = {name: torch.randn(getattr(out, name).shape, generator=weights) for name in DIFFERENTIABLE}
    shares = (h.double() @ table.double().T).softmax(dim=1)
    below = torch.where(shares < eps, shares, 0)
    allowed = (below * of_names["lse"].abs().unsqueeze(1)).T @ h.double().abs()
    assert ((grad_table - exact_grad_table).abs() <= allowed + 2e-5).all()
    assert not torch.equal(grad_table, all_grad_table), "nothing was left out: the test shows nothing"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_filter_keeps_the_tiles_of_gold_entities(backend):
    # All shares are below the filter: what remains are the tiles with gold entities, here one for each backend.
    h, table, _ = make_inputs(8, 64, 6, scale=1e-3)
    gold = torch.full((8,), 40)
    _, (_, grad_table) = run(h, table, gold, 3, backend, through=["lse", "gold_logit"], filter_eps=0.5)
    _, (_, exact) = run(h, table, gold, 3, "reference", through=["lse", "gold_logit"], dtype=torch.float64)
    assert_near(grad_table[32:], exact[32:], 1e-6)
    _, (_, grad_table) = run(h, table, None, 3, backend, through=["lse"], filter_eps=0.5)
    assert (grad_table == 0).all()


class LargestTensor(TorchDispatchMode):
    """The most elements of a tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and "aten" in str(func) and tensor._base is None:
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["att", "topk_val"])
def test_without_a_linking_loss_no_pass_over_the_table(backend, name, monkeypatch):
    """Fine-tuning: a frozen table, and a gradient through the neighbours alone."""
    dense = []
    monkeypatch.setattr(tiled, "add_dense", lambda *_: dense.append("tiled"))
    call = cpu._call

    def watched(function, h, *arguments):
        if function == "kebiolm_knn_backward":
            # Its arguments by place: gradients of lse and gold_logit, and the two results.
            dense.extend("cpu" for grad in arguments[13:15] if grad is not None)
            assert arguments[-1] is None, "a gradient of the table that nobody asked for"
        call(function, h, *arguments)

    monkeypatch.setattr(cpu, "_call", watched)
    h, table, gold = make_inputs(5, 20_000, 8)
    h.requires_grad_()
    out = knn_entity_attention(h, table, gold, 7, backend=backend)
    with LargestTensor() as largest:
        getattr(out, name).sum().backward()
    assert dense == []
    assert largest.elements < table.numel() / 10
    exact = h.detach().double().requires_grad_()
    getattr(knn_entity_attention(exact, table.double(), gold, 7, backend="reference"), name).sum().backward()
    assert_near(h.grad, exact.grad)
