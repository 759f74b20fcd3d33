"""The operator over a table whose rows are split over the ranks of a process group; equal to that over all rows.

Rank r holds a range of rows, after those of rank r - 1, and mentions of its own. The mentions go to all ranks, each
searches its shard with a local backend, and what it found goes back to the mention's owner, who merges: shards are in
the order of rows, so a stable sort by score puts the lower row first. The k nearest are a prefix of each shard's list:
the owner sends its length, and the shard returns the weighted sum of these rows. In the backward pass the shard's
backend gets the log-sum-exp over all shards, which makes its softmax that over all entities.

A rank computes as much as with a table of its own: R times the mentions, 1 / R of the rows. It sends, in numbers of
4 bytes for each of its M mentions and each other rank: h and gold d + 2; found 3 k + 2; choice 5; sums d; in the
backward pass gradients d + 3 (and k if one comes through topk_val), gradient of h d. The host waits for the device
once in the forward pass, for the sizes, and once in the backward pass, to know which gradients there are.

4,000,000 concepts, d = 100, fp32, k = 100, 8 ranks with 400 mentions each (counted, not measured), per rank:
                              table on every rank      sharded
    table                     1.6 GB                   0.2 GB
    its gradient              1.6 GB                   0.2 GB
    Adam's two moments        3.2 GB                   0.4 GB
    sent in a step            2.8 GB (all-reduce)      8 MB
ZeRO splits the moments (stage 1) and the gradient (stage 2) too, but sends the same 2.8 GB: gradients to the owners
of the moments, rows back. Mixed precision adds a copy of the table in 2 bytes to either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

from kebiolm.kernels.knn_entity_attention import interface
from kebiolm.kernels.knn_entity_attention.backends import choose_backend
from kebiolm.kernels.knn_entity_attention.contract import Gradients, Options, Saved, compute_dtype
from kebiolm.kernels.knn_entity_attention.interface import KnnEntityAttentionOutput
from kebiolm.kernels.knn_entity_attention.operator import BACKWARD, FORWARD

# Rows of the table copied at once for the weighted sums: k for each of these mentions.
MENTIONS_AT_ONCE = 256


def shard_rows(num_entities: int, world_size: int, rank: int) -> range:
    """Rows of the table that a rank holds: as many as any other, or one more.

    Raises:
        ValueError: a number is out of range.
    """
    if num_entities < 1 or world_size < 1:
        raise ValueError(f"got {num_entities} entities, world size {world_size}; expected at least 1 of each")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: got {rank}; expected a rank in [0, {world_size})")
    share, left = divmod(num_entities, world_size)
    start = rank * share + min(rank, left)
    return range(start, start + share + (rank < left))


@torch.compiler.disable
def sharded_knn_entity_attention(
    h: Tensor,
    table_shard: Tensor,
    gold: Tensor | None = None,
    k: int = 100,
    *,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    block: int = 32,
    filter_eps: float = 0.0,
    backend: str = "auto",
    deterministic: bool | None = None,
    first_row: int = 0,
) -> KnnEntityAttentionOutput:
    """Attend from this rank's mentions to their k nearest entities in the tables of all ranks.

    Results and gradients are those of `knn_entity_attention` on this rank's mentions and the shards put together in
    the order of ranks. All ranks of the group call it together, and all of them run the backward pass through at
    least one result, also those without a mention, else the others wait. Give it a group of its own where other
    collectives may run in the backward pass. It has been run with gloo on CPUs only.

    The gradient of `table_shard` is complete: summed over the mentions and losses of all ranks, while each loss alone
    stays on its rank. So data parallelism must leave this parameter out of its averaging. Where the other gradients
    are averaged over R ranks (DistributedDataParallel and DeepSpeed do so), divide this one by R, for instance by
    `table_shard.register_hook(lambda grad: grad / R)`, or the table learns as if the loss were R times as large. The
    gradient norm for clipping needs the sum of the shards' squares over the ranks.

    Args:
        h: [M, d] this rank's mentions; M differs between ranks and may be 0.
        table_shard: [E_r, d] this rank's rows; E_r may be 0 where another rank has rows. See `shard_rows`.
        gold: [M] int64 rows of the whole table, `ignore_index` for none; None: no mention of this rank has one.
        k: number of neighbours, the same on all ranks.
        group: the ranks; None: all.
        ignore_index: the value in `gold` that stands for "no gold entity".
        block: as for `knn_entity_attention`, as the next three.
        filter_eps: as there.
        backend: as there; searches the shard. "reference" cannot search a part, "tiled" does it instead.
        deterministic: as there.
        first_row: rows of the whole table before this one are no entities; may hide whole shards.

    Returns:
        As `knn_entity_attention` for this rank's mentions; `topk_idx` are rows of the whole table.

    Raises:
        ValueError: arguments do not fit together, here or on another rank; then every rank raises. Any other error
            in looking at them, such as the TypeError for a table that is None, is one on all ranks likewise.
    """
    if not dist.is_initialized():
        raise ValueError("group: got no process group; expected one, call torch.distributed.init_process_group first")
    mistake = None
    device = h.device if isinstance(h, Tensor) else None
    call = torch.zeros(len(_Call._fields), dtype=torch.int64, device=device)
    try:
        interface.check_arguments(
            h, table_shard if len(table_shard) else table_shard.new_empty(1, *h.shape[1:]), gold, k, 0
        )
        interface.check_options(block, filter_eps)
        chosen = choose_backend(backend, h, table_shard)
        golds = h.new_empty(0, dtype=torch.int64) if gold is None else gold.masked_fill(gold == ignore_index, first_row)
        call = _describe_call(h, table_shard, golds, k, first_row)
    except Exception as error:  # whatever it is, the other ranks wait for this one's answer
        mistake = error
    calls = _tell_all(call, group)
    if mistake is not None:
        raise mistake
    _check_calls(calls)
    options = Options(k, first_row, block, filter_eps, deterministic is not False, want_mean=False)
    plan = _make_plan(calls, group, "tiled" if chosen == "reference" else chosen, options)
    none = h.new_full((len(h),), -1, dtype=torch.int64)
    rows = none if gold is None else torch.where(gold == ignore_index, none, gold)
    return KnnEntityAttentionOutput(*_ShardedAttention.apply(h, table_shard, rows, plan))


class _Call(NamedTuple):
    """What the ranks tell each other of a call."""

    is_right: int
    mentions: int
    rows: int
    size: int
    k: int
    first_row: int
    dtypes: int
    need_h: int
    need_table: int
    has_gold: int
    lowest_gold: int
    """`first_row` where there is none, as in the next."""
    highest_gold: int


class _Plan(NamedTuple):
    """Who has what and who computes; lists have an entry for each rank."""

    group: dist.ProcessGroup | None
    rank: int
    backend: str
    options: Options
    """Of the search of this rank's shard."""
    k: int
    """Neighbours over all shards, at most the number of rows searched."""
    mentions: list[int]
    starts: list[int]
    """First rows of the shards."""
    widths: list[int]
    """Neighbours that the shards give, at most the number of rows searched in each."""
    any_gold: bool
    any_h: bool
    """Whether some rank needs the gradient of h."""


