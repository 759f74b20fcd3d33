"""The operator in plain PyTorch, on any device: exact, in tiles of mentions x entities, never all scores at once.

Also exact in the order of neighbours: larger score first, and of equal scores the lower row first. NaN counts as
larger than anything, as it does for torch.topk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention.contract import Found, Gradients, Options, Saved, compute_dtype

# A tile of scores takes 32 MB in fp32: about what stays in a processor's cache, and enough work for one call.
MENTIONS_AT_ONCE = 512
ENTITIES_AT_ONCE = 16384
"""With MENTIONS_AT_ONCE mentions; more with fewer. A multiple of the largest block."""
PIECE = 1024
"""Entities whose exponentials are summed apart: longer sums of small numbers lose digits, and leave the L1 cache."""

LOG_HALF = -0.6931472


@torch.no_grad()
def tiled_forward(h: Tensor, table: Tensor, gold: Tensor | None, options: Options) -> Found:
    """Search a table [E, d] for mentions [M, d]; gold [M] are rows of the table, negative: none."""
    dtype, k = compute_dtype(h, table), options.k
    no_mean = h.new_empty(0, dtype=dtype)
    # Autocast would round the scores to half precision, and with them the ranks and the loss.
    with torch.autocast(device_type=h.device.type, enabled=False):
        groups = [
            _search(h[group].to(dtype), table, None if gold is None else gold[group], options)
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


def _entities_at_once(mentions: int) -> int:
    return ENTITIES_AT_ONCE * max(1, MENTIONS_AT_ONCE // mentions)


def _tiles(h: Tensor, table: Tensor, first_row: int, multiple: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """First row, entities [N, d] and a tile [M, N or more] whose first N columns are their scores.

    The tiles share one piece of memory, since fresh memory costs more than the product. -inf fills the last one up to
    a `multiple` of columns.
    """
    mentions, end = h.shape[0], table.shape[0]
    size = _entities_at_once(mentions)
    memory = h.new_empty(mentions * min(size, _rounded_up(end - first_row, multiple)))
    for start in range(first_row, end, size):
        entities = table[start : start + size].to(h.dtype)
        columns = _rounded_up(len(entities), multiple)
        tile = memory[: mentions * columns].view(mentions, columns)
        torch.mm(h, entities.T, out=tile[:, : len(entities)])
        tile[:, len(entities) :] = -torch.inf
        yield start, entities, tile


def _rounded_up(number: int, multiple: int) -> int:
    return number + -number % multiple


def _search(
    h: Tensor, table: Tensor, gold: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    nearest = _Nearest(h, options)
    piece = math.gcd(_entities_at_once(h.shape[0]), PIECE)
    lse_of_pieces = []
    gold_logit = h.new_zeros(h.shape[0])
    # Columns of padding come last of all, and k is at most E: they are never among the nearest.
    for start, _, scores in _tiles(h, table, options.first_row, piece):
        if gold is not None:
            column = (gold - start).unsqueeze(1)
            # A row of the padding is no row of the table, and so nobody's gold entity.
            here = (column >= 0) & (column < scores.shape[1])
            score = scores.gather(1, column.clamp(0, scores.shape[1] - 1))
            gold_logit = torch.where(here, score, gold_logit.unsqueeze(1)).squeeze(1)
        blocks = scores.view(h.shape[0], -1, options.block)
        block_maximum = blocks.amax(dim=2)
        nearest.look(blocks, block_maximum, start)
        lse_of_pieces.append(_log_sum_exp_of_pieces(blocks, block_maximum, piece))
    topk_val, topk_idx = nearest.in_order()
    neighbours = torch.nn.functional.embedding(topk_idx, table).to(h.dtype)
    att = (topk_val.softmax(dim=1).unsqueeze(1) @ neighbours).squeeze(1)
    return att, torch.cat(lse_of_pieces, dim=1).logsumexp(dim=1), gold_logit, topk_val, topk_idx


def _log_sum_exp_of_pieces(blocks: Tensor, block_maximum: Tensor, piece: int) -> Tensor:
    """[M, number of pieces]; overwrites the scores.

    log_softmax does in one pass what maximum, difference, exponential and sum do in four; what it took off the largest
    score of a piece is the log-sum-exp.
    """
    mentions, _, block = blocks.shape
    pieces = blocks.view(-1, piece)
    torch.log_softmax(pieces, dim=1, out=pieces)
    highest, place = block_maximum.view(mentions, -1, piece // block).max(dim=2)
    place += torch.arange(0, block_maximum.shape[1], piece // block, device=place.device)
    log_share = blocks.gather(1, place.unsqueeze(2).expand(-1, -1, block)).amax(dim=2)
    return torch.where(highest.isfinite(), highest - log_share, highest)


class _Nearest:
    """The k nearest of each mention so far, in the order of rows, and what may join them."""

    def __init__(self, h: Tensor, options: Options) -> None:
        self.options = options
        self.values = h.new_empty(h.shape[0], 0)
        self.rows = torch.empty(h.shape[0], 0, dtype=torch.int64, device=h.device)
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def look(self, blocks: Tensor, block_maximum: Tensor, start: int) -> None:
        """Take scores [M, blocks, entities of a block] of rows from `start` on."""
        if blocks.is_cuda or self.values.shape[1] < self.options.k:
            self._join(*self._in_best_blocks(blocks, block_maximum, start))
        else:
            # Their number is the host's to know; on a GPU it would have to wait for it.
            self._wait(*self._nearer(blocks, block_maximum, start))

    def in_order(self) -> tuple[Tensor, Tensor]:
        """Scores and rows, each [M, k], the largest first."""
        self._join_waiting()
        # So far in the order of rows; a stable sort keeps it among equal scores.
        values, order = self.values.sort(dim=1, descending=True, stable=True)
        return values, self.rows.gather(1, order)

    def _in_best_blocks(self, blocks: Tensor, block_maximum: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """All scores, and their rows, of the blocks that can hold one of the k nearest; rows ascend along dim 1.

        The k blocks with the largest maxima hold the k largest scores: each has an element that precedes everything in
        the other blocks.
        """
        block = blocks.shape[2]
        chosen = _places_of_largest(block_maximum, self.options.k).unsqueeze(2)
        scores = blocks.gather(1, chosen.expand(-1, -1, block))
        rows = start + chosen * block + torch.arange(block, device=chosen.device)
        return scores.flatten(1), rows.flatten(1)

    def _nearer(self, blocks: Tensor, block_maximum: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, rows and mentions, in the order of mentions and rows, of all that is nearer than the last neighbour.

        Of equal scores the lower row comes first, which is here already. NaN is nearer than anything but NaN.
        """
        is_nan = self.values.isnan()
        last = self.values.masked_fill(is_nan, torch.inf).amin(dim=1)
        nearer = ~((block_maximum <= last.unsqueeze(1)) | is_nan.all(dim=1, keepdim=True))
        mentions, of_blocks = nearer.nonzero(as_tuple=True)
        scores = blocks[mentions, of_blocks]
        chosen, columns = (~(scores <= last[mentions].unsqueeze(1))).nonzero(as_tuple=True)
        return scores[chosen, columns], start + of_blocks[chosen] * blocks.shape[2] + columns, mentions[chosen]

    def _wait(self, scores: Tensor, rows: Tensor, mentions: Tensor) -> None:
        """Few join at a time, and joining costs the same for few: only when as many wait as there are neighbours."""
        self.waiting.append((scores, rows, mentions))
        if sum(len(part[0]) for part in self.waiting) >= self.values.numel():
            self._join_waiting()

    def _join_waiting(self) -> None:
        if not self.waiting:
            return
        scores, rows, mentions = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting = []
        mentions, order = mentions.sort(stable=True)
        count = torch.bincount(mentions, minlength=self.values.shape[0])
        column = torch.arange(len(mentions), device=mentions.device) - (count.cumsum(0) - count)[mentions]
        shape = self.values.shape[0], int(count.max())
        # What fills the rows comes last: even of neighbours at -inf there are k before it.
        new_values, new_rows = scores.new_full(shape, -torch.inf), rows.new_zeros(shape)
        new_values[mentions, column], new_rows[mentions, column] = scores[order], rows[order]
        self._join(new_values, new_rows)

    def _join(self, scores: Tensor, rows: Tensor) -> None:
        """Keep the k nearest of those so far and of later rows [M, any number], which ascend along dim 1."""
        scores, rows = torch.cat([self.values, scores], dim=1), torch.cat([self.rows, rows], dim=1)
        places = _places_of_largest(scores, self.options.k)
        self.values, self.rows = scores.gather(1, places), rows.gather(1, places)


