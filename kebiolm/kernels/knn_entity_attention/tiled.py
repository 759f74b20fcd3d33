"""The operator in plain PyTorch, on any device: exact, in tiles of mentions x entities, never all scores at once.

Also exact in the order of neighbours: larger score first, and of equal scores the lower row first. NaN counts as
larger than anything, as it does for torch.topk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention.contract import Found, Gradients, Options, Saved, compute_dtype

# A tile of scores takes 16 MB in fp32: about what stays in a processor's cache, and enough work for one call.
MENTIONS_AT_ONCE = 512
ENTITIES_AT_ONCE = 8192
"""With MENTIONS_AT_ONCE mentions; more with fewer."""
BLOCK = 32
"""Entities whose largest score decides whether any of them is looked at; divides ENTITIES_AT_ONCE."""

LOG_HALF = -0.6931472


def tiled_forward(h: Tensor, table: Tensor, gold: Tensor | None, options: Options) -> Found:
    """Search a table [E, d] for mentions [M, d]; gold [M] are rows of the table, negative: none."""
    dtype, k, first_row = compute_dtype(h, table), options.k, options.first_row
    no_mean = h.new_empty(0, dtype=dtype)
    # Autocast would round the scores to half precision, and with them the ranks and the loss.
    with torch.autocast(device_type=h.device.type, enabled=False):
        groups = [
            _search(h[group].to(dtype), table, None if gold is None else gold[group], k, first_row)
            for group in _groups(h.shape[0])
        ]
        if not groups:
            rows = torch.empty(0, k, dtype=torch.int64, device=h.device)
            none = no_mean.clone(), no_mean.clone(), no_mean.new_empty(0, k)
            return Found(h.new_empty(h.shape), *none, rows, no_mean)
        att, *rest = (torch.cat(parts) for parts in zip(*groups, strict=True))
    return Found(att.to(h.dtype), *rest, no_mean)


def _groups(mentions: int) -> Iterator[slice]:
    return (slice(start, min(start + MENTIONS_AT_ONCE, mentions)) for start in range(0, mentions, MENTIONS_AT_ONCE))


def _chunks(h: Tensor, table: Tensor, first_row: int) -> Iterator[tuple[int, Tensor]]:
    size = ENTITIES_AT_ONCE * (MENTIONS_AT_ONCE // h.shape[0])
    for start in range(first_row, table.shape[0], size):
        yield start, table[start : start + size].to(h.dtype)


def _search(
    h: Tensor, table: Tensor, gold: Tensor | None, k: int, first_row: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    lse_of_chunks = []
    gold_logit = h.new_zeros(h.shape[0])
    topk_val, topk_idx = h.new_empty(h.shape[0], 0), gold_logit.new_empty(h.shape[0], 0, dtype=torch.int64)
    for start, entities in _chunks(h, table, first_row):
        scores = h @ entities.T
        if gold is not None:
            column = (gold - start).unsqueeze(1)
            here = (column >= 0) & (column < scores.shape[1])
            score = scores.gather(1, column.clamp(0, scores.shape[1] - 1))
            gold_logit = torch.where(here, score, gold_logit.unsqueeze(1)).squeeze(1)
        if padding := -scores.shape[1] % BLOCK:
            # These columns come last of all, and k is at most E: they are never among the nearest.
            scores = torch.nn.functional.pad(scores, (0, padding), value=-torch.inf)
        blocks = scores.view(h.shape[0], -1, BLOCK)
        block_maximum = blocks.amax(dim=2)
        candidates, rows = _candidates(blocks, block_maximum, topk_val, k, start)
        candidates, rows = torch.cat([topk_val, candidates], dim=1), torch.cat([topk_idx, rows], dim=1)
        places = _places_of_largest(candidates, k)
        topk_val, topk_idx = candidates.gather(1, places), rows.gather(1, places)
        maximum = block_maximum.amax(dim=1)
        maximum = torch.where(maximum.isfinite(), maximum, 0)
        lse_of_chunks.append(scores.sub_(maximum.unsqueeze(1)).exp_().sum(dim=1).log_().add_(maximum))
    # So far in the order of rows; a stable sort keeps it among equal scores.
    topk_val, order = topk_val.sort(dim=1, descending=True, stable=True)
    topk_idx = topk_idx.gather(1, order)
    neighbours = torch.nn.functional.embedding(topk_idx, table).to(h.dtype)
    att = (topk_val.softmax(dim=1).unsqueeze(1) @ neighbours).squeeze(1)
    return att, torch.stack(lse_of_chunks).logsumexp(dim=0), gold_logit, topk_val, topk_idx


def _candidates(blocks: Tensor, block_maximum: Tensor, topk_val: Tensor, k: int, start: int) -> tuple[Tensor, Tensor]:
    """All scores, and their rows, of the blocks that can hold one of the k nearest; rows ascend along dim 1.

    The k blocks with the largest maxima hold the k largest scores: each has an element that precedes everything in
    the other blocks. Once there are k neighbours, only blocks with something above the last of them matter.
    """
    count = min(k, block_maximum.shape[1])
    if topk_val.shape[1] == k and not blocks.is_cuda:  # on a GPU the count would make the host wait for it
        # `not <=` and not `>`, so that NaN counts as nearer.
        nearer = ~(block_maximum <= topk_val.amin(dim=1, keepdim=True))
        count = min(count, int(nearer.sum(dim=1).max()))
    chosen = _places_of_largest(block_maximum, count).unsqueeze(2)
    scores = blocks.gather(1, chosen.expand(-1, -1, BLOCK)).flatten(1)
    rows = start + chosen * BLOCK + torch.arange(BLOCK, device=chosen.device)
    return scores, rows.flatten(1)


def _places_of_largest(values: Tensor, k: int) -> Tensor:
    """Where the k largest of each row are, in ascending order; of equal values the first ones are taken."""
    k = min(k, values.shape[1])
    if 0 < k < values.shape[1] and not values.is_cuda:
        # topk is faster than a sort but takes any of equal values: fine unless they lie on both sides of the border.
        top, places = values.topk(k + 1, dim=1)
        if (top[:, k - 1] > top[:, k]).all():
            return places[:, :k].sort(dim=1).values
    return values.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values


def tiled_backward(saved: Saved, grads: Gradients, *, need_h: bool, need_table: bool) -> tuple[Tensor, Tensor]:
    """Gradients of h [M, d] and of the whole table [E, d]; an empty tensor where one is not needed."""
    dtype = compute_dtype(saved.h, saved.table)
    # In the dtype of the sums, since many mentions add to one row.
    grad_table = saved.table.new_zeros(saved.table.shape if need_table else 0, dtype=dtype)
    grad_h = saved.h.new_zeros(saved.h.shape if need_h else 0, dtype=dtype)
    with torch.autocast(device_type=saved.h.device.type, enabled=False):
        for group in _groups(saved.h.shape[0]):
            per_mention = ("h", "gold", "att", "lse", "topk_val", "topk_idx")
            part = saved._replace(**{name: _rows(getattr(saved, name), group) for name in per_mention})
            part = part._replace(h=part.h.to(dtype), att=part.att.to(dtype))
            part_grads = Gradients(*(None if grad is None else grad[group].to(dtype) for grad in grads))
            targets = grad_h[group] if need_h else None, grad_table if need_table else None
            if part_grads.lse is not None or (part_grads.gold_logit is not None and part.gold is not None):
                _add_dense(part, part_grads, *targets)
            if part_grads.att is not None or part_grads.topk_val is not None:
                _add_neighbours(part, part_grads, *targets)
    return grad_h.to(saved.h.dtype), grad_table.to(saved.table.dtype)


def _rows(tensor: Tensor | None, group: slice) -> Tensor | None:
    return None if tensor is None else tensor[group]


def _add_dense(saved: Saved, grads: Gradients, grad_h: Tensor | None, grad_table: Tensor | None) -> None:
    """Add what comes through lse and gold_logit, over all entities."""
    grad_lse = torch.zeros_like(saved.lse) if grads.lse is None else grads.lse
    grad_gold = torch.zeros_like(saved.lse) if grads.gold_logit is None else grads.gold_logit
    for start, entities in _chunks(saved.h, saved.table, saved.options.first_row):
        # First the difference, then its exponential: the scores themselves may be large.
        log_p = (saved.h @ entities.T).sub_(saved.lse.unsqueeze(1))
        if saved.gold is None:
            grad_scores = log_p.exp_().mul_(grad_lse.unsqueeze(1))
        else:
            column = (saved.gold - start).unsqueeze(1)
            here = (column >= 0) & (column < log_p.shape[1])
            column = column.clamp(0, log_p.shape[1] - 1)
            log_p_gold = log_p.gather(1, column)
            grad_scores = log_p.exp_().mul_(grad_lse.unsqueeze(1))
            # Close to loss 0 the gradients of lse and gold_logit cancel: there P - 1 is computed as one number.
            at_gold = torch.where(
                log_p_gold > LOG_HALF,
                log_p_gold.expm1() * grad_lse.unsqueeze(1) + (grad_lse + grad_gold).unsqueeze(1),
                grad_scores.gather(1, column) + grad_gold.unsqueeze(1),
            )
            grad_scores.scatter_(1, column, torch.where(here, at_gold, grad_scores.gather(1, column)))
        if grad_h is not None:
            grad_h.addmm_(grad_scores, entities)
        if grad_table is not None:
            grad_table[start : start + len(entities)].addmm_(grad_scores.T, saved.h)


def _add_neighbours(saved: Saved, grads: Gradients, grad_h: Tensor | None, grad_table: Tensor | None) -> None:
    """Add what comes through att and topk_val: k rows of the table for each mention."""
    neighbours = torch.nn.functional.embedding(saved.topk_idx, saved.table).to(saved.h.dtype)
    weights = saved.topk_val.softmax(dim=1)
    grad_scores = torch.zeros_like(weights) if grads.topk_val is None else grads.topk_val.clone()
    if grads.att is not None:
        towards = (neighbours - saved.att.unsqueeze(1)) @ grads.att.unsqueeze(2)
        grad_scores += weights * towards.squeeze(2)
    if grad_h is not None:
        grad_h += (grad_scores.unsqueeze(1) @ neighbours).squeeze(1)
    if grad_table is not None:
        rows = grad_scores.unsqueeze(2) * saved.h.unsqueeze(1)
        if grads.att is not None:
            rows += weights.unsqueeze(2) * grads.att.unsqueeze(1)
        if rows.is_cuda:
            # Sorts the rows first: the same bits each time, where index_add_ adds in any order.
            grad_table.index_put_((saved.topk_idx.flatten(),), rows.flatten(0, 1), accumulate=True)
        else:
            grad_table.index_add_(0, saved.topk_idx.flatten(), rows.flatten(0, 1))
