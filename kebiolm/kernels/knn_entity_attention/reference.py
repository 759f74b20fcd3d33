"""The operator in plain PyTorch with autograd's own gradients: the truth for tests, and simple enough to check by eye.

It holds the whole [M, E] matrix of dot products: 4 * M * E bytes in fp32, and as much again for its gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention.contract import compute_dtype


def reference_knn_entity_attention(
    h: Tensor, table: Tensor, gold: Tensor | None, k: int, *, ignore_index: int, first_row: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same arguments and results as `interface.knn_entity_attention`, without its checks."""
    dtype = compute_dtype(h, table)
    # Autocast would round the dot products to half precision, and with them the ranks and the loss.
    with torch.autocast(device_type=h.device.type, enabled=False):
        entities = table[first_row:].to(dtype)
        logits = h.to(dtype) @ entities.T
        lse = logits.logsumexp(dim=1)
        # A stable sort rather than topk, which takes any of equal values.
        topk_val, topk_idx = (part[:, :k] for part in logits.sort(dim=1, descending=True, stable=True))
        weights = topk_val.softmax(dim=1)
        # embedding() rather than entities[topk_idx]: its backward sums repeated rows without atomic adds.
        neighbours = torch.nn.functional.embedding(topk_idx, entities)
        att = (weights.unsqueeze(1) @ neighbours).squeeze(1)
        gold_logit = torch.zeros_like(lse)
        if gold is not None:
            has_gold = gold != ignore_index
            column = (gold - first_row).masked_fill(~has_gold, 0)
            gold_logit = torch.where(has_gold, logits.gather(1, column.unsqueeze(1)).squeeze(1), gold_logit)
    return att.to(h.dtype), lse, gold_logit, topk_val, topk_idx + first_row
