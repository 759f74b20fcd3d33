"""The operator in plain PyTorch: the truth for tests, and simple enough to check by eye.

It holds the whole [M, E] matrix of dot products, in fp32: 4 * M * E bytes and as much again for its gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_knn_entity_attention(
    h: Tensor, table: Tensor, gold: Tensor | None, k: int, *, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same arguments and results as `interface.knn_entity_attention`, without its checks."""
    # Autocast would round the dot products to half precision, and with them the ranks and the loss.
    with torch.autocast(device_type=h.device.type, enabled=False):
        table_fp32 = table.float()
        logits = h.float() @ table_fp32.T
        lse = logits.logsumexp(dim=1)
        topk_val, topk_idx = logits.topk(min(k, table.shape[0]), dim=1)
        weights = topk_val.softmax(dim=1)
        # embedding() rather than table[topk_idx]: its backward sums repeated rows without atomic adds.
        neighbours = torch.nn.functional.embedding(topk_idx, table_fp32)
        att = (weights.unsqueeze(1) @ neighbours).squeeze(1)
        gold_logit = torch.zeros_like(lse)
        if gold is not None:
            has_gold = gold != ignore_index
            row = gold.masked_fill(~has_gold, 0)
            gold_logit = torch.where(has_gold, logits.gather(1, row.unsqueeze(1)).squeeze(1), gold_logit)
    return att.to(h.dtype), lse, gold_logit, topk_val, topk_idx
