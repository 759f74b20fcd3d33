"""Triton kernels of the backward pass; `triton_backward` says in which order they run.

Shape letters: M mentions, E rows of the table, d entity size, k neighbours. A row of the gradient of the table is a
dense sum over all mentions (through lse) plus a sum of few: of a mention for each of its neighbours, and one for its
gold entity. An item is one term of the second sum; a mention has up to k + 1. No kernel adds to memory, and every sum
has one order: the same inputs give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kebiolm.kernels.knn_entity_attention.triton_forward_kernels import gold_score


@triton.jit
def _expm1(x):
    """exp(x) - 1 for -0.7 < x, without cancellation close to 0."""
    tail = 1.0 + x / 12.0
    for i in tl.static_range(10):
        tail = 1.0 + x / (11.0 - i) * tail
    return x * tail


@triton.jit(do_not_specialize=["entities", "first_row", "count", "items"])
def mention_kernel(
    h,
    table,
    gold,
    lse,
    mean,
    topk_val,
    topk_idx,
    grad_att,
    grad_lse,
    grad_gold,
    grad_topk,
    grad_h,
    item_row,
    item_att,
    item_h,
    entities,
    first_row,
    count,
    items,
    H_STRIDE: tl.constexpr,
    TABLE_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEP: tl.constexpr,
    HAS_GOLD: tl.constexpr,
    HAS_ATT: tl.constexpr,
    HAS_LSE: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    HAS_GRAD_GOLD: tl.constexpr,
    HAS_GRAD_TOPK: tl.constexpr,
    NEED_H: tl.constexpr,
    NEED_ITEMS: tl.constexpr,
):
    """The gradient of h [M, d] fp32 and the items [M, items] of one mention; grid: mentions.

    An item adds item_att * grad_att + item_h * h to the gradient of row item_row of the table; items without an entity
    have the row `entities`.
    """
    mention = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    gradient = tl.zeros([BLOCK_D], tl.float32)

    if HAS_ATT or HAS_GRAD_TOPK:
        top = tl.load(topk_val + mention * count)
        towards_att = tl.zeros([BLOCK_D], tl.float32)
        if HAS_ATT:
            towards_att = tl.load(grad_att + mention * D + columns, mask=inside, other=0.0).to(tl.float32)
        totals = tl.zeros([STEP], tl.float32)
        towards_totals = tl.zeros([STEP], tl.float32)
        for start in range(0, count, STEP):
            place = start + tl.arange(0, STEP)
            there = place < count
            score = tl.load(topk_val + mention * count + place, mask=there, other=0.0)
            weight = tl.where(there, tl.exp2((score - top) * 1.4426950408889634), 0.0)
            totals += weight
            if HAS_ATT:
                row = tl.load(topk_idx + mention * count + place, mask=there, other=0)
                mask = there[:, None] & inside[None, :]
                starts = table + row[:, None] * TABLE_STRIDE
                entity = tl.load(starts + columns[None, :], mask=mask, other=0.0).to(tl.float32)
                towards_totals += weight * tl.sum(entity * towards_att[None, :], 1)
        total = tl.sum(totals, 0)
        # grad_att . att, from numbers that have not been rounded to the dtype of att.
        towards_mean = tl.sum(towards_totals, 0) / total
        for start in range(0, count, STEP):
            place = start + tl.arange(0, STEP)
            there = place < count
            score = tl.load(topk_val + mention * count + place, mask=there, other=0.0)
            row = tl.load(topk_idx + mention * count + place, mask=there, other=0)
            mask = there[:, None] & inside[None, :]
            starts = table + row[:, None] * TABLE_STRIDE
            entity = tl.load(starts + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            weight = tl.where(there, tl.exp2((score - top) * 1.4426950408889634) / total, 0.0)
            grad_score = tl.zeros([STEP], tl.float32)
            if HAS_ATT:
                towards = tl.sum(entity * towards_att[None, :], 1)
                grad_score = tl.where(there, weight * (towards - towards_mean), 0.0)
            if HAS_GRAD_TOPK:
                grad_score += tl.load(grad_topk + mention * count + place, mask=there, other=0.0)
            gradient += tl.sum(grad_score[:, None] * entity, 0)
            if NEED_ITEMS:
                item = mention * items + place
                tl.store(item_row + item, row.to(tl.int32), mask=there)
                tl.store(item_att + item, weight, mask=there)
                tl.store(item_h + item, grad_score, mask=there)

    if HAS_LSE:
        weight_lse = tl.load(grad_lse + mention)
        if HAS_MEAN:
            average = tl.load(mean + mention * D + columns, mask=inside, other=0.0)
            gradient += tl.where(weight_lse == 0.0, 0.0, weight_lse * average)
    if HAS_GOLD:
        own = tl.load(gold + mention)
        own = tl.where((own >= first_row) & (own < entities), own, -1)
        score, entity = gold_score(h, table, mention, own, H_STRIDE, TABLE_STRIDE, columns, D)
        weight_gold = 0.0
        if HAS_GRAD_GOLD:
            weight_gold = tl.where(own >= 0, tl.load(grad_gold + mention), 0.0)
            gradient += tl.where(own >= 0, weight_gold * entity, 0.0)
        if NEED_ITEMS:
            at_gold = weight_gold
            if HAS_LSE:
                log_share = score - tl.load(lse + mention)
                # Close to loss 0 the gradients of lse and gold_logit cancel: there P - 1 is computed as one number.
                near = _expm1(log_share) * weight_lse + (weight_lse + weight_gold)
                far = tl.exp2(log_share * 1.4426950408889634) * weight_lse + weight_gold
                at_gold = tl.where(log_share > -0.6931472, near, far)
                at_gold = tl.where(weight_lse == 0.0, weight_gold, at_gold)
            item = mention * items + items - 1
            tl.store(item_row + item, tl.where(own >= 0, own, entities).to(tl.int32))
            tl.store(item_att + item, 0.0)
            tl.store(item_h + item, at_gold)
    if NEED_H:
        tl.store(grad_h + mention * D + columns, gradient, mask=inside)


@triton.jit
def pack_kernel(
    h,
    lse,
    weight,
    order,
    active,
    packed_h,
    packed_lse,
    packed_weight,
    H_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BM: tl.constexpr,
):
    """Bring the mentions that add to the dense sum into the order of `order`, in rows that need no mask.

    packed_h [M rounded up to BM, BLOCK_D] is 0 after the last such mention and after column d; grid: tiles of BM
    mentions.
    """
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    there = place < tl.load(active)
    mention = tl.load(order + place, mask=there, other=0)
    columns = tl.arange(0, BLOCK_D)
    mask = there[:, None] & (columns < D)[None, :]
    values = tl.load(h + mention[:, None] * H_STRIDE + columns[None, :], mask=mask, other=0.0)
    tl.store(packed_h + place.to(tl.int64)[:, None] * BLOCK_D + columns[None, :], values)
    # exp(0 - inf) = 0: what fills the last tile adds nothing.
    tl.store(packed_lse + place, tl.load(lse + mention, mask=there, other=float("inf")))
    tl.store(packed_weight + place, tl.load(weight + mention, mask=there, other=0.0))


@triton.jit(do_not_specialize=["size", "entities", "items"])
def item_sums_kernel(
    rows,
    order,
    item_att,
    item_h,
    h,
    grad_att,
    sums,
    carries,
    slots,
    size,
    entities,
    items,
    H_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
    WINDOWS: tl.constexpr,
    HAS_ATT: tl.constexpr,
    BY_ENTITY: tl.constexpr,
):
    """Sum the items of the same entity within windows of WINDOW sorted items; grid: groups of WINDOWS windows.

    rows [size] int32 are sorted, and `order` says which item each is. The sum goes to `sums` at the slot of the
    entity: its row where BY_ENTITY, otherwise the place of its first item; `slots` [E] says so. Where a window begins
    in the middle of an entity, that first sum goes to `carries` [windows, d], and `carry_kernel` adds it.
    """
    window = tl.program_id(0) * WINDOWS + tl.arange(0, WINDOWS)
    begin = window * WINDOW
    columns = tl.arange(0, BLOCK_D)
    inside = (columns < D)[None, :]
    before = tl.load(rows + begin - 1, mask=(begin > 0) & (begin <= size), other=-1)
    previous = before
    total = tl.zeros([WINDOWS, BLOCK_D], tl.float32)
    slot = begin
    row = tl.load(rows + begin, mask=begin < size, other=entities)
    for i in tl.static_range(WINDOW):
        place = begin + i
        real = row < entities
        following = tl.load(rows + place + 1, mask=place + 1 < size, other=entities)
        item = tl.load(order + place, mask=real, other=0)
        mention = (item // items)[:, None]
        mask = inside & real[:, None]
        values = tl.load(h + mention * H_STRIDE + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        part = tl.load(item_h + item, mask=real, other=0.0)[:, None] * values
        if HAS_ATT:
            values = tl.load(grad_att + mention * D + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            part += tl.load(item_att + item, mask=real, other=0.0)[:, None] * values
        is_first = row != previous
        if BY_ENTITY:
            slot = tl.where(is_first, row, slot)
        else:
            slot = tl.where(is_first, place, slot)
        tl.store(slots + row, slot, mask=is_first & real)
        total = tl.where(is_first[:, None], part, total + part)
        ends = real & ((following != row) | (i == WINDOW - 1))
        out = tl.where(row == before, window, slot).to(tl.int64)[:, None] * D + columns[None, :]
        tl.store(sums + out, total, mask=inside & (ends & (row != before))[:, None])
        tl.store(carries + out, total, mask=inside & (ends & (row == before))[:, None])
        previous = row
        row = following


@triton.jit(do_not_specialize=["size", "entities"])
def carry_kernel(
    rows,
    sums,
    carries,
    slots,
    size,
    entities,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
    STEP: tl.constexpr,
):
    """Add to an entity whose items go on after its first window what the next windows have; grid: windows."""
    begin = tl.program_id(0) * WINDOW
    end = begin + WINDOW
    row = tl.load(rows + end - 1, mask=end < size, other=entities)
    before = tl.load(rows + begin - 1, mask=begin > 0, other=-1)
    goes_on = (row < entities) & (tl.load(rows + end, mask=end < size, other=entities) == row)
    if goes_on & (before != row):
        columns = tl.arange(0, BLOCK_D)
        inside = columns < D
        out = sums + tl.load(slots + row).to(tl.int64) * D + columns
        total = tl.load(out, mask=inside, other=0.0)
        window = tl.program_id(0) + 1 + tl.arange(0, STEP)
        more = 1
        while more > 0:
            first = window * WINDOW
            belongs = tl.load(rows + first, mask=first < size, other=entities) == row
            mask = belongs[:, None] & inside[None, :]
            parts = tl.load(carries + window.to(tl.int64)[:, None] * D + columns[None, :], mask=mask, other=0.0)
            total += tl.sum(parts, 0)
            window += STEP
            more = tl.min(belongs.to(tl.int32), 0)
        tl.store(out, total, mask=inside)


@triton.jit(do_not_specialize=["entities", "first_row"])
def table_kernel(
    table,
    packed_h,
    packed_lse,
    packed_weight,
    packed_gold,
    active,
    gold_starts,
    largest_weight,
    sums,
    slots,
    grad_table,
    entities,
    first_row,
    filter_below,
    TABLE_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    HAS_DENSE: tl.constexpr,
    HAS_GOLD: tl.constexpr,
    HAS_ITEMS: tl.constexpr,
    FILTER: tl.constexpr,
    BIAS: tl.constexpr,
    UNBIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    D_CHUNK: tl.constexpr,
):
    """The gradient of BN rows of the table, written once: the dense sum over the mentions, and the summed items.

    Grid: tiles of entities from `first_row` on. The gold entities are no part of the dense sum: their share is an
    item. The mentions are sorted by them, so that those of a tile lie between gold_starts[tile] and gold_starts[tile
    + 1], and only there is it necessary to compare.

    packed_weight [M] is the gradient of lse divided by the largest absolute value of all: it is 1 in most uses, which
    costs no rounding, and the products stay within the range of fp16 whatever the scale of the loss.
    """
    tile = tl.program_id(0)
    rows = first_row + tile * BN + tl.arange(0, BN)
    real = rows < entities
    columns = tl.arange(0, BLOCK_D)
    gradient = tl.zeros([BN, BLOCK_D], tl.float32)
    if HAS_DENSE:
        starts = table + rows.to(tl.int64)[:, None] * TABLE_STRIDE
        mask = real[:, None] & (columns < D)[None, :]
        if D_CHUNK == BLOCK_D:
            keys = tl.load(starts + columns[None, :], mask=mask, other=0.0).to(DTYPE)
        if HAS_GOLD:
            gold_begin = tl.load(gold_starts + tile)
            gold_end = tl.load(gold_starts + tile + 1)
        in_tile = tl.arange(0, BM)
        offsets = in_tile[:, None] * BLOCK_D + columns[None, :]
        count = tl.load(active)
        for start in range(0, count, BM):
            base = start * BLOCK_D
            if D_CHUNK == BLOCK_D:
                queries = tl.load(packed_h + base + offsets).to(DTYPE)
                scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
            else:
                scores = tl.zeros([BN, BM], tl.float32)
                for chunk in range(0, BLOCK_D, D_CHUNK):
                    some = chunk + tl.arange(0, D_CHUNK)
                    some_mask = real[:, None] & (some < D)[None, :]
                    some_keys = tl.load(starts + some[None, :], mask=some_mask, other=0.0).to(DTYPE)
                    some_h = tl.load(packed_h + base + in_tile[:, None] * BLOCK_D + some[None, :]).to(DTYPE)
                    scores = tl.dot(some_keys, tl.trans(some_h), scores, input_precision=PRECISION)
            lse = tl.load(packed_lse + start + in_tile)
            shares = tl.exp2((scores - lse[None, :]) * 1.4426950408889634 + BIAS)
            keep = True
            if FILTER:
                # NaN is kept, like everything that is not below.
                keep = tl.max(tl.max((shares < filter_below).to(tl.int32) ^ 1, 1), 0) > 0
            if HAS_GOLD:
                if (start < gold_end) & (start + BM > gold_begin):
                    own = tl.load(packed_gold + start + in_tile, mask=start + in_tile < count, other=-1)
                    shares = tl.where(rows[:, None] == own[None, :], 0.0, shares)
            shares = (shares * tl.load(packed_weight + start + in_tile)[None, :]).to(DTYPE)
            if D_CHUNK != BLOCK_D:
                queries = tl.load(packed_h + base + offsets).to(DTYPE)
            if FILTER:
                if keep:
                    gradient = tl.dot(shares, queries, gradient, input_precision=PRECISION)
            else:
                gradient = tl.dot(shares, queries, gradient, input_precision=PRECISION)
        gradient = gradient * UNBIAS * tl.load(largest_weight)
    out_columns = columns[None, :]
    out_mask = real[:, None] & (out_columns < D)
    if HAS_ITEMS:
        slot = tl.load(slots + rows, mask=real, other=-1)
        item_mask = out_mask & (slot >= 0)[:, None]
        gradient += tl.load(sums + slot.to(tl.int64)[:, None] * D + out_columns, mask=item_mask, other=0.0)
    out = grad_table + rows.to(tl.int64)[:, None] * D + out_columns
    tl.store(out, gradient.to(grad_table.dtype.element_ty), mask=out_mask)
