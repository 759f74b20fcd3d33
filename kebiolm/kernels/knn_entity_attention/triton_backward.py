"""The host side of the backward pass in Triton (see `triton_backend`): what is launched, on which tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention.contract import Gradients, Saved, with_dense_rows
from kebiolm.kernels.knn_entity_attention.tiled import tiled_backward
from kebiolm.kernels.knn_entity_attention.triton_common import arithmetic_of, backward_kernels, shape_of
from kebiolm.kernels.knn_entity_attention.triton_settings import Settings, choose_settings

# Shape letters: M mentions, E rows of the table, d entity size, k neighbours.

WINDOW = 8
"""Sorted items that are added up one after the other."""
_LAST = 2**31 - 1
"""Sorts after all rows."""


def triton_backward(saved: Saved, grads: Gradients, *, need_h: bool, need_table: bool) -> tuple[Tensor, Tensor]:
    """The same arguments and results as `tiled.tiled_backward`.

    The sums of a row of the table are all made in fp32 and rounded once to its dtype.
    """
    saved = saved._replace(
        h=with_dense_rows(saved.h),
        table=with_dense_rows(saved.table),
        gold=None if saved.gold is None else saved.gold.contiguous(),
    )
    grads = Gradients(*(None if grad is None else grad.contiguous() for grad in grads))
    with torch.cuda.device_of(saved.h):
        grad_h, items = _mention_gradients(saved, grads, need_h, need_table)
        grad_table = _table_gradient(saved, grads, items) if need_table else saved.table.new_empty(0)
    if need_h and grads.lse is not None and saved.mean.numel() == 0:
        # Without gold entities the forward pass makes no average: this pass over the table is rarely needed.
        in_fp32 = saved._replace(h=saved.h.float())
        only_lse = Gradients(None, grads.lse, None, None)
        grad_h += tiled_backward(in_fp32, only_lse, need_h=True, need_table=False)[0]
    return grad_h.to(saved.h.dtype) if need_h else saved.h.new_empty(0), grad_table


class _Items(NamedTuple):
    """Terms of the gradient of the table that are of single rows, each [M, number]."""

    row: Tensor
    att: Tensor
    """How much of the gradient of att the row gets."""
    h: Tensor
    """How much of h."""


def _mention_gradients(saved: Saved, grads: Gradients, need_h: bool, need_table: bool) -> tuple[Tensor, _Items | None]:
    """The gradient of h [M, d] in fp32 without what lse gives where there is no `saved.mean`, and the items."""
    kernels = backward_kernels()
    (mentions, size), options = saved.h.shape, saved.options
    neighbours = grads.att is not None or grads.topk_val is not None
    has_gold = saved.gold is not None and (grads.lse is not None or grads.gold_logit is not None)
    grad_h = saved.lse.new_zeros(mentions, size) if need_h else saved.lse.new_empty(0)
    number = neighbours * options.k + has_gold
    items = None
    if need_table and number * mentions:
        rows = torch.empty(mentions, number, dtype=torch.int32, device=saved.h.device)
        items = _Items(rows, *(saved.lse.new_empty(mentions, number) for _ in range(2)))
    if mentions and (need_h or items):
        kernels.mention_kernel[(mentions,)](
            saved.h, saved.table, saved.gold, saved.lse, saved.mean, saved.topk_val, saved.topk_idx,
            grads.att, grads.lse, grads.gold_logit, grads.topk_val, grad_h, *(items or (None, None, None)),
            saved.table.shape[0], options.first_row, options.k, number,
            STEP=32, HAS_GOLD=has_gold, HAS_ATT=grads.att is not None, HAS_LSE=grads.lse is not None,
            HAS_MEAN=saved.mean.numel() > 0, HAS_GRAD_GOLD=grads.gold_logit is not None,
            HAS_GRAD_TOPK=grads.topk_val is not None, NEED_H=need_h, NEED_ITEMS=items is not None,
            num_warps=4, **shape_of(saved.h, saved.table)._asdict(),
        )  # fmt: skip
    return grad_h, items


class _Summed(NamedTuple):
    """Sums of the items of each entity."""

    sums: Tensor
    """[slots, d] fp32"""
    slots: Tensor
    """[E] int32: where the sum of an entity is, negative: it has none."""


def _sum_items(saved: Saved, grads: Gradients, items: _Items) -> _Summed:
    kernels = backward_kernels()
    shape, entities = shape_of(saved.h, saved.table), saved.table.shape[0]
    rows, order = items.row.flatten().sort(stable=True)
    size = rows.shape[0]
    windows = -(-size // WINDOW)
    sums = saved.lse.new_empty(min(size, entities), shape.D)
    carries = saved.lse.new_empty(windows, shape.D)
    slots = torch.full((entities,), -1, dtype=torch.int32, device=rows.device)
    kernels.item_sums_kernel[(-(-windows // 8),)](
        rows, order, items.att, items.h, saved.h, grads.att, sums, carries, slots,
        size, entities, items.row.shape[1],
        H_STRIDE=shape.H_STRIDE, D=shape.D, BLOCK_D=shape.BLOCK_D, WINDOW=WINDOW, WINDOWS=8,
        HAS_ATT=grads.att is not None, BY_ENTITY=size > entities, num_warps=4,
    )  # fmt: skip
    kernels.carry_kernel[(windows,)](
        rows, sums, carries, slots, size, entities,
        D=shape.D, BLOCK_D=shape.BLOCK_D, WINDOW=WINDOW, STEP=16, num_warps=1,
    )  # fmt: skip
    return _Summed(sums, slots)


class _Packed(NamedTuple):
    """Mentions that have a gradient of lse, sorted by their gold entities; those without one come first."""

    h: Tensor
    """[M rounded up, BLOCK_D]"""
    lse: Tensor
    weight: Tensor
    """Gradients of lse, divided by the largest."""
    gold: Tensor
    """[M] int32"""
    active: Tensor
    """[] int32: how many there are."""


def _pack(saved: Saved, grad_lse: Tensor, weight: Tensor, tile: int) -> _Packed:
    kernels = backward_kernels()
    shape, gold = shape_of(saved.h, saved.table), saved.gold
    active = grad_lse != 0
    key = torch.full_like(weight, -1, dtype=torch.int32)
    if gold is not None:
        inside = (gold >= saved.options.first_row) & (gold < saved.table.shape[0])
        key = torch.where(inside, gold, -1).int()
    key, order = key.masked_fill(~active, _LAST).sort(stable=True)
    tiles = -(-weight.shape[0] // tile)
    per_mention = [weight.new_empty(tiles * tile) for _ in range(2)]
    packed = _Packed(saved.h.new_empty(tiles * tile, shape.BLOCK_D), *per_mention, key, active.sum(dtype=torch.int32))
    kernels.pack_kernel[(tiles,)](
        saved.h, saved.lse, weight, order, packed.active, *packed[:3],
        H_STRIDE=shape.H_STRIDE, D=shape.D, BLOCK_D=shape.BLOCK_D, BM=tile, num_warps=4,
    )  # fmt: skip
    return packed


def _table_gradient(saved: Saved, grads: Gradients, items: _Items | None) -> Tensor:
    """[E, d] in the dtype of the table."""
    kernels = backward_kernels()
    shape, arithmetic, options = shape_of(saved.h, saved.table), arithmetic_of(saved.h, saved.table), saved.options
    (entities, size), first_row = saved.table.shape, options.first_row
    grad_table = saved.table.new_empty(entities, size)
    grad_table[:first_row] = 0
    dense = grads.lse is not None and saved.h.shape[0] > 0
    if not dense and items is None:
        return grad_table.zero_()
    summed = _sum_items(saved, grads, items) if items else None
    largest = weight = None
    if dense:
        # 1 for most mentions, which costs no rounding in half precision, and the scale of the loss stays out of it.
        largest = grads.lse.abs().amax()
        weight = grads.lse / largest

    def launch(settings: Settings) -> None:
        tiles = -(-(entities - first_row) // settings.entities)
        packed, gold_starts = _Packed(*[None] * 5), None
        if dense:
            packed = _pack(saved, grads.lse, weight, settings.mentions)
            starts = torch.arange(tiles + 1, dtype=torch.int32, device=weight.device) * settings.entities + first_row
            gold_starts = torch.searchsorted(packed.gold, starts, out_int32=True)
        kernels.table_kernel[(tiles,)](
            saved.table, *packed, gold_starts, largest, *(summed or (None, None)), grad_table,
            entities, first_row, options.filter_eps * 2.0**arithmetic.bias,
            TABLE_STRIDE=shape.TABLE_STRIDE, D=size, BLOCK_D=shape.BLOCK_D,
            BM=settings.mentions, BN=settings.entities, HAS_DENSE=dense, HAS_GOLD=dense and saved.gold is not None,
            HAS_ITEMS=summed is not None, FILTER=options.filter_eps > 0, BIAS=arithmetic.bias,
            UNBIAS=2.0**-arithmetic.bias, num_warps=settings.warps, num_stages=settings.stages,
            **arithmetic.constants(shape.BLOCK_D),
        )  # fmt: skip

    kind = arithmetic.kind("table", saved.table, shape)
    launch(choose_settings(kind, saved.table.device, launch))
    return grad_table