def _places_of_largest(values: Tensor, k: int) -> Tensor:
    """Where the k largest of each row are, in ascending order; of equal values the first ones are taken."""
    k = min(k, values.shape[1])
    if 0 < k < values.shape[1] and not values.is_cuda:
        # topk is faster than a sort but takes any of equal values: fine unless they lie on both sides of the border.
        top, places = values.topk(k + 1, dim=1)
        if (top[:, k - 1] > top[:, k]).all():
            return places[:, :k].sort(dim=1).values
    return values.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values


@torch.no_grad()
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
                add_dense(part, part_grads, *targets)
            if part_grads.att is not None or part_grads.topk_val is not None:
                add_neighbours(part, part_grads, *targets)
    return grad_h.to(saved.h.dtype), grad_table.to(saved.table.dtype)


def _rows(tensor: Tensor | None, group: slice) -> Tensor | None:
    return None if tensor is None else tensor[group]


def add_dense(saved: Saved, grads: Gradients, grad_h: Tensor | None, grad_table: Tensor | None) -> None:
    """Add what comes through lse and gold_logit, over all entities, to grad_h [M, d] and grad_table [E, d].

    For as many mentions as MENTIONS_AT_ONCE at most, and with h in the dtype of the sums.
    """
    grad_lse = torch.zeros_like(saved.lse) if grads.lse is None else grads.lse
    grad_gold = torch.zeros_like(saved.lse) if grads.gold_logit is None else grads.gold_logit
    for start, entities, scores in _tiles(saved.h, saved.table, saved.options.first_row, 1):
        # First the difference, then its exponential: the scores themselves may be large.
        log_p = scores.sub_(saved.lse.unsqueeze(1))
        here = None
        if saved.gold is not None:
            column = (saved.gold - start).unsqueeze(1)
            here = (column >= 0) & (column < log_p.shape[1])
            column = column.clamp(0, log_p.shape[1] - 1)
            log_p_gold = log_p.gather(1, column)
        counts = grad_table is not None and _tile_counts(log_p, here, saved.options.filter_eps)
        grad_scores = log_p.exp_().mul_(grad_lse.unsqueeze(1))
        if here is not None:
            # Close to loss 0 the gradients of lse and gold_logit cancel: there P - 1 is computed as one number.
            at_gold = torch.where(
                log_p_gold > LOG_HALF,
                log_p_gold.expm1() * grad_lse.unsqueeze(1) + (grad_lse + grad_gold).unsqueeze(1),
                grad_scores.gather(1, column) + grad_gold.unsqueeze(1),
            )
            grad_scores.scatter_(1, column, torch.where(here, at_gold, grad_scores.gather(1, column)))
        if grad_h is not None:
            grad_h.addmm_(grad_scores, entities)
        if counts is not False:
            if counts is not True:
                grad_scores.mul_(counts)
            grad_table[start : start + len(entities)].addmm_(grad_scores.T, saved.h)


def _tile_counts(log_p: Tensor, has_gold: Tensor | None, filter_eps: float) -> Tensor | bool:
    """Whether the table's gradient needs a tile: some share reaches the filter, or some gold entity is in it.

    A tensor on a GPU, so that the host need not wait to know.
    """
    if filter_eps <= 0:
        return True
    counts = log_p.amax() >= math.log(filter_eps)
    if has_gold is not None:
        counts |= has_gold.any()
    return counts if log_p.is_cuda else bool(counts)


def add_neighbours(saved: Saved, grads: Gradients, grad_h: Tensor | None, grad_table: Tensor | None) -> None:
    """Add what comes through att and topk_val, for k rows of the table of each mention; the rest as for add_dense."""
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
        if rows.is_cuda and saved.options.deterministic:
            # Sorts the rows first: the same bits each time, where index_add_ adds in any order there.
            grad_table.index_put_((saved.topk_idx.flatten(),), rows.flatten(0, 1), accumulate=True)
        else:
            grad_table.index_add_(0, saved.topk_idx.flatten(), rows.flatten(0, 1))
