"""The operator on CPUs in fp32: calls the compiled kernel (`knn_cpu.cpp`)."""

from __future__ import annotations

import ctypes
import functools
import warnings

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention.build_cache import BuildError
from kebiolm.kernels.knn_entity_attention.build_cpu import build
from kebiolm.kernels.knn_entity_attention.contract import Found, Gradients, Options, Saved, with_dense_rows
from kebiolm.kernels.knn_entity_attention.tiled import tiled_backward, tiled_forward


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None, with one warning in the life of the process, where it cannot be had."""
    try:
        return ctypes.CDLL(str(build()))
    except (BuildError, OSError) as error:
        warnings.warn(
            f"the CPU kernel of knn_entity_attention is not available, the slower PyTorch path is used: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def cpu_forward(h: Tensor, table: Tensor, gold: Tensor | None, options: Options) -> Found:
    """The same arguments and results as `tiled.tiled_forward`; h and table are fp32 in the memory of the CPU.

    Each thread keeps 16 k bytes for a mention: 0.6 MB at M = 400, k = 100.
    """
    h, table = h.contiguous(), with_dense_rows(table)
    gold = None if gold is None else gold.contiguous()
    mentions = h.shape[0]
    k, first_row = options.k, options.first_row
    att, lse, gold_logit = torch.empty_like(h), h.new_empty(mentions), h.new_empty(mentions)
    topk_val = h.new_empty(mentions, k)
    topk_idx = torch.empty(mentions, k, dtype=torch.int64)
    _call(
        "kebiolm_knn_forward", h, *_table_arguments(table, first_row), gold, k, torch.get_num_threads(),
        att, lse, gold_logit, topk_val, topk_idx,
    )  # fmt: skip
    # Infinite and NaN scores are rare, and their ranks follow torch's rules: left to torch.
    odd = ~lse.isfinite()
    if odd.any():
        redone = tiled_forward(h[odd], table, None if gold is None else gold[odd], options)
        for result, rows in zip((att, lse, gold_logit, topk_val, topk_idx), redone[:5], strict=True):
            result[odd] = rows
    return Found(att, lse, gold_logit, topk_val, topk_idx, h.new_empty(0))


def cpu_backward(saved: Saved, grads: Gradients, *, need_h: bool, need_table: bool) -> tuple[Tensor, Tensor]:
    """The same arguments and results as `tiled.tiled_backward`."""
    if not saved.lse.isfinite().all():
        return tiled_backward(saved, grads, need_h=need_h, need_table=need_table)
    h, table = saved.h.contiguous(), with_dense_rows(saved.table)
    gold = None if saved.gold is None else saved.gold.contiguous()
    first_row = saved.options.first_row
    grad_h = torch.empty_like(h) if need_h else h.new_empty(0)
    grad_table = h.new_empty(table.shape if need_table else 0)
    if need_table:
        grad_table[:first_row] = 0
    _call(
        "kebiolm_knn_backward", h, *_table_arguments(table, first_row), gold, saved.topk_idx.shape[1],
        torch.get_num_threads(), saved.att, saved.lse, saved.topk_val, saved.topk_idx,
        *(None if grad is None else grad.contiguous() for grad in grads), float(saved.options.filter_eps),
        grad_h if need_h else None, grad_table[first_row:] if need_table else None,
    )  # fmt: skip
    return grad_h, grad_table


def _table_arguments(table: Tensor, first_row: int) -> tuple[Tensor | int, ...]:
    visible = table[first_row:]
    return visible, visible.shape[0], visible.stride(0), visible.shape[1], first_row


def _call(name: str, h: Tensor, *arguments: Tensor | int | float | None) -> None:
    """Call a function of the library: tensors go as pointers, None as a null pointer, int in 64 bits, float in 32."""
    ready = [ctypes.c_void_p(h.data_ptr()), ctypes.c_int64(h.shape[0])]
    for argument in arguments:
        if isinstance(argument, int):
            ready.append(ctypes.c_int64(argument))
        elif isinstance(argument, float):
            ready.append(ctypes.c_float(argument))
        else:
            ready.append(ctypes.c_void_p(None if argument is None else argument.data_ptr()))
    if getattr(library(), name)(*ready):
        raise MemoryError(f"{name}: not enough memory for {h.shape[0]} mentions")
