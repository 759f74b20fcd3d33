"""Multi-head attention in which each position sees its own segment only (Eq. 1 and Eq. 5 on packed text).

A batch is B rows of L positions; flattened, its segments lie one behind the other, padding being a segment of its own
in each row. Where the segments' borders are known, no matrix of L x L is made: a GPU takes all segments in one call of
its attention kernel, a CPU takes one after the other. Else `scaled_dot_product_attention` gets a boolean mask. Shape
letters: T = B L positions, A heads, D size of a head, S segments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

_HEAD_MULTIPLE, _LARGEST_HEAD = 8, 256  # what the kernels for segments of different lengths ask for


class Segments(NamedTuple):
    """Where each segment begins in the flattened batch."""

    offsets: Tensor
    """[S + 1] int64 on the device of the states; the first is 0, the last T."""
    lengths: list[int] | None
    """The same as lengths, where the device is a CPU: on a GPU the host would have to wait for them."""
    longest: int
    """No segment is longer."""


Visibility = Tensor | Segments | None
"""Who sees whom: a boolean mask, true where the query may see the key and broadcast to [B, A, L, L]; segments; all."""


def visibility_of_segments(
    document_index: Tensor, offsets: Tensor | None, *, dtype: torch.dtype, head_size: int
) -> Visibility:
    """The best way of attention within segments that device and dtype have.

    Args:
        document_index: [B, L] number of each position's segment, 0 for padding.
        offsets: [S + 1] int64 as `Segments.offsets`; None: only a mask can be made.
        dtype: of the states.
        head_size: D.
    """
    if offsets is not None and document_index.device.type == "cpu":
        return Segments(offsets, offsets.diff().tolist(), longest=document_index.shape[1])
    if offsets is not None and _has_kernel(document_index.device, dtype, head_size):
        return Segments(offsets, None, longest=document_index.shape[1])
    return attention_mask_of_segments(document_index)


def attention_mask_of_segments(document_index: Tensor) -> Tensor:
    """Which positions see each other: those of one segment.

    Padding positions see one another, so that no position sees nothing (whose softmax would be NaN).

    Args:
        document_index: [B, L] number of each position's segment, 0 for padding.

    Returns:
        [B, 1, L, L] bool, true where the query (third axis) may see the key (last axis).
    """
    return (document_index.unsqueeze(2) == document_index.unsqueeze(1)).unsqueeze(1)


def attention_mask_of_rows(attention_mask: Tensor) -> Tensor:
    """Which positions are seen by all positions of their row, as BERT does it for one segment a row.

    Args:
        attention_mask: [B, L], 0 for padding.

    Returns:
        [B, 1, 1, L] bool; all true for a row that is padding only, whose softmax would otherwise be NaN.
    """
    seen = attention_mask != 0
    return (seen | ~seen.any(dim=1, keepdim=True))[:, None, None, :]


def attend(query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, dropout_probability: float) -> Tensor:
    """Attention with scores divided by the root of D.

    Args:
        query: [B, L, A, D].
        key: likewise.
        value: likewise.
        visibility: who sees whom.
        dropout_probability: share of the attention weights set to 0, in [0, 1).

    Returns:
        [B, L, A, D].
    """
    if isinstance(visibility, Segments):
        of_segments = _attend_at_once if visibility.lengths is None else _attend_in_turn
        flat = [states.flatten(0, 1) for states in (query, key, value)]
        return of_segments(*flat, visibility, dropout_probability).view_as(query)
    by_head = [states.transpose(1, 2) for states in (query, key, value)]
    attended = scaled_dot_product_attention(*by_head, attn_mask=visibility, dropout_p=dropout_probability)
    return attended.transpose(1, 2)


def _attend_in_turn(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, dropout_probability: float
) -> Tensor:
    """[T, A, D], one segment after the other.

    With dropout the formula is written out: a CPU has no fused kernel for it, and what
    `scaled_dot_product_attention` does instead passes over the weights more often.
    """
    by_head = (states.transpose(0, 1).split(segments.lengths, dim=1) for states in (query, key, value))  # [A, t, D]
    attended = []
    for of_query, of_key, of_value in zip(*by_head, strict=True):
        if dropout_probability:
            weights = ((of_query * of_query.shape[2] ** -0.5) @ of_key.transpose(1, 2)).softmax(dim=2)
            attended.append(dropout(weights, dropout_probability) @ of_value)
        else:
            one_row = (states.unsqueeze(0) for states in (of_query, of_key, of_value))
            attended.append(scaled_dot_product_attention(*one_row).squeeze(0))
    return torch.cat(attended, dim=1).transpose(0, 1).contiguous()


def _attend_at_once(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, dropout_probability: float
) -> Tensor:
    """[T, A, D], all segments in one call; torch takes FlashAttention where the card has it (8.0 and newer).

    On a V100 that is the memory-efficient kernel. The bound on the lengths spares a look at them.
    """
    nested = [
        torch.nested.nested_tensor_from_jagged(states, segments.offsets, min_seqlen=0, max_seqlen=segments.longest)
        for states in (query, key, value)
    ]
    by_head = (states.transpose(1, 2) for states in nested)
    return scaled_dot_product_attention(*by_head, dropout_p=dropout_probability).transpose(1, 2).values()


def _has_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether `_attend_at_once` has a fused kernel there; without one it would wait for the lengths on the host."""
    if device.type != "cuda" or head_size % _HEAD_MULTIPLE or head_size > _LARGEST_HEAD:
        return False
    if dtype == torch.bfloat16:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return dtype in (torch.float16, torch.float32)