def _describe_call(h: Tensor, shard: Tensor, gold: Tensor, k: int, first_row: int) -> Tensor:
    """A `_Call` on the device of h, where what is known of gold [M] or [0] stays: the host waits once, for all."""
    need_h, need_table = (torch.is_grad_enabled() and tensor.requires_grad for tensor in (h, shard))
    dtypes = 16 * h.dtype.itemsize + shard.dtype.itemsize + 256 * (torch.bfloat16 in (h.dtype, shard.dtype))
    known = 1, len(h), len(shard), h.shape[1], k, first_row, dtypes, need_h, need_table, len(gold) > 0
    ends = torch.stack([gold.min(), gold.max()]) if len(gold) else gold.new_full((2,), first_row)
    return torch.cat([torch.tensor([int(number) for number in known], device=h.device), ends])


def _tell_all(call: Tensor, group: dist.ProcessGroup | None) -> list[_Call]:
    ranks = dist.get_world_size(group)
    received = _exchange([[call]] * ranks, [[(call.shape, call.dtype)]] * ranks, group)
    return [_Call(*row) for row in torch.stack([row for (row,) in received]).tolist()]


def _check_calls(calls: Sequence[_Call]) -> None:
    """Refuse on all ranks what is wrong on one: the others would wait for it for ever."""
    first, rows = calls[0], sum(call.rows for call in calls)
    for rank, call in enumerate(calls):
        if not call.is_right:
            raise ValueError(f"rank {rank}: got arguments that it refuses; expected the same call on all ranks")
        for name in ("size", "k", "first_row", "dtypes"):
            if getattr(call, name) != getattr(first, name):
                values = "others" if name == "dtypes" else f"{getattr(call, name)}, not {getattr(first, name)} as"
                raise ValueError(f"{name}: got {values} on rank {rank} than on rank 0; expected the same on all ranks")
        if (call.need_h or call.need_table) != (first.need_h or first.need_table):
            expected = "expected that h or table_shard requires a gradient on all ranks, or on none"
            raise ValueError(f"requires_grad: got different answers from ranks 0 and {rank}; {expected}")
    if not 0 <= first.first_row < rows:
        raise ValueError(f"first_row: got {first.first_row}; expected a row in [0, {rows}), the rows of all shards")
    for rank, call in enumerate(calls):
        for row in (call.lowest_gold, call.highest_gold):
            if not first.first_row <= row < rows:
                raise ValueError(f"gold: got {row} on rank {rank}; expected a row in [{first.first_row}, {rows})")


