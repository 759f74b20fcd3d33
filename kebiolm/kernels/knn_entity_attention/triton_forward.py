"""The host side of the forward pass in Triton (see `triton_backend`): what is launched, on which tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from kebiolm.kernels.knn_entity_attention.contract import Found, Options, with_dense_rows
from kebiolm.kernels.knn_entity_attention.triton_common import arithmetic_of, forward_kernels, shape_of
from kebiolm.kernels.knn_entity_attention.triton_settings import Settings, choose_settings

# Shape letters: M mentions, E rows of the table, d entity size, k neighbours, N blocks of B entities, S splits.

BUFFER_BYTES = 256 * 2**20
"""About what maxima, sums of splits and candidates take; of more mentions than that allows some are searched first."""
LARGEST_TILE = 128
"""Mentions; not fewer are searched at once."""
SHORT_TILE = 64
"""Entities of a tile that can reach past the end of the table; at least the largest block."""
MAX_SELECT = 2**15
"""Values of a row among which `select_kernel` finds the largest; they lie in registers."""
GROUP = 32
"""Values that are first looked at together where there are more than that."""
CANDIDATES_OF_PROGRAM = 512
CPU_SPLITS = 3
"""Splits of the table in the interpreter; on a GPU as many as it has multiprocessors."""


def triton_forward(h: Tensor, table: Tensor, gold: Tensor | None, options: Options) -> Found:
    """The same arguments and results as `tiled.tiled_forward`, and `Found.mean`; fp64 and d > 256 are not supported.

    Where an input is fp32 all are computed in fp32, with tf32 only if torch.backends.cuda.matmul.allow_tf32.
    """
    h, table = with_dense_rows(h), with_dense_rows(table)
    gold = None if gold is None else gold.contiguous()
    mentions, size = h.shape
    per_mention = {"dtype": torch.float32, "device": h.device}
    found = Found(
        att=h.new_empty(mentions, size),
        lse=torch.empty(mentions, **per_mention),
        gold_logit=torch.empty(mentions, **per_mention) if gold is not None else torch.zeros(mentions, **per_mention),
        topk_val=torch.empty(mentions, options.k, **per_mention),
        topk_idx=torch.empty(mentions, options.k, dtype=torch.int64, device=h.device),
        mean=torch.empty((mentions, size) if options.want_mean else 0, **per_mention),
    )
    with torch.cuda.device_of(h):
        for group in _groups(mentions, h.device, table, options):
            of_group = Found(*(part[group] if part.shape[0] else part for part in found))
            _search(h[group], table, None if gold is None else gold[group], options, of_group)
    return found


def _splits(tiles: int, device: torch.device) -> tuple[int, int]:
    """How many parts the table is cut into, and tiles in each; no part is empty."""
    most = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else CPU_SPLITS
    tiles_each = max(1, -(-tiles // most))
    return -(-tiles // tiles_each), tiles_each


def _groups(mentions: int, device: torch.device, table: Tensor, options: Options) -> Iterator[slice]:
    """Mentions that are searched at once: equal parts, in multiples of the largest tile."""
    if mentions == 0:
        return
    blocks = -(-(table.shape[0] - options.first_row) // options.block)
    splits = _splits(blocks, device)[0] + 1
    of_mention = 4 * (blocks + options.block * min(options.k, blocks) + splits * (table.shape[1] + 2))
    groups = -(-mentions // max(LARGEST_TILE, BUFFER_BYTES // of_mention))
    each = -(-mentions // (LARGEST_TILE * groups)) * LARGEST_TILE
    yield from (slice(start, min(start + each, mentions)) for start in range(0, mentions, each))


class _Scanned(NamedTuple):
    """What one pass over the table leaves behind."""

    block: int
    maxima: Tensor
    """[M, N] largest scores of blocks."""
    split_max: Tensor
    """[S, M]"""
    split_sum: Tensor
    """[S, M]"""
    split_mean: Tensor | None
    """[S, M, d]"""


def _search(h: Tensor, table: Tensor, gold: Tensor | None, options: Options, found: Found) -> None:
    """Fill `found` for a group of mentions."""
    kernels = forward_kernels()
    shape, arithmetic = shape_of(h, table), arithmetic_of(h, table)
    mentions, (entities, size), first_row = h.shape[0], table.shape, options.first_row
    constants = {**shape._asdict(), "HAS_GOLD": gold is not None, "HAS_MEAN": options.want_mean}
    products = arithmetic.constants(shape.BLOCK_D)
    bias = arithmetic.bias if options.want_mean else 0.0

    def scan(settings: Settings) -> _Scanned:
        block = min(options.block, settings.entities)
        blocks = -(-(entities - first_row) // block)
        full_tiles, rest = divmod(entities - first_row, settings.entities)
        splits, tiles_each = _splits(full_tiles, h.device)
        of_splits = splits + bool(rest), mentions
        scanned = _Scanned(
            block=block,
            maxima=found.lse.new_empty(mentions, blocks),
            split_max=found.lse.new_empty(of_splits),
            split_sum=found.lse.new_empty(of_splits),
            split_mean=found.lse.new_empty(*of_splits, size) if options.want_mean else None,
        )

        def launch(tile: int, tiles: range, *, tiles_each: int, first_split: int, short: bool) -> None:
            programs = -(-mentions // settings.mentions) * -(-len(tiles) // tiles_each)
            kernels.search_kernel[(programs,)](
                h, table, gold, *scanned[1:], mentions, entities, first_row, blocks,
                tiles.start, tiles.stop, tiles_each, first_split,
                BM=settings.mentions, BN=tile, B=block, SHORT=short, BIAS=bias,
                num_warps=settings.warps, num_stages=settings.stages, **constants, **products,
            )  # fmt: skip

        if full_tiles:
            launch(settings.entities, range(full_tiles), tiles_each=tiles_each, first_split=0, short=False)
        if rest:
            # A split of its own, so that the others need no masks; those take registers, hence the smaller tiles.
            tile = min(settings.entities, SHORT_TILE)
            start, number = full_tiles * (settings.entities // tile), -(-rest // tile)
            launch(tile, range(start, start + number), tiles_each=number, first_split=splits, short=True)
        return scanned

    kind = arithmetic.kind("mean" if options.want_mean else "search", table, shape)
    scanned = scan(choose_settings(kind, h.device, scan))
    kernels.merge_kernel[(mentions,)](
        h, table, gold, *scanned[2:], found.lse, found.gold_logit, found.mean,
        mentions, entities, first_row, scanned.split_max.shape[0],
        BIAS=bias, SPLITS_AT_ONCE=16, num_warps=4, **constants,
    )  # fmt: skip

    blocks = _Blocks(_places_of_largest(scanned.maxima, options.k), scanned.block, first_row)
    count = blocks.ids.shape[1]
    candidates = found.lse.new_empty(mentions, count * blocks.size)
    kernels.candidates_kernel[(mentions, -(-candidates.shape[1] // CANDIDATES_OF_PROGRAM))](
        h, table, blocks.ids, candidates, entities, first_row, count,
        BN=64, SPAN=CANDIDATES_OF_PROGRAM, B=blocks.size,
        num_warps=4, num_stages=2, **shape._asdict(), **products,
    )  # fmt: skip
    _nearest(candidates, blocks, found)
    kernels.attention_kernel[(mentions,)](
        table, found.topk_val, found.topk_idx, found.att, options.k,
        TABLE_STRIDE=shape.TABLE_STRIDE, D=size, BLOCK_D=shape.BLOCK_D, STEP=32, num_warps=4,
    )  # fmt: skip


class _Blocks(NamedTuple):
    """Blocks of entities that were chosen."""

    ids: Tensor
    """[M, number] int32, ascending."""
    size: int
    first_row: int


def _places_of_largest(values: Tensor, k: int) -> Tensor:
    """[M, N] to [M, min(k, N)] int32: where the largest of each row are, ascending; of equal values the first."""
    mentions, size = values.shape
    if k >= size:
        return torch.arange(size, dtype=torch.int32, device=values.device).expand(mentions, -1).contiguous()
    if size <= MAX_SELECT:
        chosen = torch.empty(mentions, k, dtype=torch.int32, device=values.device)
        _select(values, chosen)
        return chosen
    if k * GROUP >= size:
        return values.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values.int()
    # The same as with blocks of entities: the groups with the largest maxima hold the largest.
    grouped = pad(values, (0, -size % GROUP), value=-torch.inf).view(mentions, -1, GROUP)
    groups = _places_of_largest(grouped.amax(dim=2), k).long()
    places = _places_of_largest(grouped.gather(1, groups.unsqueeze(2).expand(-1, -1, GROUP)).flatten(1), k)
    return (groups.gather(1, (places // GROUP).long()) * GROUP + places % GROUP).int()


def _nearest(candidates: Tensor, blocks: _Blocks, found: Found) -> None:
    """Fill topk_val and topk_idx: the nearest among the candidates, of equal scores the lower row first."""
    k = found.topk_val.shape[1]
    if candidates.shape[1] <= MAX_SELECT:
        scores, rows = torch.empty_like(found.topk_val), torch.empty_like(found.topk_idx)
        _select(candidates, rows, blocks, scores)
        # Rows ascend so far, and a stable sort keeps them so among equal scores.
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        rows = rows.gather(1, order)
    else:
        scores, order = (part[:, :k] for part in candidates.sort(dim=1, descending=True, stable=True))
        ids = blocks.ids.gather(1, order // blocks.size).long()
        rows = blocks.first_row + ids * blocks.size + order % blocks.size
    found.topk_val.copy_(scores)
    found.topk_idx.copy_(rows)


def _select(values: Tensor, chosen: Tensor, blocks: _Blocks | None = None, scores: Tensor | None = None) -> None:
    """Fill `chosen` with places in `values`, or, where these are scores of blocks, with rows, and `scores`."""
    (rows, size), count = values.shape, chosen.shape[1]
    ids, block, first_row = blocks or (None, 0, 0)
    padded = max(32, 1 << (size - 1).bit_length())
    rows_at_once = max(1, min(16, 4096 // padded))
    warps = max(4, min(16, padded // 512))
    forward_kernels().select_kernel[(-(-rows // rows_at_once),)](
        values, ids, chosen, scores, rows, size, count, first_row,
        SIZE=padded, STEP=min(padded, 256 * warps // rows_at_once), ROWS=rows_at_once, B=block, num_warps=warps,
    )  # fmt: skip
