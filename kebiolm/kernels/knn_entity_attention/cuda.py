"""The operator on NVIDIA GPUs in fp16, on tensor cores: calls the kernels of `knn_cuda.cu`.

The host never waits for the device. How a sum over entities is split depends on the table and the device alone, so that
results of a mention do not depend on the other mentions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention.build_cache import BuildError
from kebiolm.kernels.knn_entity_attention.contract import Found, Gradients, Options, Saved, with_dense_rows
from kebiolm.kernels.knn_entity_attention.launch_cuda import Launcher, launcher_for

# Shape letters: M mentions, E rows searched, d entity size, k neighbours.

MAX_SIZE = 128
MENTIONS_AT_ONCE = 2048
"""Bounds the memory for maxima of blocks and for sums of splits; a multiple of ROWS."""
THREADS, WARPS, ROWS, BLOCK = 256, 8, 128, 32
"""As in knn_cuda.cu. Blocks have 32 entities whatever `Options.block` is."""
COMMON_SIZE, COMMON_WIDTH = 104, 8
"""Dimensions and halves of a load of the table as training stores it: 100 in rows of 208 bytes."""


@functools.cache
def available(device: torch.device) -> str | None:
    """Why the kernels cannot run on this device, in one line; None if they can."""
    if device.type != "cuda" or torch.version.cuda is None:
        return f"no CUDA device: the tensors are on {device}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (7, 0):
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; tensor cores need 7.0"
    try:
        launcher_for(device, COMMON_SIZE, COMMON_WIDTH)
    except BuildError as error:
        return str(error)
    return None


def unsupported(dtypes: tuple[torch.dtype, torch.dtype]) -> str | None:
    """Why mentions and table of these dtypes are not for this backend; None: they are."""
    return None if dtypes == (torch.float16, torch.float16) else "it takes fp16 tensors"


def search_bytes(size: int, tile: int) -> int:
    """Shared memory of the search: two tiles of fp16, and for each warp its scores in fp32."""
    return 2 * tile * (_padded(size) + 8) * 2 + WARPS * 16 * (tile + 4) * 4


def table_gradient_bytes(size: int, tile: int) -> int:
    """Shared memory of the gradient of the table: likewise, and in the end the gradients of ROWS entities in fp32."""
    return max(2 * tile * (_padded(size) + 8) * 2 + WARPS * tile * 20 * 4, ROWS * _padded(size) * 4)


class _Table(NamedTuple):
    """The rows that are searched, and the kernels for them."""

    rows: Tensor
    first_row: int
    launcher: Launcher

    def launch(self, name: str, grid: tuple[int, int], shared_bytes: int, *arguments: Tensor | float | None) -> None:
        """Start a kernel on arguments in its own order."""
        self.launcher.launch(name, grid, THREADS, shared_bytes, list(arguments))

    @property
    def pointer(self) -> tuple[Tensor, int]:
        """`table` and `row_stride` of the kernels."""
        return self.rows, self.rows.stride(0)

    @property
    def padded(self) -> int:
        """Dimensions of a row in the kernels: whole fragments."""
        return _padded(self.rows.shape[1])


def cuda_forward(h: Tensor, table: Tensor, gold: Tensor | None, options: Options) -> Found:
    """The same arguments and results as `tiled.tiled_forward`; h and table are fp16, d is at most 128."""
    searched = _table(table, options.first_row)
    mentions, k = h.shape[0], options.k
    found = Found(
        att=h.new_empty(h.shape),
        lse=_floats(h, mentions),
        gold_logit=_floats(h, mentions).zero_(),
        topk_val=_floats(h, mentions, k),
        topk_idx=torch.empty(mentions, k, dtype=torch.int64, device=h.device),
        mean=_floats(h, *h.shape) if options.want_mean else _floats(h, 0),
    )
    gold = _from_first_row(gold, searched)
    for group in _groups(mentions):
        part = Found(*(tensor[group] for tensor in found))
        rows = _pad(h[group], searched)
        maxima = _search(searched, rows, None if gold is None else gold[group], part, k)
        _find_neighbours(searched, rows, maxima, part, options)
    return found


def _search(searched: _Table, h: Tensor, gold: Tensor | None, to: Found, k: int) -> Tensor | None:
    """Write lse, gold_logit and, where it has room, mean; return the largest score of each block if they matter."""
    entities, tile = searched.rows.shape[0], searched.launcher.tile
    mentions, blocks = to.lse.shape[0], _ceil(entities, BLOCK)
    tiles = _ceil(entities, tile)
    tiles_of_split = _ceil(tiles, min(tiles, searched.launcher.multiprocessors))
    splits = _ceil(tiles, tiles_of_split)
    with_mean = to.mean.numel() > 0
    maxima = _floats(h, mentions, blocks) if k < blocks else None
    largest, sums = _floats(h, splits, mentions), _floats(h, splits, mentions)
    means = _floats(h, splits, *h.shape) if with_mean else None
    searched.launch(
        "search_with_mean" if with_mean else "search",
        (h.shape[0] // ROWS, splits),
        search_bytes(searched.rows.shape[1], tile),
        h, *searched.pointer, entities, mentions, gold, tiles_of_split, maxima, blocks, largest, sums, to.gold_logit,
        means,
    )  # fmt: skip
    searched.launch(
        "merge_splits", (_ceil(mentions, WARPS), 1), 0,
        *searched.pointer, mentions, gold, splits, largest, sums, to.gold_logit, means, to.lse,
        to.mean if with_mean else None,
    )  # fmt: skip
    return maxima


def _find_neighbours(searched: _Table, h: Tensor, maxima: Tensor | None, to: Found, options: Options) -> None:
    """Write topk_val, topk_idx and att.

    The k blocks with the largest maxima hold the k largest scores: each has an element that precedes everything in
    the other blocks. With no more than k blocks, all are chosen.
    """
    (mentions, k), entities = to.topk_val.shape, searched.rows.shape[0]
    if maxima is None:
        chosen = torch.arange(_ceil(entities, BLOCK), dtype=torch.int32, device=h.device).repeat(mentions, 1)
    else:
        chosen = _places_of_largest(searched, maxima, k)
    candidates = _floats(h, mentions, chosen.shape[1] * BLOCK)
    searched.launch(
        "score_blocks", (mentions, _ceil(chosen.shape[1], WARPS)), 0,
        h, *searched.pointer, entities, chosen, chosen.shape[1], candidates,
    )  # fmt: skip
    places = _places_of_largest(searched, candidates, k).long()
    # So far in the order of rows; a stable sort keeps it among equal scores.
    topk_val, order = candidates.gather(1, places).sort(dim=1, descending=True, stable=True)
    places = places.gather(1, order)
    nearest = chosen.gather(1, places // BLOCK).long() * BLOCK + places % BLOCK
    weights = topk_val.softmax(dim=1)
    searched.launch(
        "weighted_rows", (_ceil(mentions, WARPS), 1), 0, *searched.pointer, mentions, nearest, weights, k, to.att
    )
    to.topk_val.copy_(topk_val)
    torch.add(nearest, options.first_row, out=to.topk_idx)


def _places_of_largest(searched: _Table, values: Tensor, k: int) -> Tensor:
    """Where the k largest of each row are, int32, ascending; of equal values the first ones are taken."""
    # topk takes any of equal values, but its values are right.
    largest = values.topk(k, dim=1).values.contiguous()
    places = torch.empty(values.shape[0], k, dtype=torch.int32, device=values.device)
    searched.launch("select_largest", (values.shape[0], 1), 4 * WARPS * 4, values, values.shape[1], largest, k, places)
    return places


def cuda_backward(saved: Saved, grads: Gradients, *, need_h: bool, need_table: bool) -> tuple[Tensor, Tensor]:
    """The same arguments and results as `tiled.tiled_backward`."""
    searched = _table(saved.table, saved.options.first_row)
    mentions, k = saved.topk_val.shape
    grad_h = saved.h.new_empty(saved.h.shape if need_h else 0)
    grad_table = saved.table.new_empty(saved.table.shape if need_table else 0)
    if mentions == 0:
        return grad_h, grad_table.zero_()
    gold = _from_first_row(saved.gold, searched)
    through_scores = grads.att is not None or grads.topk_val is not None
    nearest = (saved.topk_idx - searched.first_row).contiguous() if through_scores else None
    weights = saved.topk_val.softmax(dim=1) if through_scores else None
    grad_scores = _floats(saved.h, mentions, k) if through_scores else None
    grad_att = None if grads.att is None else _pad(grads.att, searched)
    of_topk, of_lse, of_gold = (
        None if grad is None else grad.float().contiguous() for grad in (grads.topk_val, grads.lse, grads.gold_logit)
    )
    of_gold = None if gold is None else of_gold
    if need_h or through_scores:
        mean = _mean(saved, searched, gold) if need_h and of_lse is not None else None
        searched.launch(
            "mention_gradient", (_ceil(mentions, WARPS), 1), 0,
            *searched.pointer, mentions, gold, nearest, weights, k, grad_att, of_topk, of_lse, of_gold, mean,
            grad_scores, grad_h if need_h else None,
        )  # fmt: skip
    if need_table:
        grad_table[: searched.first_row] = 0
        pairs, starts = _by_entity(nearest, searched) if through_scores else (None, None)
        dense = _Dense.of(saved, of_lse, of_gold)
        searched.launch(
            "table_gradient",
            (_ceil(searched.rows.shape[0], ROWS), 1),
            table_gradient_bytes(searched.rows.shape[1], searched.launcher.tile),
            _pad(saved.h, searched), *searched.pointer, searched.rows.shape[0], mentions,
            int(of_lse is not None or of_gold is not None), gold, saved.lse.contiguous(), *dense,
            float(saved.options.filter_eps), starts, pairs, k, weights, grad_scores, grad_att,
            grad_table[searched.first_row :],
        )  # fmt: skip
    return grad_h, grad_table


class _Dense(NamedTuple):
    """Gradients of lse and gold_logit [M], divided by a power of two so that both together are at most 1: the products
    with probabilities are fp16, and a loss scale must not push them out of its range."""

    grad_lse: Tensor
    grad_gold: Tensor
    normaliser: Tensor

    @classmethod
    def of(cls, saved: Saved, grad_lse: Tensor | None, grad_gold: Tensor | None) -> _Dense:
        none = torch.zeros_like(saved.lse)
        grad_lse = none if grad_lse is None else grad_lse
        grad_gold = none if grad_gold is None else grad_gold.where(saved.gold >= 0, 0)
        largest = (grad_lse.abs() + grad_gold.abs()).amax()
        largest = largest.where(largest.isfinite(), 1).clamp(2.0**-100, 2.0**100)
        normaliser = largest / torch.frexp(largest).mantissa
        return cls(grad_lse / normaliser, grad_gold / normaliser, normaliser)


def _mean(saved: Saved, searched: _Table, gold: Tensor | None) -> Tensor:
    """Searched rows averaged, each with exp(score - saved.lse), which are shares of 1 or, in a shard, of less.

    Computed here if the forward pass did not know it would be needed.
    """
    if saved.mean.numel():
        return saved.mean.contiguous()
    mean = _floats(saved.h, *saved.h.shape)
    gold_logit, lse = torch.zeros_like(saved.lse), torch.empty_like(saved.lse)
    for group in _groups(len(lse)):
        to = Found(saved.att, lse[group], gold_logit[group], saved.topk_val, saved.topk_idx, mean[group])
        _search(searched, _pad(saved.h[group], searched), None if gold is None else gold[group], to, len(lse))
    # `saved.lse` may be that over all shards, while the search knows the rows here.
    return mean * (lse - saved.lse).exp().unsqueeze(1)


def _by_entity(nearest: Tensor, searched: _Table) -> tuple[Tensor, Tensor]:
    """Places in `nearest` (flat) sorted by the entity there, and where in them each entity begins."""
    # A stable sort: what adds to an entity comes in the order of mentions, each time.
    entities, pairs = nearest.flatten().sort(stable=True)
    every = torch.arange(searched.rows.shape[0] + 1, device=nearest.device)
    return pairs, torch.searchsorted(entities, every, out_int32=True)


def _table(table: Tensor, first_row: int) -> _Table:
    rows = with_dense_rows(table)[first_row:]
    size, width = rows.shape[1], _width(rows)
    try:
        return _Table(rows, first_row, launcher_for(rows.device, size, width))
    except BuildError as error:
        # The backend was chosen because the kernels of another size can be had: too late for another choice.
        kernels = f"the GPU kernels for {size} dimensions, {width} at a time, cannot be had"
        raise RuntimeError(f"{kernels} ({error}); set KEBIOLM_KNN_BACKEND=tiled to do without them") from error


def _width(rows: Tensor) -> int:
    """Halves that the kernels may load at a time: the largest that fits the rows' addresses, within their storage."""
    (count, size), stride = rows.shape, rows.stride(0)
    whole = _ceil(size, 8) * 8
    end = rows.storage_offset() + (count - 1) * stride + whole
    if stride % 8 == 0 and stride >= whole and rows.data_ptr() % 16 == 0 and end * 2 <= rows.untyped_storage().nbytes():
        return 8
    return 4 if stride % 4 == 0 and size % 4 == 0 and rows.data_ptr() % 8 == 0 else 1


def _from_first_row(gold: Tensor | None, searched: _Table) -> Tensor | None:
    return None if gold is None else (gold - searched.first_row).int().contiguous()


def _pad(rows: Tensor, searched: _Table) -> Tensor:
    """Zeros around rows [M, d], for kernels that read whole fragments and ROWS mentions at a time."""
    right, below = searched.padded - rows.shape[1], -rows.shape[0] % ROWS
    return torch.nn.functional.pad(rows, (0, right, 0, below)).contiguous()


def _padded(size: int) -> int:
    return _ceil(size, 16) * 16


def _floats(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def _groups(mentions: int) -> Iterator[slice]:
    return (slice(start, min(start + MENTIONS_AT_ONCE, mentions)) for start in range(0, mentions, MENTIONS_AT_ONCE))


def _ceil(number: int, of: int) -> int:
    return -(-number // of)