def _make_plan(calls: Sequence[_Call], group: dist.ProcessGroup | None, backend: str, options: Options) -> _Plan:
    rank, rows = dist.get_rank(group), [call.rows for call in calls]
    starts = [sum(rows[:number]) for number in range(len(rows))]
    hidden = [min(max(options.first_row - start, 0), count) for start, count in zip(starts, rows, strict=True)]
    k = min(options.k, sum(rows) - options.first_row)
    widths = [min(k, count - unseen) for count, unseen in zip(rows, hidden, strict=True)]
    any_gold, any_h = any(call.has_gold for call in calls), any(call.need_h for call in calls)
    return _Plan(
        group=group,
        rank=rank,
        backend=backend,
        options=options._replace(k=widths[rank], first_row=hidden[rank], want_mean=any_gold and any_h),
        k=k,
        mentions=[call.mentions for call in calls],
        starts=starts,
        widths=widths,
        any_gold=any_gold,
        any_h=any_h,
    )


class _ShardedAttention(torch.autograd.Function):
    """Letters: A mentions of all ranks, M of this one, w neighbours that this shard gives. gold [M], negative: none."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, shard: Tensor, gold: Tensor, plan: _Plan) -> tuple[Tensor, ...]:
        dtype, mentions, options = compute_dtype(h, shard), plan.mentions[plan.rank], plan.options
        with torch.autocast(device_type=h.device.type, enabled=False):
            shapes = [[((m, h.shape[1]), h.dtype), ((m,), torch.int64)] for m in plan.mentions]
            all_h, all_gold = _to_all([h, gold], shapes, plan)
            all_gold = _rows_of_shard(all_gold, shard, plan) if plan.any_gold else None
            lse_here, gold_logit, topk_val, topk_idx, mean = _search(all_h, shard, all_gold, plan.backend, options)
            per_mention = ((mentions,), dtype)
            shapes = [
                [per_mention, per_mention, ((mentions, w), dtype), ((mentions, w), torch.int64)] for w in plan.widths
            ]
            merged = _merge(_to_owners([lse_here, gold_logit, topk_val, topk_idx], shapes, plan), plan)

            choices = [[counts, merged.maximum, merged.total, merged.lse] for counts in merged.counts]
            shapes = [[((m,), torch.int64), *[((m,), dtype)] * 3] for m in plan.mentions]
            counts, maximum, total, lse = _joined(_exchange(choices, shapes, plan.group))
            is_chosen = torch.arange(options.k, device=h.device) < counts.unsqueeze(1)
            has_chosen = (counts > 0).unsqueeze(1)
            weights = (topk_val - maximum.unsqueeze(1)).exp() / total.unsqueeze(1)
            weights = torch.where(is_chosen, weights, 0)
            # A mention without a chosen row here keeps all, as a softmax over none is NaN; its share is 0.
            topk_val = topk_val.masked_fill(has_chosen & ~is_chosen, -torch.inf)
            share, att_here = weights.sum(dim=1, keepdim=True), _weighted_rows(topk_val, topk_idx, shard)
            part = torch.where(has_chosen, share * att_here, 0)
            shapes = [[(h.shape, dtype)] for _ in plan.mentions]
            att = torch.stack([part for (part,) in _to_owners([part], shapes, plan)]).sum(dim=0)
            if mean.numel():
                # From the softmax over this shard to that over all: what the shard adds to the mean of all rows.
                mean = mean * (lse_here - lse).exp().unsqueeze(1)
        ctx.plan = plan
        for_backend = all_h, shard, all_gold, att_here.to(h.dtype), lse, topk_val, topk_idx, mean
        ctx.save_for_backward(*for_backend, weights, share, att, merged.places)
        ctx.mark_non_differentiable(merged.topk_idx)
        ctx.set_materialize_grads(False)
        return att.to(h.dtype), merged.lse, merged.gold_logit, merged.topk_val, merged.topk_idx

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *for_backend, weights, share, att, places = ctx.saved_tensors
        plan, saved = ctx.plan, Saved(*for_backend, ctx.plan.options)
        need_h, need_table = ctx.needs_input_grad[:2]
        with torch.autocast(device_type=att.device.type, enabled=False):
            grads, towards_att = _gradients_of_all(Gradients(*grads[:4]), att, places, plan)
            if grads.att is not None:
                # The backend differentiates a softmax over the rows chosen here, and so takes differences to their
                # mean; the softmax over all k takes them to e'_m. What is between goes in as a gradient of scores.
                between = (grads.att * saved.att).sum(dim=1) - towards_att
                through_att = weights * between.unsqueeze(1)
                topk_val = through_att if grads.topk_val is None else through_att + grads.topk_val
                grads = grads._replace(att=(share * grads.att).to(saved.h.dtype), topk_val=topk_val)
            if saved.options.k:
                backward = BACKWARD[plan.backend]
                grad_h, grad_table = backward(saved, grads, need_h=plan.any_h, need_table=need_table)
            else:  # no row of this shard is searched
                grad_h, grad_table = torch.zeros_like(saved.h), torch.zeros_like(saved.table)
            if plan.any_h:
                shapes = [[((len(att), att.shape[1]), grad_h.dtype)] for _ in plan.mentions]
                parts = [part for (part,) in _to_owners([grad_h], shapes, plan)]
                grad_h = torch.stack(parts).sum(dim=0, dtype=att.dtype).to(saved.h.dtype)
        return grad_h if need_h else None, grad_table if need_table else None, None, None


class _Merged(NamedTuple):
    """What this rank's mentions have found in all shards; K = `_Plan.k`."""

    lse: Tensor
    """[M]."""
    gold_logit: Tensor
    """[M]."""
    topk_val: Tensor
    """[M, K], largest first."""
    topk_idx: Tensor
    """[M, K] rows of the whole table."""
    places: Tensor
    """[M, K] where each stood among the neighbours of all shards, one shard's after the other's."""
    counts: list[Tensor]
    """Of each shard [M] int64: how many of its neighbours are among the K; they are its first ones."""
    maximum: Tensor
    """[M] largest of `topk_val`."""
    total: Tensor
    """[M] sum of exp(topk_val - maximum)."""


