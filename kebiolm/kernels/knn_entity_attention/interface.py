"""The public function: its checks and its result; the arithmetic is in `reference`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention.reference import reference_knn_entity_attention

# Shape letters: M mentions, E entities (rows of the table), d entity size, k neighbours.


class KnnEntityAttentionOutput(NamedTuple):
    """What `knn_entity_attention` returns; k stands for min(k, E)."""

    att: Tensor
    """[M, d], dtype of h: weighted sum of the k nearest entities, e'_m below Eq. 3 of the paper."""
    lse: Tensor
    """[M] fp32: log of the sum over all E entities of exp(h . e), the denominator of Eq. 10."""
    gold_logit: Tensor
    """[M] fp32: h . e of the gold entity, 0 where there is none."""
    topk_val: Tensor
    """[M, k] fp32: dot products of the k nearest entities, largest first."""
    topk_idx: Tensor
    """[M, k] int64: their rows in the table."""


def knn_entity_attention(
    h: Tensor, table: Tensor, gold: Tensor | None = None, k: int = 100, *, ignore_index: int = -100
) -> KnnEntityAttentionOutput:
    """Attend from each mention to its k nearest entities by dot product (paper, Eq. 3 and the terms of Eq. 10).

    Gradients flow from `att`, `lse`, `gold_logit` and `topk_val` to `h` and `table`. M = 0 gives empty results that
    still carry a graph. Dot products, softmax and log-sum-exp are computed in fp32 whatever the dtype of the inputs.

    Args:
        h: [M, d] mentions projected into the space of entities.
        table: [E, d] entity embeddings, E >= 1.
        gold: [M] int64 rows of the table, `ignore_index` where a mention has no gold entity; None: no mention has.
        k: number of neighbours, at least 1; with k > E all E entities are neighbours.
        ignore_index: the value in `gold` that stands for "no gold entity".

    Raises:
        ValueError: shapes, dtypes or k do not fit together.
    """
    if h.ndim != 2 or table.ndim != 2 or h.shape[1] != table.shape[1]:
        raise ValueError(f"expected h [M, d] and table [E, d], got {tuple(h.shape)} and {tuple(table.shape)}")
    if table.shape[0] == 0:
        raise ValueError("expected a table with at least one entity, got an empty one")
    if not (h.is_floating_point() and table.is_floating_point()):
        raise ValueError(f"expected floating-point h and table, got {h.dtype} and {table.dtype}")
    if k < 1:
        raise ValueError(f"expected k >= 1, got {k}")
    if gold is not None and (gold.shape != h.shape[:1] or gold.dtype != torch.int64):
        raise ValueError(f"expected gold [{h.shape[0]}] of int64, got {tuple(gold.shape)} of {gold.dtype}")
    return KnnEntityAttentionOutput(*reference_knn_entity_attention(h, table, gold, k, ignore_index=ignore_index))
