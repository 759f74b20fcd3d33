"""The operator as torch sees it: one op with a fake implementation and gradients, whatever backend computes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention.contract import Gradients, Options, Saved, compute_dtype
from kebiolm.kernels.knn_entity_attention.cpu import cpu_backward, cpu_forward
from kebiolm.kernels.knn_entity_attention.cuda import cuda_backward, cuda_forward
from kebiolm.kernels.knn_entity_attention.tiled import tiled_backward, tiled_forward
from kebiolm.kernels.knn_entity_attention.triton_backend import triton_backward, triton_forward

FORWARD = {"cpu": cpu_forward, "triton": triton_forward, "cuda": cuda_forward, "tiled": tiled_forward}
BACKWARD = {"cpu": cpu_backward, "triton": triton_backward, "cuda": cuda_backward, "tiled": tiled_backward}
BACKENDS_WITH_MEAN = ("triton", "cuda")
"""They compute `Found.mean` in the forward pass, from the same tiles."""

_OPTIONS = "int k, int first_row, int block, float filter_eps, bool deterministic, bool want_mean"


@torch.library.custom_op(
    "kebiolm::knn_entity_attention",
    mutates_args=(),
    schema=f"(Tensor h, Tensor table, Tensor? gold, int ignore_index, str backend, {_OPTIONS})"
    " -> (Tensor att, Tensor lse, Tensor gold_logit, Tensor topk_val, Tensor topk_idx, Tensor mean)",
)
def knn_op(
    h: Tensor, table: Tensor, gold: Tensor | None, ignore_index: int, backend: str, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments and results of `interface.knn_entity_attention`; the last arguments are those of `Options`."""
    options = Options(*options)
    check_gold_range(gold, ignore_index, options.first_row, table.shape[0])
    return tuple(FORWARD[backend](h, table, _negative_where_none(gold, ignore_index), options))


@knn_op.register_fake
def _(
    h: Tensor, table: Tensor, gold: Tensor | None, ignore_index: int, backend: str, *options: Any
) -> tuple[Tensor, ...]:
    options = Options(*options)
    mentions, dtype = h.shape[0], compute_dtype(h, table)
    per_mention = [h.new_empty(mentions, dtype=dtype) for _ in range(2)]
    topk_val = h.new_empty(mentions, options.k, dtype=dtype)
    topk_idx = topk_val.new_empty(topk_val.shape, dtype=torch.int64)
    has_mean = options.want_mean and backend in BACKENDS_WITH_MEAN
    mean = h.new_empty(h.shape if has_mean else 0, dtype=dtype)
    return h.new_empty(h.shape), *per_mention, topk_val, topk_idx, mean


@torch.library.custom_op(
    "kebiolm::knn_entity_attention_backward",
    mutates_args=(),
    schema="(Tensor? grad_att, Tensor? grad_lse, Tensor? grad_gold_logit, Tensor? grad_topk_val, Tensor h,"
    " Tensor table, Tensor? gold, Tensor att, Tensor lse, Tensor topk_val, Tensor topk_idx, Tensor mean,"
    f" int ignore_index, str backend, bool need_h, bool need_table, {_OPTIONS})"
    " -> (Tensor grad_h, Tensor grad_table)",
)
def knn_backward_op(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Gradients of h and table, each empty where it is not needed."""
    grads, (h, table, gold, *found) = Gradients(*arguments[:4]), arguments[4:12]
    ignore_index, backend, need_h, need_table, *options = arguments[12:]
    saved = Saved(h, table, _negative_where_none(gold, ignore_index), *found, Options(*options))
    return BACKWARD[backend](saved, grads, need_h=need_h, need_table=need_table)


@knn_backward_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    h, table, (need_h, need_table) = arguments[4], arguments[5], arguments[14:16]
    return h.new_empty(h.shape if need_h else 0), table.new_empty(table.shape if need_table else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    h, table, gold, ctx.ignore_index, ctx.backend, *ctx.options = inputs
    att, lse, _, topk_val, topk_idx, mean = output
    ctx.save_for_backward(h, table, gold, att, lse, topk_val, topk_idx, mean)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    need_h, need_table = ctx.needs_input_grad[:2]
    settings = ctx.ignore_index, ctx.backend, need_h, need_table, *ctx.options
    grad_h, grad_table = knn_backward_op(*grads[:4], *ctx.saved_tensors, *settings)
    no_gradient = [None] * (3 + len(ctx.options))
    return grad_h if need_h else None, grad_table if need_table else None, *no_gradient


knn_op.register_autograd(_backward, setup_context=_save)


def check_gold_range(gold: Tensor | None, ignore_index: int, first_row: int, rows: int) -> None:
    """Refuse a gold row outside the table.

    At once, but on a GPU of CUDA as torch does it for indices, by an assertion on the device, so that the host need
    not wait to know the values.

    Raises:
        ValueError: names the first such row.
    """
    if gold is None:
        return
    right = (gold == ignore_index) | ((gold >= first_row) & (gold < rows))
    expected = f"expected a row in [{first_row}, {rows}), or {ignore_index} for none"
    if gold.device.type == "cuda":
        torch._assert_async(right.all(), f"gold: {expected}")
    elif not right.all():
        place = int((~right).nonzero()[0])
        raise ValueError(f"gold[{place}]: got {int(gold[place])}; {expected}")


def _negative_where_none(gold: Tensor | None, ignore_index: int) -> Tensor | None:
    return None if gold is None else gold.masked_fill(gold == ignore_index, -1)
