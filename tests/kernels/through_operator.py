"""A backend called as users call it: through the public function, autograd and torch's checks of an op."""

from __future__ import annotations

import torch
from torch import Tensor

from kebiolm.kernels import knn_entity_attention
from kebiolm.kernels.knn_entity_attention.contract import Options
from kebiolm.kernels.knn_entity_attention.operator import knn_op


def check_through_the_operator(
    backend: str, h: Tensor, table: Tensor, gold: Tensor | None, tolerance: float = 1e-5
) -> None:
    """Results and gradients against the reference in float64, the op against its schema and fake, and no mention."""
    found, expected = (
        _results_and_gradients(name, h.to(dtype), table.to(dtype), gold)
        for name, dtype in ((backend, h.dtype), ("reference", torch.float64))
    )
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() <= tolerance * (1 + other.norm())
    leaves = [tensor.clone().requires_grad_() for tensor in (h, table)]
    options = Options(9, 3, 32, 0.0, True, want_mean=gold is not None)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(knn_op, (*leaves, gold, -100, backend, *options), test_utils=checks)
    no_gold = None if gold is None else gold[:0]
    empty = knn_entity_attention(h[:0].clone().requires_grad_(), table, no_gold, 9, backend=backend)
    assert empty.topk_idx.shape == (0, 9)
    assert empty.att.requires_grad


def _results_and_gradients(backend: str, h: Tensor, table: Tensor, gold: Tensor | None) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (h, table)]
    out = knn_entity_attention(*leaves, gold, 9, first_row=3, backend=backend)
    loss = (out.lse - out.gold_logit).sum() + out.att.double().square().sum() + out.topk_val.sum()
    return [*(part.detach() for part in out[:4]), *torch.autograd.grad(loss, leaves)]
