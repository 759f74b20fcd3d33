"""The public function: its checks and its result; the arithmetic is in the backends."""

from __future__ import annotations

from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention.backends import choose_backend
from kebiolm.kernels.knn_entity_attention.contract import Options
from kebiolm.kernels.knn_entity_attention.operator import check_gold_range, knn_op
from kebiolm.kernels.knn_entity_attention.reference import reference_knn_entity_attention

# Shape letters: M mentions, E rows of the table, d entity size, k neighbours.

BLOCKS = (16, 32, 64)


class KnnEntityAttentionOutput(NamedTuple):
    """What `knn_entity_attention` returns; k stands for the smaller of k and the number of entities searched.

    fp32 below becomes fp64 if an input is fp64.
    """

    att: Tensor
    """[M, d], dtype of h: weighted sum of the k nearest entities, e'_m below Eq. 3 of the paper."""
    lse: Tensor
    """[M] fp32: log of the sum over all entities of exp(h . e), the denominator of Eq. 10."""
    gold_logit: Tensor
    """[M] fp32: h . e of the gold entity, 0 where there is none."""
    topk_val: Tensor
    """[M, k] fp32: dot products of the k nearest entities, largest first."""
    topk_idx: Tensor
    """[M, k] int64: their rows in the table; of equal dot products the lower row comes first."""


def knn_entity_attention(
    h: Tensor,
    table: Tensor,
    gold: Tensor | None = None,
    k: int = 100,
    *,
    ignore_index: int = -100,
    block: int = 32,
    filter_eps: float = 0.0,
    backend: str = "auto",
    deterministic: bool | None = None,
    first_row: int = 0,
) -> KnnEntityAttentionOutput:
    """Attend from each mention to its k nearest entities by dot product (paper, Eq. 3 and the terms of Eq. 10).

    Gradients flow from `att`, `lse`, `gold_logit` and `topk_val` to `h` and `table`; they have no gradients of their
    own. M = 0 gives empty results that still carry a graph. Dot products, softmax and log-sum-exp are computed in fp32
    whatever the dtype of the inputs (fp64 if one is fp64), and the same inputs give the same bits.

    Args:
        h: [M, d] mentions projected into the space of entities.
        table: [E, d] entity embeddings, E >= 1.
        gold: [M] int64 rows of the table, `ignore_index` where a mention has no gold entity; None: no mention has.
        k: number of neighbours, at least 1; with fewer entities all are neighbours.
        ignore_index: the value in `gold` that stands for "no gold entity".
        block: entities (16, 32 or 64) whose largest score decides whether any of them is looked at again. Speed and
            memory depend on it, results do not.
        filter_eps: where all softmax probabilities of a tile of mentions x entities are below this, the tile adds
            nothing to the gradient of the table. 0 leaves nothing out; more than 0.01 / E loses much of the gradient.
        backend: a name from `backends.BACKENDS`, or "auto": what the environment variable KEBIOLM_KNN_BACKEND says,
            else the fastest that can do it.
        deterministic: False allows "tiled" on a GPU to add in any order, which is faster; the others always give the
            same bits. None means True.
        first_row: rows of the table before this one are no entities: not searched, gradient 0.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit together. Rows in `gold` that are out of range raise
            it on the CPU; on a GPU they fail as an assertion on the device.
    """
    check_arguments(h, table, gold, k, first_row)
    check_options(block, filter_eps)
    if not _is_whole(ignore_index):
        raise ValueError(f"ignore_index: got {ignore_index!r}; expected a whole number")
    chosen = choose_backend(backend, h, table)
    if chosen == "reference":
        if not torch.compiler.is_compiling():
            check_gold_range(gold, ignore_index, first_row, table.shape[0])
        return KnnEntityAttentionOutput(
            *reference_knn_entity_attention(h, table, gold, k, ignore_index=ignore_index, first_row=first_row)
        )
    options = Options(
        k=min(_plain(k), table.shape[0] - _plain(first_row)),
        first_row=_plain(first_row),
        block=_plain(block),
        filter_eps=filter_eps,
        deterministic=deterministic is not False,
        # The gradient of lse by h. Without gold entities there is no linking loss, and it would be made for nothing.
        want_mean=gold is not None and h.requires_grad and torch.is_grad_enabled(),
    )
    return KnnEntityAttentionOutput(*knn_op(h, table, gold, ignore_index, chosen, *options)[:5])


def check_arguments(h: Tensor, table: Tensor, gold: Tensor | None, k: int, first_row: int) -> None:
    """Refuse, with a ValueError that names the argument, what does not fit together; `gold` by shape and dtype only."""
    for name, tensor in (("h", h), ("table", table)):
        _check_is_dense(name, tensor)
        if tensor.ndim != 2:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}; expected two dimensions")
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: got dtype {tensor.dtype}; expected a floating-point one")
    if h.shape[1] != table.shape[1]:
        raise ValueError(f"table: got rows of size {table.shape[1]}; expected {h.shape[1]}, the size of the rows of h")
    if table.shape[0] == 0:
        raise ValueError("table: got no row; expected at least one entity")
    if table.device != h.device:
        raise ValueError(f"table: got device {table.device}; expected {h.device}, the device of h")
    if not _is_whole(k) or k < 1:
        raise ValueError(f"k: got {k!r}; expected a whole number of at least 1")
    if not _is_whole(first_row) or not 0 <= first_row < table.shape[0]:
        raise ValueError(f"first_row: got {first_row!r}; expected a row in [0, {table.shape[0]})")
    if gold is not None:
        _check_gold(gold, h)


def _check_is_dense(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        got = f"a {tensor.layout} tensor" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name}: got {got}; expected a dense torch.Tensor")


def _check_gold(gold: Tensor, h: Tensor) -> None:
    _check_is_dense("gold", gold)
    if gold.ndim != 1 or gold.shape[0] != h.shape[0]:
        raise ValueError(f"gold: got shape {tuple(gold.shape)}; expected [{h.shape[0]}], one row for each row of h")
    if gold.dtype != torch.int64:
        raise ValueError(f"gold: got dtype {gold.dtype}; expected torch.int64")
    if gold.device != h.device:
        raise ValueError(f"gold: got device {gold.device}; expected {h.device}, the device of h")


def check_options(block: int, filter_eps: float) -> None:
    """Refuse numbers out of range, likewise."""
    if not _is_whole(block) or block not in BLOCKS:
        raise ValueError(f"block: got {block!r}; expected one of {', '.join(map(str, BLOCKS))}")
    if not isinstance(filter_eps, int | float) or not 0 <= filter_eps < 1:
        raise ValueError(f"filter_eps: got {filter_eps!r}; expected a probability in [0, 1)")


def _is_whole(number: object) -> bool:
    # Also NumPy's; torch.SymInt stands for a size under torch.compile.
    return isinstance(number, Integral | torch.SymInt) and not isinstance(number, bool)


def _plain(number: int) -> int:
    """NumPy's whole numbers as Python's, which torch wants."""
    return number if isinstance(number, int | torch.SymInt) else int(number)
