"""What every backend takes and returns, so that the operator can hand its work to any of them.

Shape letters: M mentions, E rows of the table, d entity size, k neighbours (at most the number of rows searched).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Options(NamedTuple):
    """Numbers of a call; `interface.knn_entity_attention` has checked them."""

    k: int
    """Neighbours, at most the number of rows searched."""
    first_row: int
    """Rows of the table before this one are not searched."""
    block: int
    """Entities whose largest score decides whether any of them is looked at; backends may use a size of their own."""
    filter_eps: float
    """A tile of probabilities that are all below this adds nothing to the gradient of the table; 0: all add."""
    deterministic: bool
    """False: sums of gradients may be made in any order where that is faster."""
    want_mean: bool
    """Whether the forward pass should return `Found.mean`."""


class Found(NamedTuple):
    """What a backend's forward pass returns; fp32 is fp64 where an input is fp64."""

    att: Tensor
    """[M, d], dtype of h."""
    lse: Tensor
    """[M] fp32."""
    gold_logit: Tensor
    """[M] fp32, 0 where there is no gold entity."""
    topk_val: Tensor
    """[M, k] fp32, largest first."""
    topk_idx: Tensor
    """[M, k] int64, rows of the whole table; of equal values the lower row first."""
    mean: Tensor
    """[M, d] fp32: the searched rows averaged under the softmax of all scores, the gradient of lse by h. [0] from
    backends that compute it in the backward pass, and where `Options.want_mean` is false."""


class Saved(NamedTuple):
    """What the backward pass knows of the forward pass. `gold` are rows of the table, negative: none."""

    h: Tensor
    table: Tensor
    gold: Tensor | None
    att: Tensor
    lse: Tensor
    topk_val: Tensor
    topk_idx: Tensor
    mean: Tensor
    options: Options


class Gradients(NamedTuple):
    """Gradients of the results; None where none comes."""

    att: Tensor | None
    lse: Tensor | None
    gold_logit: Tensor | None
    topk_val: Tensor | None


def compute_dtype(h: Tensor, table: Tensor) -> torch.dtype:
    """fp32, or fp64 where an input has it."""
    return torch.float64 if torch.float64 in (h.dtype, table.dtype) else torch.float32


def with_dense_rows(tensor: Tensor) -> Tensor:
    """The matrix, or a copy unless a row lies side by side and rows do not overlap, as expanded ones do."""
    is_dense = tensor.stride(1) == 1 and tensor.stride(0) >= tensor.shape[1]
    return tensor if is_dense else tensor.clone(memory_format=torch.contiguous_format)