def _merge(found: Sequence[Sequence[Tensor]], plan: _Plan) -> _Merged:
    lse, gold_logit, topk_val, rows = zip(*found, strict=True)
    rows = torch.cat([part + start for part, start in zip(rows, plan.starts, strict=True)], dim=1)
    # In the order of rows where scores are equal, and a stable sort keeps it.
    topk_val, places = torch.cat(topk_val, dim=1).sort(dim=1, descending=True, stable=True)
    topk_val, places = (part[:, : plan.k].contiguous() for part in (topk_val, places))
    ends = torch.tensor(plan.widths, device=places.device).cumsum(dim=0)
    shard_of = torch.bucketize(places, ends, right=True)
    return _Merged(
        lse=torch.stack(lse).logsumexp(dim=0),
        gold_logit=torch.stack(gold_logit).sum(dim=0),  # 0 from all shards but one
        topk_val=topk_val,
        topk_idx=rows.gather(1, places),
        places=places,
        counts=[(shard_of == rank).sum(dim=1) for rank in range(len(found))],
        maximum=topk_val[:, 0],
        total=(topk_val - topk_val[:, :1]).exp().sum(dim=1),
    )


def _search(h: Tensor, shard: Tensor, gold: Tensor | None, backend: str, options: Options) -> tuple[Tensor, ...]:
    """lse [A], gold_logit [A], topk_val [A, w], topk_idx [A, w], mean [A, d] or [0] of this shard alone."""
    if options.k:
        return FORWARD[backend](h, shard, gold, options)[1:]
    none = h.new_zeros(len(h), 0, dtype=compute_dtype(h, shard))
    lse, gold_logit = none.new_full((len(h),), -torch.inf), none.new_zeros(len(h))
    return lse, gold_logit, none, none.long(), none.new_empty(0)


def _rows_of_shard(rows: Tensor, shard: Tensor, plan: _Plan) -> Tensor:
    """From rows of the whole table to rows of this shard; negative for those of others."""
    rows = rows - plan.starts[plan.rank]
    return rows.masked_fill((rows < 0) | (rows >= len(shard)), -1)


