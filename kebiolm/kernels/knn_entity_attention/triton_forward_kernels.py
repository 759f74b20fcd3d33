"""Triton kernels of the forward pass; `triton_forward` says in which order they run.

Shape letters: M mentions, E rows of the table, d entity size, k neighbours, N blocks of B entities, S splits of the
table. Blocks are counted from `first_row`. All whole numbers that change from call to call are exempt from Triton's
specialisation, so that a kernel is compiled once and not again for an M that happens to be a multiple of 16.
"""

from __future__ import annotations

import triton
import triton.language as tl

SEARCH_NUMBERS = "mentions entities first_row blocks first_tile last_tile split_tiles first_split"


@triton.jit(do_not_specialize=SEARCH_NUMBERS.split())
def search_kernel(
    h,
    table,
    gold,
    maxima,
    split_max,
    split_sum,
    split_mean,
    mentions,
    entities,
    first_row,
    blocks,
    first_tile,
    last_tile,
    split_tiles,
    first_split,
    H_STRIDE: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    B: tl.constexpr,
    HAS_GOLD: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    SHORT: tl.constexpr,
    BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    D_CHUNK: tl.constexpr,
):
    """One pass of BM mentions over `split_tiles` tiles of BN entities; grid: mention tiles times splits.

    Writes block maxima [M, N], and of the split the largest score, the sum of exp(score - largest) and that sum times
    the entities, all without the gold entity, whose share `merge_kernel` adds in fp32: close to loss 0 it is almost
    all of the sum, and rounding it to half precision would leave nothing of the gradient.

    The gold entity is taken out of a tile only where one of the mentions has it there (`flags`, one bit for one tile
    or a few): comparing in every tile would cost a third of the arithmetic.

    SHORT: tiles that can reach past the end of the table. BIAS: exponent that keeps small probabilities within
    the range of fp16. D_CHUNK < BLOCK_D: dot products in pieces, without which fp32 needs too many registers.
    """
    mention_tiles = tl.cdiv(mentions, BM)
    # Programs that run at the same time share a split, so that the table comes from memory once.
    split = tl.program_id(0) // mention_tiles
    at = (tl.program_id(0) % mention_tiles) * BM + tl.arange(0, BM)
    real = at < mentions
    columns = tl.arange(0, BLOCK_D)
    h_rows = h + at.to(tl.int64)[:, None] * H_STRIDE
    if D_CHUNK == BLOCK_D:
        queries = tl.load(h_rows + columns[None, :], mask=real[:, None] & (columns < D)[None, :], other=0.0).to(DTYPE)

    begin = first_tile + split * split_tiles
    end = tl.minimum(begin + split_tiles, last_tile)
    if HAS_GOLD:
        own = tl.load(gold + at, mask=real, other=-1)
        own = tl.where((own >= first_row) & (own < entities), own, -1).to(tl.int32)
        tiles_of_flag = tl.cdiv(split_tiles, 64)
        place = own - (first_row + begin * BN)
        flag_of_own = tl.where(place >= 0, place // (tiles_of_flag * BN), -1)
        bits = tl.arange(0, 64)
        is_set = tl.max((flag_of_own[:, None] == bits[None, :]).to(tl.int32), 0)
        flags = tl.sum(is_set.to(tl.int64) << bits.to(tl.int64), 0)

    in_tile = tl.arange(0, BN)
    offsets = in_tile[:, None] * TABLE_STRIDE + columns[None, :]
    block_in_tile = tl.arange(0, BN // B)
    maxima_rows = maxima + at.to(tl.int64)[:, None] * blocks + block_in_tile[None, :]
    largest = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    MEAN_D: tl.constexpr = BLOCK_D if HAS_MEAN else 1
    mean = tl.zeros([BM, MEAN_D], tl.float32)

    for tile in range(begin, end):
        row = first_row + tile * BN
        rows = row + in_tile
        tile_start = table + row.to(tl.int64) * TABLE_STRIDE
        mask = (columns < D)[None, :]
        if SHORT:
            mask = mask & (rows < entities)[:, None]
        if D_CHUNK == BLOCK_D:
            tile_entities = tl.load(tile_start + offsets, mask=mask, other=0.0).to(DTYPE)
            scores = tl.dot(queries, tl.trans(tile_entities), input_precision=PRECISION)
        else:
            scores = tl.zeros([BM, BN], tl.float32)
            for chunk in range(0, D, D_CHUNK):
                some = chunk + tl.arange(0, D_CHUNK)
                some_h = tl.load(h_rows + some[None, :], mask=real[:, None] & (some < D)[None, :], other=0.0)
                some_mask = (some < D)[None, :]
                if SHORT:
                    some_mask = some_mask & (rows < entities)[:, None]
                some_offsets = in_tile[:, None] * TABLE_STRIDE + some[None, :]
                some_entities = tl.load(tile_start + some_offsets, mask=some_mask, other=0.0)
                scores = tl.dot(some_h.to(DTYPE), tl.trans(some_entities.to(DTYPE)), scores, input_precision=PRECISION)
        if SHORT:
            scores = tl.where(rows[None, :] < entities, scores, float("-inf"))

        block_max = tl.max(tl.reshape(scores, [BM, BN // B, B]), 2)
        new_largest = tl.maximum(largest, tl.max(block_max, 1))
        reference = tl.where(tl.abs(new_largest) == float("inf"), 0.0, new_largest)
        # First the difference, then its scale: the scores themselves may be large.
        shares = tl.exp2((scores - reference[:, None]) * 1.4426950408889634 + BIAS)
        if HAS_GOLD:
            if (flags >> ((tile - begin) // tiles_of_flag).to(tl.int64)) & 1:
                shares = tl.where(rows[None, :] == own[:, None], 0.0, shares)
        # Block by block, then all: smaller rounding errors, and it shows which blocks have a NaN, which max() hides.
        block_sum = tl.sum(tl.reshape(shares, [BM, BN // B, B]), 2)
        shrink = tl.exp2((largest - reference) * 1.4426950408889634)
        total = total * shrink + tl.sum(block_sum, 1)
        largest = new_largest
        block_mask = real[:, None]
        if SHORT:
            block_mask = block_mask & (tile * (BN // B) + block_in_tile < blocks)[None, :]
        block_max = tl.where(block_sum != block_sum, float("nan"), block_max)
        tl.store(maxima_rows + tile * (BN // B), block_max, mask=block_mask)
        if HAS_MEAN:
            if D_CHUNK != BLOCK_D:
                tile_entities = tl.load(tile_start + offsets, mask=mask, other=0.0).to(DTYPE)
            mean = tl.dot(shares.to(DTYPE), tile_entities, mean * shrink[:, None], input_precision=PRECISION)

    out = (first_split + split).to(tl.int64) * mentions + at
    tl.store(split_max + out, largest, mask=real)
    tl.store(split_sum + out, total, mask=real)
    if HAS_MEAN:
        tl.store(split_mean + out[:, None] * D + columns[None, :], mean, mask=real[:, None] & (columns < D)[None, :])


@triton.jit
def gold_score(h, table, mention, gold, H_STRIDE: tl.constexpr, TABLE_STRIDE: tl.constexpr, columns, D: tl.constexpr):
    """The dot product of a mention and its gold entity, -inf for gold -1, and that entity [BLOCK_D], in fp32.

    Forward and backward pass both call this, with the same number of warps, and so have the same bits.
    """
    there = columns < D
    query = tl.load(h + mention.to(tl.int64) * H_STRIDE + columns, mask=there, other=0.0).to(tl.float32)
    entity_start = table + gold.to(tl.int64) * TABLE_STRIDE
    entity = tl.load(entity_start + columns, mask=columns < tl.where(gold >= 0, D, 0), other=0.0).to(tl.float32)
    return tl.where(gold >= 0, tl.sum(query * entity, 0), float("-inf")), entity


@triton.jit(do_not_specialize=["mentions", "entities", "first_row", "splits"])
def merge_kernel(
    h,
    table,
    gold,
    split_max,
    split_sum,
    split_mean,
    lse,
    gold_logit,
    mean,
    mentions,
    entities,
    first_row,
    splits,
    H_STRIDE: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_GOLD: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    BIAS: tl.constexpr,
    SPLITS_AT_ONCE: tl.constexpr,
):
    """Join the splits of one mention in their order and add its gold entity; grid: mentions."""
    mention = tl.program_id(0)
    columns = tl.arange(0, BLOCK_D)
    some = tl.arange(0, SPLITS_AT_ONCE)
    largest = tl.full([SPLITS_AT_ONCE], float("-inf"), tl.float32)
    for start in range(0, splits, SPLITS_AT_ONCE):
        at = (start + some).to(tl.int64) * mentions + mention
        largest = tl.maximum(largest, tl.load(split_max + at, mask=start + some < splits, other=float("-inf")))
    top = tl.max(largest, 0)
    score = float("-inf")
    if HAS_GOLD:
        own = tl.load(gold + mention)
        own = tl.where((own >= first_row) & (own < entities), own, -1)
        score, gold_entity = gold_score(h, table, mention, own, H_STRIDE, TABLE_STRIDE, columns, D)
        top = tl.maximum(top, score)
        tl.store(gold_logit + mention, tl.where(own >= 0, score, 0.0))
    reference = tl.where(tl.abs(top) == float("inf"), 0.0, top)

    totals = tl.zeros([SPLITS_AT_ONCE], tl.float32)
    sums = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, splits, SPLITS_AT_ONCE):
        there = start + some < splits
        at = (start + some).to(tl.int64) * mentions + mention
        split_top = tl.load(split_max + at, mask=there, other=float("-inf"))
        split_reference = tl.where(tl.abs(split_top) == float("inf"), 0.0, split_top)
        weight = tl.exp2((split_reference - reference) * 1.4426950408889634 - BIAS)
        # A split of nothing but -inf has sum 0, and its reference says nothing.
        weight = tl.where(split_top == float("-inf"), 0.0, weight)
        # NaN scores do not show in the maximum, and may be all there is.
        split_total = tl.load(split_sum + at, mask=there, other=0.0)
        totals += tl.where(split_total != split_total, split_total, split_total * weight)
        if HAS_MEAN:
            inside = there[:, None] & (columns < D)[None, :]
            split_part = tl.load(split_mean + at[:, None] * D + columns[None, :], mask=inside, other=0.0)
            sums += tl.sum(split_part * weight[:, None], 0)
    total = tl.sum(totals, 0)
    if HAS_GOLD:
        gold_share = tl.exp2((score - reference) * 1.4426950408889634)
        total += gold_share
        sums += gold_share * gold_entity
    tl.store(lse + mention, reference + tl.log(total))
    if HAS_MEAN:
        tl.store(mean + mention.to(tl.int64) * D + columns, sums / total, mask=columns < D)


@triton.jit
def _load_sortable(pointers, mask):
    """Values with one kind of 0 and of NaN, and whole numbers in their order, NaN the largest."""
    value = tl.load(pointers, mask=mask, other=0.0)
    value = tl.where(value == 0.0, 0.0, value)
    value = tl.where(value != value, float("nan"), value)
    bits = value.to(tl.int32, bitcast=True)
    return value, bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit(do_not_specialize=["rows", "size", "count", "first_row"])
def select_kernel(
    values,
    block_ids,
    chosen,
    chosen_values,
    rows,
    size,
    count,
    first_row,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    B: tl.constexpr,
):
    """Find the `count` largest of each row of `values` [rows, size]; of equal ones the first; NaN is the largest.

    Grid: groups of ROWS rows. Writes places in ascending order: as they are to `chosen` [rows, count] int32 where
    B is 0; otherwise `values` are scores of blocks of B entities, `block_ids` [rows, size / B] says which, and rows
    of the table go to `chosen` (int64) and the scores to `chosen_values`.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start = row.to(tl.int64)[:, None]
    all_places = tl.arange(0, SIZE)[None, :]
    all_there = (row < rows)[:, None] & (all_places < size)
    _, all_keys = _load_sortable(values + start * size + all_places, all_there)
    # What is not there is below -inf.
    all_keys = tl.where(all_there, all_keys, -0x7FFFFFFF - 1)
    # The smallest key that is taken, bit by bit from the top: how many are at least as large as this?
    limit = tl.full([ROWS], -0x7FFFFFFF - 1, tl.int32)
    for step in range(32):
        larger = limit ^ (tl.full([ROWS], 1, tl.int32) << (31 - step))
        enough = tl.sum((all_keys >= larger[:, None]).to(tl.int32), 1) >= count
        limit = tl.where(enough, larger, limit)
    wanted = count - tl.sum((all_keys > limit[:, None]).to(tl.int32), 1)

    # Once more from memory, in pieces: places need more registers than keys.
    above_before = tl.zeros([ROWS], tl.int32)
    equal_before = tl.zeros([ROWS], tl.int32)
    for begin in range(0, size, STEP):
        place = begin + tl.arange(0, STEP)[None, :]
        there = (row < rows)[:, None] & (place < size)
        value, key = _load_sortable(values + start * size + place, there)
        above = ((key > limit[:, None]) & there).to(tl.int32)
        equal = ((key == limit[:, None]) & there).to(tl.int32)
        # Both counts in one scan.
        so_far = tl.cumsum(above + (equal << 16), 1)
        equal_so_far = equal_before[:, None] + (so_far >> 16)
        take = (above > 0) | ((equal > 0) & (equal_so_far <= wanted[:, None]))
        out = above_before[:, None] + (so_far & 0xFFFF) + tl.minimum(equal_so_far, wanted[:, None]) - 1
        out = start * count + out
        if B == 0:
            tl.store(chosen + out, tl.broadcast_to(place, [ROWS, STEP]), mask=take)
        else:
            block = tl.load(block_ids + start * (size // B) + place // B, mask=take, other=0)
            tl.store(chosen + out, first_row + block.to(tl.int64) * B + place % B, mask=take)
            tl.store(chosen_values + out, value, mask=take)
        above_before += tl.sum(above, 1)
        equal_before += tl.sum(equal, 1)


@triton.jit(do_not_specialize=["entities", "first_row", "count"])
def candidates_kernel(
    h,
    table,
    block_ids,
    candidates,
    entities,
    first_row,
    count,
    H_STRIDE: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BN: tl.constexpr,
    SPAN: tl.constexpr,
    B: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    D_CHUNK: tl.constexpr,
):
    """Scores of all entities of the chosen blocks; grid: mentions, parts of SPAN entities.

    block_ids [M, count] int32 to candidates [M, count * B], -inf after the end of the table. By the same kind of
    matrix product as the block maxima, with sixteen times the same mention, for the same rounding.
    """
    mention = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    copies = tl.zeros([16], tl.int32)
    h_rows = h + mention * H_STRIDE + copies[:, None]
    if D_CHUNK == BLOCK_D:
        query = tl.load(h_rows + columns[None, :], mask=(columns < D)[None, :], other=0.0).to(DTYPE)
    size = count * B
    begin = tl.program_id(1) * SPAN
    for start in range(begin, tl.minimum(begin + SPAN, size), BN):
        place = start + tl.arange(0, BN)
        block = tl.load(block_ids + mention * count + place // B, mask=place < size, other=0)
        rows = first_row + block * B + place % B
        there = (place < size) & (rows < entities)
        starts = table + rows.to(tl.int64)[:, None] * TABLE_STRIDE
        if D_CHUNK == BLOCK_D:
            mask = there[:, None] & (columns < D)[None, :]
            entity = tl.load(starts + columns[None, :], mask=mask, other=0.0).to(DTYPE)
            scores = tl.dot(query, tl.trans(entity), input_precision=PRECISION)
        else:
            scores = tl.zeros([16, BN], tl.float32)
            for chunk in range(0, D, D_CHUNK):
                some = chunk + tl.arange(0, D_CHUNK)
                query = tl.load(h_rows + some[None, :], mask=(some < D)[None, :], other=0.0).to(DTYPE)
                mask = there[:, None] & (some < D)[None, :]
                entity = tl.load(starts + some[None, :], mask=mask, other=0.0).to(DTYPE)
                scores = tl.dot(query, tl.trans(entity), scores, input_precision=PRECISION)
        score = tl.where(there, tl.max(scores, 0), float("-inf"))
        tl.store(candidates + mention * size + place, score, mask=place < size)


@triton.jit(do_not_specialize=["count"])
def attention_kernel(
    table,
    topk_val,
    topk_idx,
    att,
    count,
    TABLE_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEP: tl.constexpr,
):
    """Average the neighbours of a mention under the softmax of their scores (Eq. 3); grid: mentions."""
    mention = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    top = tl.load(topk_val + mention * count)
    totals = tl.zeros([STEP], tl.float32)
    sums = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, count, STEP):
        place = start + tl.arange(0, STEP)
        there = place < count
        score = tl.load(topk_val + mention * count + place, mask=there, other=0.0)
        row = tl.load(topk_idx + mention * count + place, mask=there, other=0)
        mask = there[:, None] & (columns < D)[None, :]
        entity = tl.load(table + row[:, None] * TABLE_STRIDE + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        weight = tl.where(there, tl.exp2((score - top) * 1.4426950408889634), 0.0)
        totals += weight
        sums += tl.sum(weight[:, None] * entity, 0)
    result = sums / tl.sum(totals, 0)
    tl.store(att + mention * D + columns, result.to(att.dtype.element_ty), mask=columns < D)
