"""The operator as torch sees it: one op with a fake implementation and gradients, whatever backend computes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention.cpu import cpu_backward, cpu_forward
from kebiolm.kernels.knn_entity_attention.tiled import Gradients, Saved, compute_dtype, tiled_backward, tiled_forward

FORWARD = {"cpu": cpu_forward, "tiled": tiled_forward}
BACKWARD = {"cpu": cpu_backward, "tiled": tiled_backward}


@torch.library.custom_op(
    "kebiolm::knn_entity_attention",
    mutates_args=(),
    schema="(Tensor h, Tensor table, Tensor? gold, int k, int ignore_index, int first_row, str backend)"
    " -> (Tensor att, Tensor lse, Tensor gold_logit, Tensor topk_val, Tensor topk_idx)",
)
def knn_op(  # noqa: PLR0917 (arguments of an op are positional)
    h: Tensor, table: Tensor, gold: Tensor | None, k: int, ignore_index: int, first_row: int, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments and results of `interface.knn_entity_attention`; `backend` is "cpu" or "tiled"."""
    check_gold_range(gold, ignore_index, first_row, table.shape[0])
    return FORWARD[backend](h, table, _negative_where_none(gold, ignore_index), k, first_row)


@knn_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    h, table, _, k, _, first_row, _ = arguments
    dtype = compute_dtype(h, table)
    mentions, neighbours = h.shape[0], torch.sym_min(k, table.shape[0] - first_row)
    per_mention = [h.new_empty(mentions, dtype=dtype) for _ in range(2)]
    topk_val = h.new_empty(mentions, neighbours, dtype=dtype)
    return h.new_empty(h.shape), *per_mention, topk_val, topk_val.new_empty(topk_val.shape, dtype=torch.int64)


@torch.library.custom_op(
    "kebiolm::knn_entity_attention_backward",
    mutates_args=(),
    schema="(Tensor? grad_att, Tensor? grad_lse, Tensor? grad_gold_logit, Tensor? grad_topk_val, Tensor h,"
    " Tensor table, Tensor? gold, Tensor att, Tensor lse, Tensor topk_val, Tensor topk_idx, int ignore_index,"
    " int first_row, str backend, bool need_h, bool need_table) -> (Tensor grad_h, Tensor grad_table)",
)
def knn_backward_op(  # noqa: PLR0917
    grad_att: Tensor | None,
    grad_lse: Tensor | None,
    grad_gold_logit: Tensor | None,
    grad_topk_val: Tensor | None,
    h: Tensor,
    table: Tensor,
    gold: Tensor | None,
    att: Tensor,
    lse: Tensor,
    topk_val: Tensor,
    topk_idx: Tensor,
    ignore_index: int,
    first_row: int,
    backend: str,
    need_h: bool,
    need_table: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of h and table; an empty tensor for one that is not needed."""
    gold = _negative_where_none(gold, ignore_index)
    saved = Saved(h, table, gold, first_row, att, lse, topk_val, topk_idx)
    grads = Gradients(grad_att, grad_lse, grad_gold_logit, grad_topk_val)
    return BACKWARD[backend](saved, grads, need_h=need_h, need_table=need_table)


@knn_backward_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    h, table, (need_h, need_table) = arguments[4], arguments[5], arguments[-2:]
    return h.new_empty(h.shape if need_h else 0), table.new_empty(table.shape if need_table else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    h, table, gold, _, ctx.ignore_index, ctx.first_row, ctx.backend = inputs
    att, lse, _, topk_val, topk_idx = output
    ctx.save_for_backward(h, table, gold, att, lse, topk_val, topk_idx)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    need_h, need_table = ctx.needs_input_grad[:2]
    settings = ctx.ignore_index, ctx.first_row, ctx.backend, need_h, need_table
    grad_h, grad_table = knn_backward_op(*grads[:4], *ctx.saved_tensors, *settings)
    return grad_h if need_h else None, grad_table if need_table else None, None, None, None, None, None


knn_op.register_autograd(_backward, setup_context=_save)


def check_gold_range(gold: Tensor | None, ignore_index: int, first_row: int, rows: int) -> None:
    """Refuse a gold row outside the table.

    Only on the CPU: elsewhere the host would have to wait for the device to know the values.

    Raises:
        ValueError: names the first such row.
    """
    if gold is None or gold.device.type != "cpu":
        return
    wrong = (gold != ignore_index) & ((gold < first_row) | (gold >= rows))
    if wrong.any():
        place = int(wrong.nonzero()[0])
        raise ValueError(
            f"gold[{place}]: got {int(gold[place])}; expected a row in [{first_row}, {rows}), "
            f"or {ignore_index} for none"
        )


def _negative_where_none(gold: Tensor | None, ignore_index: int) -> Tensor | None:
    return None if gold is None else gold.masked_fill(gold == ignore_index, -1)