def _weighted_rows(topk_val: Tensor, topk_idx: Tensor, table: Tensor) -> Tensor:
    """[A, d] rows of the table, weighted by the softmax of their scores [A, w]."""
    weights = topk_val.softmax(dim=1)
    sums = weights.new_zeros(len(weights), table.shape[1])
    for start in range(0, len(weights) if weights.shape[1] else 0, MENTIONS_AT_ONCE):
        group = slice(start, start + MENTIONS_AT_ONCE)
        neighbours = embedding(topk_idx[group], table).to(weights.dtype)
        sums[group] = (weights[group].unsqueeze(1) @ neighbours).squeeze(1)
    return sums


def _gradients_of_all(grads: Gradients, att: Tensor, places: Tensor, plan: _Plan) -> tuple[Gradients, Tensor | None]:
    """Gradients of the results of all ranks, and [A] the product of that of att with att; None where no rank has one.

    Args:
        grads: those of this rank's results.
        att: [M, d].
        places: see `_Merged`.
        plan: of the call.
    """
    ranks, size, width = len(plan.mentions), att.shape[1], plan.widths[plan.rank]
    has = torch.tensor([grad is not None for grad in grads], device=att.device)
    answers = _exchange([[has]] * ranks, [[(has.shape, has.dtype)]] * ranks, plan.group)
    any_att, *any_other = torch.stack([has for (has,) in answers]).any(dim=0).tolist()
    # A rank without a gradient that others have sends zeros.
    grad_att = torch.zeros_like(att) if grads.att is None else grads.att.to(att.dtype)
    lse, gold_logit = (att.new_zeros(len(att)) if grad is None else grad for grad in (grads.lse, grads.gold_logit))
    topk_val = att.new_zeros(len(att), sum(plan.widths))
    if grads.topk_val is not None:
        topk_val.scatter_(1, places, grads.topk_val)
    exists = any_att, any_att, *any_other
    parcels = [
        list(compress([grad_att, (grad_att * att).sum(dim=1), lse, gold_logit, part], exists))
        for part in topk_val.split(plan.widths, dim=1)
    ]
    shapes = [
        list(compress([((m, *of_one), att.dtype) for of_one in ((size,), (), (), (), (width,))], exists))
        for m in plan.mentions
    ]
    received = iter(_joined(_exchange(parcels, shapes, plan.group)))
    grad_att, towards_att, *others = (next(received) if there else None for there in exists)
    return Gradients(grad_att, *others), towards_att


_Shapes = Sequence[Sequence[tuple[tuple[int, ...], torch.dtype]]]


def _to_all(tensors: Sequence[Tensor], shapes: _Shapes, plan: _Plan) -> list[Tensor]:
    """Tensors of this rank's mentions to all ranks; returns those of the mentions of all."""
    return _joined(_exchange([tensors] * len(plan.mentions), shapes, plan.group))


def _to_owners(tensors: Sequence[Tensor], shapes: _Shapes, plan: _Plan) -> list[list[Tensor]]:
    """Tensors of the mentions of all ranks to their owners; returns what each rank has of this one's mentions."""
    parcels = zip(*(tensor.split(plan.mentions) for tensor in tensors), strict=True)
    return _exchange(list(parcels), shapes, plan.group)


def _joined(parcels: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*parcels, strict=True)]


def _exchange(
    parcels: Sequence[Sequence[Tensor]], shapes: _Shapes, group: dist.ProcessGroup | None
) -> list[list[Tensor]]:
    """Send a parcel of tensors to each rank and receive one from each.

    As bytes, so that one message holds tensors of any dtypes. This one collective does for all: gloo and NCCL have it
    with sizes of any kind, so nothing is padded, and no version of torch warns that it is deprecated.

    Args:
        parcels: for each rank.
        shapes: of the tensors in the parcel from each rank.
        group: the ranks.
    """
    packed = [torch.cat([_as_bytes(tensor) for tensor in parcel]) for parcel in parcels]
    sizes = [[math.prod(shape) * dtype.itemsize for shape, dtype in parcel] for parcel in shapes]
    totals = [sum(parcel) for parcel in sizes]
    received = packed[0].new_empty(sum(totals))
    dist.all_to_all_single(received, torch.cat(packed), totals, [len(parcel) for parcel in packed], group=group)
    return [
        # A copy, since a view in another dtype must begin at a multiple of its size.
        [part.clone().view(dtype).view(shape) for part, (shape, dtype) in zip(bytes_.split(parts), parcel, strict=True)]
        for bytes_, parts, parcel in zip(received.split(totals), sizes, shapes, strict=True)
    ]


def _as_bytes(tensor: Tensor) -> Tensor:
    # Not contiguous(): a tensor of one element counts as contiguous whatever its stride, and cannot be viewed so.
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)
