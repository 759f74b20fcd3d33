// The kNN entity-attention operator in fp16 on tensor cores, for compute capability 7.0 and later.
//
// The M x E scores are never stored. A thread block keeps 128 rows of one operand in registers and goes through tiles
// of the other in shared memory: mentions against the table in the search, entities against the mentions in the
// gradient of the table. Either way the tile that gave the scores is at once the second operand of the next product.
// No two thread blocks add to one number: the same inputs give the same bits.
//
// Compiled by NVRTC without any header, for one SIZE (dimensions of a row, at most 128), WIDTH (halves that a load of
// the table may take: 8, 4 or 1) and TILE (rows of a tile: 64 or 32). The tests compile it as C++ for the CPU; what
// differs is all in the first part. Which lane holds which element of a fragment is nowhere assumed.
//
// Letters: M mentions, E entities searched, k neighbours. Arguments are pointers, 64-bit integers and floats. `h` and
// `grad_att` are [M up to whole 128, PADDED] with zeros beyond the mentions and beyond SIZE; `table` is the first row
// searched, rows are `row_stride` elements apart; `gold` counts from that row, negative: none.

#ifdef KEBIOLM_EMULATE
#include "emulate_cuda.h"
#else

typedef unsigned short half_bits;
typedef long long int64_t;

#define KERNEL extern "C" __global__ void __launch_bounds__(256, 1)
#define DEVICE __device__ __forceinline__

extern __shared__ __align__(128) unsigned char shared_memory[];

DEVICE float infinity() { return __int_as_float(0x7f800000); }
DEVICE float not_a_number() { return __int_as_float(0x7fffffff); }

DEVICE float to_float(half_bits bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

DEVICE half_bits to_half(float value) {
    half_bits bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

DEVICE float exp2_fast(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE unsigned ballot(bool value) { return __ballot_sync(0xffffffffu, value); }

// Fragments: what one lane holds of a 16 x 16 matrix, which lies in memory by row or by column.
enum Layout { BY_ROW, BY_COLUMN };
template <Layout LAYOUT>
struct Left {
    unsigned words[8];
};
template <Layout LAYOUT>
struct Right {
    unsigned words[8];
};
struct Sums {
    float values[8];
};

#define EIGHT(how, x) how(x[0]), how(x[1]), how(x[2]), how(x[3]), how(x[4]), how(x[5]), how(x[6]), how(x[7])
#define LOAD(what, how, words, address, stride)                                                              \
    asm volatile("wmma.load." what " {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;"                            \
                 : EIGHT(how, words)                                                                         \
                 : "l"(address), "r"(stride)                                                                 \
                 : "memory")
#define STORE(what, values, address, stride)                                                                 \
    asm volatile("wmma.store.d.sync.aligned." what " [%8], {%0, %1, %2, %3, %4, %5, %6, %7}, %9;"            \
                 :                                                                                           \
                 : EIGHT("f", values), "l"(address), "r"(stride)                                             \
                 : "memory")
#define MULTIPLY(layouts, sums, left, right)                                                                 \
    asm("wmma.mma.sync.aligned." layouts ".m16n16k16.f32.f32 {%0, %1, %2, %3, %4, %5, %6, %7},"              \
        " {%8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19, %20, %21, %22, %23},"                 \
        " {%0, %1, %2, %3, %4, %5, %6, %7};"                                                                 \
        : EIGHT("+f", sums.values)                                                                           \
        : EIGHT("r", left.words), EIGHT("r", right.words))

// Addresses are multiples of 32 bytes, strides of 8 halves or 4 floats.
DEVICE void load_shared(Left<BY_ROW>& to, const half_bits* from, int stride) {
    LOAD("a.sync.aligned.row.m16n16k16.shared.f16", "=r", to.words, __cvta_generic_to_shared(from), stride);
}
DEVICE void load_shared(Left<BY_COLUMN>& to, const half_bits* from, int stride) {
    LOAD("a.sync.aligned.col.m16n16k16.shared.f16", "=r", to.words, __cvta_generic_to_shared(from), stride);
}
DEVICE void load_shared(Right<BY_ROW>& to, const half_bits* from, int stride) {
    LOAD("b.sync.aligned.row.m16n16k16.shared.f16", "=r", to.words, __cvta_generic_to_shared(from), stride);
}
DEVICE void load_shared(Right<BY_COLUMN>& to, const half_bits* from, int stride) {
    LOAD("b.sync.aligned.col.m16n16k16.shared.f16", "=r", to.words, __cvta_generic_to_shared(from), stride);
}
DEVICE void load_shared(Sums& to, const float* from, int stride) {
    LOAD("c.sync.aligned.row.m16n16k16.shared.f32", "=f", to.values, __cvta_generic_to_shared(from), stride);
}
DEVICE void load_global(Left<BY_ROW>& to, const half_bits* from, int stride) {
    LOAD("a.sync.aligned.row.m16n16k16.global.f16", "=r", to.words, __cvta_generic_to_global(from), stride);
}
DEVICE void store_shared(float* to, const Sums& from, int stride) {
    STORE("row.m16n16k16.shared.f32", from.values, __cvta_generic_to_shared(to), stride);
}
DEVICE void store_shared_by_column(float* to, const Sums& from, int stride) {
    STORE("col.m16n16k16.shared.f32", from.values, __cvta_generic_to_shared(to), stride);
}
DEVICE void store_global(float* to, const Sums& from, int stride) {
    STORE("row.m16n16k16.global.f32", from.values, __cvta_generic_to_global(to), stride);
}
DEVICE void multiply_add(Sums& sums, const Left<BY_ROW>& left, const Right<BY_ROW>& right) {
    MULTIPLY("row.row", sums, left, right);
}
DEVICE void multiply_add(Sums& sums, const Left<BY_ROW>& left, const Right<BY_COLUMN>& right) {
    MULTIPLY("row.col", sums, left, right);
}
DEVICE void multiply_add(Sums& sums, const Left<BY_COLUMN>& left, const Right<BY_ROW>& right) {
    MULTIPLY("col.row", sums, left, right);
}

#endif

constexpr int STEPS = (SIZE + 15) / 16;
constexpr int PADDED = STEPS * 16;
constexpr int STRIDE = PADDED + 8;  // halves from row to row in shared memory: eight rows lie in different banks
constexpr int THREADS = 256, WARPS = THREADS / 32, ROWS = WARPS * 16;
constexpr int BLOCK = 32;           // entities whose largest score decides whether any of them is looked at
constexpr int PART = TILE / 2;      // entities of a tile that one lane looks at, for one mention
constexpr int SCORES = TILE + 4;    // floats from row to row of scores; after them one for the row's factor
constexpr int COLUMN = 16 + 4;      // floats from column to column of scores in the gradient of the table
constexpr float LOG2E = 1.4426950408889634f;
// Probabilities go to fp16 times 2^14: the small ones keep their digits.
constexpr float BIAS = 14, SCALE = 16384;

DEVICE float4 zeros() { return make_float4(0, 0, 0, 0); }
DEVICE bool is_nan(float value) { return value != value; }
DEVICE float finite_or_zero(float value) { return fabsf(value) < infinity() ? value : 0; }
// What sums taken relative to `from` are multiplied by to be relative to `to`; of equal infinities 1.
DEVICE float rescaling(float from, float to) { return from == to ? 1 : exp2_fast((from - to) * LOG2E); }

DEVICE float warp_sum(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

// ---- Loading rows

DEVICE unsigned keep_halves(unsigned word, int count) { return count >= 2 ? word : count == 1 ? word & 0xffffu : 0; }

// Columns `column` to `column` + 7 of a row of the table; zeros from SIZE on, whatever lies there in memory.
DEVICE uint4 load_piece(const half_bits* row, int column) {
    uint4 piece = make_uint4(0, 0, 0, 0);
    if (WIDTH == 8) {
        if (column < SIZE) piece = *reinterpret_cast<const uint4*>(row + column);
        if (SIZE % 8) {
            piece.x = keep_halves(piece.x, SIZE - column);
            piece.y = keep_halves(piece.y, SIZE - column - 2);
            piece.z = keep_halves(piece.z, SIZE - column - 4);
            piece.w = keep_halves(piece.w, SIZE - column - 6);
        }
    } else if (WIDTH == 4) {
        uint2 low = make_uint2(0, 0), high = make_uint2(0, 0);
        if (column < SIZE) low = *reinterpret_cast<const uint2*>(row + column);
        if (column + 4 < SIZE) high = *reinterpret_cast<const uint2*>(row + column + 4);
        piece = make_uint4(low.x, low.y, high.x, high.y);
    } else {
        unsigned halves[8];
#pragma unroll
        for (int i = 0; i < 8; i++) halves[i] = column + i < SIZE ? row[column + i] : 0;
        piece = make_uint4(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16, halves[4] | halves[5] << 16,
                           halves[6] | halves[7] << 16);
    }
    return piece;
}

DEVICE float4 widen(uint2 halves) {
    return make_float4(to_float(halves.x & 0xffffu), to_float(halves.x >> 16), to_float(halves.y & 0xffffu),
                       to_float(halves.y >> 16));
}

// Columns `column` to `column` + 3 of a row of the table; zeros from SIZE on.
DEVICE float4 load_four(const half_bits* row, int column) {
    uint2 four = make_uint2(0, 0);
    if (WIDTH >= 4) {
        if (column < SIZE) four = *reinterpret_cast<const uint2*>(row + column);
        if (SIZE % 4) {
            four.x = keep_halves(four.x, SIZE - column);
            four.y = keep_halves(four.y, SIZE - column - 2);
        }
    } else {
        unsigned halves[4];
#pragma unroll
        for (int i = 0; i < 4; i++) halves[i] = column + i < SIZE ? row[column + i] : 0;
        four = make_uint2(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16);
    }
    return widen(four);
}

// The same of a row of h or grad_att.
DEVICE float4 load_four_padded(const half_bits* row, int column) {
    return widen(column < PADDED ? *reinterpret_cast<const uint2*>(row + column) : make_uint2(0, 0));
}

// Columns `column` to `column` + 3 of a contiguous row [SIZE].
DEVICE void store_four(half_bits* row, int column, float4 values) {
    unsigned x = to_half(values.x), y = to_half(values.y), z = to_half(values.z), w = to_half(values.w);
    if (SIZE % 4 == 0) {
        if (column < SIZE) *reinterpret_cast<uint2*>(row + column) = make_uint2(x | y << 16, z | w << 16);
    } else {
        if (column < SIZE) row[column] = x;
        if (column + 1 < SIZE) row[column + 1] = y;
        if (column + 2 < SIZE) row[column + 2] = z;
        if (column + 3 < SIZE) row[column + 3] = w;
    }
}

DEVICE void add_scaled(float4& sum, float factor, float4 values) {
    sum.x += factor * values.x;
    sum.y += factor * values.y;
    sum.z += factor * values.z;
    sum.w += factor * values.w;
}

DEVICE float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// ---- Tiles

// A tile on its way from global to shared memory: this thread's pieces of it.
struct Fetched {
    static constexpr int PIECES = TILE * STEPS * 2;
    uint4 pieces[(PIECES + THREADS - 1) / THREADS];

    template <class Load>
    DEVICE void fetch(Load load) {
#pragma unroll
        for (int i = 0; i < sizeof(pieces) / sizeof(uint4); i++) {
            int piece = threadIdx.x + i * THREADS;
            if (piece < PIECES) pieces[i] = load(piece / (STEPS * 2), piece % (STEPS * 2) * 8);
        }
    }

    DEVICE void put(half_bits* tile) const {
#pragma unroll
        for (int i = 0; i < sizeof(pieces) / sizeof(uint4); i++) {
            int piece = threadIdx.x + i * THREADS;
            half_bits* to = tile + piece / (STEPS * 2) * STRIDE + piece % (STEPS * 2) * 8;
            if (piece < PIECES) *reinterpret_cast<uint4*>(to) = pieces[i];
        }
    }
};

DEVICE void clear(Sums* sums, int count) {
#pragma unroll
    for (int i = 0; i < count; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sums[i].values[j] = 0;
}

// Dot products of this warp's 16 rows with the rows of a tile.
DEVICE void score(Sums* scores, const Left<BY_ROW>* rows, const half_bits* tile) {
    clear(scores, TILE / 16);
#pragma unroll
    for (int step = 0; step < STEPS; step++)
#pragma unroll
        for (int i = 0; i < TILE / 16; i++) {
            Right<BY_COLUMN> columns;
            load_shared(columns, tile + i * 16 * STRIDE + step * 16, STRIDE);
            multiply_add(scores[i], rows[step], columns);
        }
}

// Add to sums [16, PADDED] the product of 16 columns of weights and 16 rows of a tile.
template <Layout LAYOUT>
DEVICE void add_weighted(Sums* sums, const Left<LAYOUT>& weights, const half_bits* tile) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        Right<BY_ROW> rows;
        load_shared(rows, tile + step * 16, STRIDE);
        multiply_add(sums[step], weights, rows);
    }
}

// ---- Search

// The row in the matrix, four bits each, of the eight elements of `Sums` that this lane holds. The scratch is free
// after the next barrier.
DEVICE unsigned rows_of_elements(float* scratch, int lane) {
    for (int i = lane; i < 256; i += 32) scratch[i / 16 * SCORES + i % 16] = i / 16;
    sync_warp();
    Sums row;
    load_shared(row, scratch, SCORES);
    unsigned packed = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) packed |= static_cast<unsigned>(row.values[i]) << 4 * i;
    return packed;
}

// Thread block (x, y): 128 mentions, the y-th split of the tiles.
//
// maxima [M, blocks], or null: largest score of each block of 32 entities. split_max, split_sum [splits, M]: largest
// score, and the sum of exp(score - it). gold_logit [M]: written where there is a gold entity. With MEAN,
// split_mean [splits, M up to whole 128, PADDED]: the sum of exp(score - split_max) * row, times SCALE, without the
// gold entity, which `merge_splits` adds in fp32: close to loss 0 it is what the gradient of gold_logit takes away.
template <bool MEAN>
DEVICE void search_split(const half_bits* h, const half_bits* table, int64_t row_stride, int64_t entities,
                         int64_t mentions, const int* gold, int64_t tiles_per_split, float* maxima, int64_t blocks,
                         float* split_max, float* split_sum, float* gold_logit, float* split_mean) {
    half_bits* tiles = reinterpret_cast<half_bits*>(shared_memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = lane % 16, part = lane / 16;
    float* scores_of_warp = reinterpret_cast<float*>(tiles + 2 * TILE * STRIDE) + warp * 16 * SCORES;
    float* own_scores = scores_of_warp + row * SCORES + part * PART;

    const int64_t first_mention = static_cast<int64_t>(blockIdx.x) * ROWS + warp * 16, mention = first_mention + row;
    const bool active = first_mention < mentions, real = mention < mentions;
    const int64_t gold_row = real && gold ? gold[mention] : -1;
    Left<BY_ROW> queries[STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; step++) load_global(queries[step], h + first_mention * PADDED + step * 16, PADDED);

    float maximum = -infinity(), sum = 0;
    Sums mean[MEAN ? STEPS : 1];
    unsigned rows = 0;
    if (MEAN) {
        clear(mean, STEPS);
        rows = rows_of_elements(scores_of_warp, lane);
    }

    const int64_t first = blockIdx.y * tiles_per_split, all = (entities + TILE - 1) / TILE;
    const int64_t last = first + tiles_per_split < all ? first + tiles_per_split : all;
    Fetched fetched;
    auto fetch = [&](int64_t tile) {
        fetched.fetch([&](int i, int column) {
            int64_t entity = tile * TILE + i;
            return entity < entities ? load_piece(table + entity * row_stride, column) : make_uint4(0, 0, 0, 0);
        });
    };
    fetch(first);
    fetched.put(tiles);
    sync_block();
    for (int64_t tile = first; tile < last; tile++) {
        const half_bits* here = tiles + (tile - first) % 2 * TILE * STRIDE;
        if (tile + 1 < last) fetch(tile + 1);
        if (active) {
            {
                Sums scores[TILE / 16];
                score(scores, queries, here);
#pragma unroll
                for (int i = 0; i < TILE / 16; i++) store_shared(scores_of_warp + i * 16, scores[i], SCORES);
            }
            sync_warp();
            float s[PART];
#pragma unroll
            for (int i = 0; i < PART; i += 4)
                *reinterpret_cast<float4*>(s + i) = *reinterpret_cast<const float4*>(own_scores + i);
            const int64_t first_entity = tile * TILE + part * PART;
            if (first_entity + PART > entities) {
                const int left = static_cast<int>(entities - first_entity);
#pragma unroll
                for (int i = 0; i < PART; i++)
                    if (i >= left) s[i] = -infinity();
            }
            const int64_t at_gold = gold_row - first_entity;
            const bool has_gold = at_gold >= 0 && at_gold < PART;
            if (has_gold) gold_logit[mention] = own_scores[at_gold];

            float block_max = -infinity();
#pragma unroll
            for (int i = 0; i < PART; i++) block_max = fmaxf(block_max, s[i]);
            const float tile_max = fmaxf(block_max, shuffle_xor(block_max, 16));
            if (PART < BLOCK) block_max = tile_max;

            const float before = maximum;
            maximum = fmaxf(maximum, tile_max);
            const float factor = rescaling(before, maximum), reference = finite_or_zero(maximum);
            float tile_sum = 0;
#pragma unroll
            for (int i = 0; i < PART; i++) {
                s[i] = exp2_fast((s[i] - reference) * LOG2E + BIAS);
                tile_sum += s[i];
            }
            sum = sum * factor + tile_sum;

            // Maxima pass over NaN; the sum is NaN if and only if a score is.
            const float of_block = PART < BLOCK ? tile_sum + shuffle_xor(tile_sum, 16) : tile_sum;
            const int64_t block = first_entity / BLOCK;
            if (maxima && real && block < blocks)
                maxima[mention * blocks + block] = is_nan(of_block) ? not_a_number() : block_max;

            if (MEAN) {
                half_bits* weights = reinterpret_cast<half_bits*>(own_scores);
#pragma unroll
                for (int i = 0; i < PART; i += 8) {
                    unsigned pair[4];
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        pair[j] = to_half(s[i + 2 * j]) | static_cast<unsigned>(to_half(s[i + 2 * j + 1])) << 16;
                    *reinterpret_cast<uint4*>(weights + i) = make_uint4(pair[0], pair[1], pair[2], pair[3]);
                }
                if (has_gold) weights[at_gold] = 0;
                if (part == 0) scores_of_warp[row * SCORES + TILE] = factor;
                const bool rescale = ballot(factor != 1) != 0;
                sync_warp();
                if (rescale)
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        const float of_row = scores_of_warp[(rows >> 4 * i & 15) * SCORES + TILE];
#pragma unroll
                        for (int step = 0; step < STEPS; step++) mean[step].values[i] *= of_row;
                    }
#pragma unroll
                for (int i = 0; i < TILE; i += 16) {
                    Left<BY_ROW> left;
                    const half_bits* from = reinterpret_cast<half_bits*>(scores_of_warp + i / PART * PART) + i % PART;
                    load_shared(left, from, SCORES * 2);
                    add_weighted(mean, left, here + i * STRIDE);
                }
            }
        }
        if (tile + 1 < last) fetched.put(tiles + (tile + 1 - first) % 2 * TILE * STRIDE);
        sync_block();
    }

    sum += shuffle_xor(sum, 16);
    if (real && part == 0) {
        split_max[blockIdx.y * mentions + mention] = maximum;
        split_sum[blockIdx.y * mentions + mention] = sum / SCALE;
    }
    if (MEAN && active) {
        const int64_t rows_in_all = static_cast<int64_t>(gridDim.x) * ROWS;
        float* to = split_mean + (blockIdx.y * rows_in_all + first_mention) * PADDED;
#pragma unroll
        for (int step = 0; step < STEPS; step++) store_global(to + step * 16, mean[step], PADDED);
    }
}

KERNEL search(const half_bits* h, const half_bits* table, int64_t row_stride, int64_t entities, int64_t mentions,
              const int* gold, int64_t tiles_per_split, float* maxima, int64_t blocks, float* split_max,
              float* split_sum, float* gold_logit, float* split_mean) {
    search_split<false>(h, table, row_stride, entities, mentions, gold, tiles_per_split, maxima, blocks, split_max,
                        split_sum, gold_logit, split_mean);
}

KERNEL search_with_mean(const half_bits* h, const half_bits* table, int64_t row_stride, int64_t entities,
                        int64_t mentions, const int* gold, int64_t tiles_per_split, float* maxima, int64_t blocks,
                        float* split_max, float* split_sum, float* gold_logit, float* split_mean) {
    search_split<true>(h, table, row_stride, entities, mentions, gold, tiles_per_split, maxima, blocks, split_max,
                       split_sum, gold_logit, split_mean);
}

// One warp for a mention. lse [M]; mean [M, SIZE] unless split_mean is null.
KERNEL merge_splits(const half_bits* table, int64_t row_stride, int64_t mentions, const int* gold, int64_t splits,
                    const float* split_max, const float* split_sum, const float* gold_logit, const float* split_mean,
                    float* lse, float* mean) {
    const int lane = threadIdx.x % 32, column = lane * 4;
    const int64_t mention = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / 32;
    if (mention >= mentions) return;
    float maximum = -infinity(), sum = 0;
    for (int64_t split = 0; split < splits; split++) maximum = fmaxf(maximum, split_max[split * mentions + mention]);
    for (int64_t split = 0; split < splits; split++)
        sum += split_sum[split * mentions + mention] * rescaling(split_max[split * mentions + mention], maximum);
    const float log_sum = finite_or_zero(maximum) + logf(sum);
    if (lane == 0) lse[mention] = log_sum;
    if (!split_mean) return;

    const int64_t rows_in_all = (mentions + ROWS - 1) / ROWS * ROWS;
    float4 average = zeros();
    if (column < PADDED)
        for (int64_t split = 0; split < splits; split++) {
            const float* from = split_mean + (split * rows_in_all + mention) * PADDED + column;
            const float share = rescaling(split_max[split * mentions + mention], maximum) / (sum * SCALE);
            add_scaled(average, share, *reinterpret_cast<const float4*>(from));
        }
    const int64_t gold_row = gold ? gold[mention] : -1;
    if (gold_row >= 0)
        add_scaled(average, exp2_fast((gold_logit[mention] - log_sum) * LOG2E),
                   load_four(table + gold_row * row_stride, column));
    const float values[4] = {average.x, average.y, average.z, average.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (column + i < SIZE) mean[mention * SIZE + column + i] = values[i];
}

// ---- Neighbours

// Thread block x: row x. places [rows, count]: where the `count` largest of values [rows, columns] are, ascending; of
// equal values the first ones, and NaN above all. largest [rows, count]: these values in descending order.
KERNEL select_largest(const float* values, int64_t columns, const float* largest, int64_t count, int* places) {
    int* counts = reinterpret_cast<int*>(shared_memory);  // [2, 2, WARPS]: in turn, above and equal
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t row = blockIdx.x;
    values += row * columns, largest += row * count, places += row * count;
    const float last = largest[count - 1];
    auto is_above = [&](float value) { return value > last || (is_nan(value) && !is_nan(last)); };
    auto is_equal = [&](float value) { return value == last || (is_nan(value) && is_nan(last)); };

    int64_t wanted = count;  // of those equal to the last
    for (int64_t i = 0; i < count; i += 32) wanted -= __popc(ballot(i + lane < count && is_above(largest[i + lane])));
    int64_t above = 0, equal = 0;  // in the columns before
    for (int64_t start = 0, turn = 0; start < columns; start += THREADS, turn = 1 - turn) {
        const int64_t column = start + threadIdx.x;
        const float value = column < columns ? values[column] : 0;
        const bool here_above = column < columns && is_above(value), here_equal = column < columns && is_equal(value);
        const unsigned above_in_warp = ballot(here_above), equal_in_warp = ballot(here_equal);
        int* of_turn = counts + turn * 2 * WARPS;
        if (lane == 0) {
            of_turn[warp] = __popc(above_in_warp);
            of_turn[WARPS + warp] = __popc(equal_in_warp);
        }
        sync_block();
        const unsigned lanes_before = (1u << lane) - 1;
        int64_t above_before = above + __popc(above_in_warp & lanes_before);
        int64_t equal_before = equal + __popc(equal_in_warp & lanes_before);
#pragma unroll
        for (int i = 0; i < WARPS; i++) {
            if (i < warp) above_before += of_turn[i], equal_before += of_turn[WARPS + i];
            above += of_turn[i], equal += of_turn[WARPS + i];
        }
        if (here_above || (here_equal && equal_before < wanted))
            places[above_before + (equal_before < wanted ? equal_before : wanted)] = column;
    }
}

// Thread block (x, y): mention x, one warp for each of eight chosen blocks. candidates [M, count * BLOCK]: scores of
// the entities of the chosen blocks [M, count]; -inf beyond the last entity.
KERNEL score_blocks(const half_bits* h, const half_bits* table, int64_t row_stride, int64_t entities,
                    const int* chosen, int64_t count, float* candidates) {
    const int lane = threadIdx.x % 32, group = lane / 8, within = lane % 8;  // eight lanes for a row
    const int64_t mention = blockIdx.x, place = static_cast<int64_t>(blockIdx.y) * WARPS + threadIdx.x / 32;
    if (place >= count) return;
    const int64_t first_entity = static_cast<int64_t>(chosen[mention * count + place]) * BLOCK;
    float4 query[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        query[i] = load_four_padded(h + mention * PADDED, (within + i / 2 * 8) * 8 + i % 2 * 4);
    float own = 0;
#pragma unroll
    for (int i = 0; i < BLOCK / 4; i++) {
        const int64_t entity = first_entity + i * 4 + group;
        float sum = 0;
        if (entity < entities)
#pragma unroll
            for (int j = 0; j < (STEPS * 2 + 7) / 8; j++) {
                const uint4 piece = load_piece(table + entity * row_stride, (within + j * 8) * 8);
                sum += dot(query[2 * j], widen(make_uint2(piece.x, piece.y)));
                sum += dot(query[2 * j + 1], widen(make_uint2(piece.z, piece.w)));
            }
#pragma unroll
        for (int mask = 4; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
        if (within == i) own = entity < entities ? sum : -infinity();
    }
    candidates[(mention * count + place) * BLOCK + within * 4 + group] = own;
}

// One warp for a mention. att [M, SIZE]: rows of the table at nearest [M, k], weighted.
KERNEL weighted_rows(const half_bits* table, int64_t row_stride, int64_t mentions, const int64_t* nearest,
                     const float* weights, int64_t k, half_bits* att) {
    const int column = threadIdx.x % 32 * 4;
    const int64_t mention = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / 32;
    if (mention >= mentions) return;
    float4 sum = zeros();
#pragma unroll 4
    for (int64_t i = mention * k; i < (mention + 1) * k; i++)
        add_scaled(sum, weights[i], load_four(table + nearest[i] * row_stride, column));
    store_four(att + mention * SIZE, column, sum);
}

// ---- Gradients

// One warp for a mention. grad_scores [M, k]: gradient of the scores of its neighbours, through att and topk_val (null
// where none comes; nearest is null if neither does). grad_h [M, SIZE], or null: what comes through them, and through
// lse and gold_logit.
KERNEL mention_gradient(const half_bits* table, int64_t row_stride, int64_t mentions, const int* gold,
                        const int64_t* nearest, const float* weights, int64_t k, const half_bits* grad_att,
                        const float* grad_topk, const float* grad_lse, const float* grad_gold, const float* mean,
                        float* grad_scores, half_bits* grad_h) {
    const int lane = threadIdx.x % 32, column = lane * 4;
    const int64_t mention = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / 32;
    if (mention >= mentions) return;
    float4 sum = zeros();
    if (nearest) {
        nearest += mention * k, weights += mention * k, grad_scores += mention * k;
        float average = 0;
        if (grad_att) {
            const float4 towards = load_four_padded(grad_att + mention * PADDED, column);
#pragma unroll 4
            for (int64_t i = 0; i < k; i++) {
                const float along = warp_sum(dot(towards, load_four(table + nearest[i] * row_stride, column)));
                average += weights[i] * along;
                if (lane == 0) grad_scores[i] = along;
            }
            sync_warp();
        }
        for (int64_t i = lane; i < k; i += 32) {
            const float of_weight = grad_att ? weights[i] * (grad_scores[i] - average) : 0;
            grad_scores[i] = of_weight + (grad_topk ? grad_topk[mention * k + i] : 0);
        }
        sync_warp();
        if (grad_h)
#pragma unroll 4
            for (int64_t i = 0; i < k; i++)
                add_scaled(sum, grad_scores[i], load_four(table + nearest[i] * row_stride, column));
    }
    if (!grad_h) return;
    if (grad_lse) {
        const float* of_mean = mean + mention * SIZE + column;
        float4 four = zeros();
        if (column < SIZE) four.x = of_mean[0];
        if (column + 1 < SIZE) four.y = of_mean[1];
        if (column + 2 < SIZE) four.z = of_mean[2];
        if (column + 3 < SIZE) four.w = of_mean[3];
        add_scaled(sum, grad_lse[mention], four);
    }
    const int64_t gold_row = gold && grad_gold ? gold[mention] : -1;
    if (gold_row >= 0) add_scaled(sum, grad_gold[mention], load_four(table + gold_row * row_stride, column));
    store_four(grad_h + mention * SIZE, column, sum);
}

// Thread block x: 128 entities. grad_table [E, SIZE]; each element is rounded once.
//
// Through lse and gold_logit, if `dense`: grad_lse and grad_gold [M] are normalised to at most 1, and *normaliser is
// what they were divided by. A product of 16 entities and TILE mentions is left out if none of its probabilities
// reaches `filter` and none of its mentions has its gold entity there.
//
// Through the neighbours, unless starts is null: pairs [M * k] are places in weights and grad_scores, sorted by entity;
// starts [E + 1] are the places of the entities in pairs.
KERNEL table_gradient(const half_bits* h, const half_bits* table, int64_t row_stride, int64_t entities,
                      int64_t mentions, int64_t dense, const int* gold, const float* lse, const float* grad_lse,
                      const float* grad_gold, const float* normaliser, float filter, const int* starts,
                      const int64_t* pairs, int64_t k, const float* weights, const float* grad_scores,
                      const half_bits* grad_att, half_bits* grad_table) {
    half_bits* tiles = reinterpret_cast<half_bits*>(shared_memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float* scores_of_warp = reinterpret_cast<float*>(tiles + 2 * TILE * STRIDE) + warp * TILE * COLUMN;
    const int64_t first_entity = static_cast<int64_t>(blockIdx.x) * ROWS + warp * 16;

    Left<BY_ROW> rows[STEPS];
    half_bits* rows_of_warp = tiles + warp * 16 * STRIDE;
    for (int piece = lane; piece < 16 * STEPS * 2; piece += 32) {
        const int row = piece / (STEPS * 2), column = piece % (STEPS * 2) * 8;
        const int64_t entity = first_entity + row;
        *reinterpret_cast<uint4*>(rows_of_warp + row * STRIDE + column) =
            entity < entities ? load_piece(table + entity * row_stride, column) : make_uint4(0, 0, 0, 0);
    }
    sync_warp();
#pragma unroll
    for (int step = 0; step < STEPS; step++) load_shared(rows[step], rows_of_warp + step * 16, STRIDE);
    sync_block();

    Sums sums[STEPS];
    clear(sums, STEPS);
    const int64_t last = dense ? (mentions + TILE - 1) / TILE : 0;
    Fetched fetched;
    auto fetch = [&](int64_t tile) {
        fetched.fetch([&](int i, int column) {
            return *reinterpret_cast<const uint4*>(h + (tile * TILE + i) * PADDED + column);
        });
    };
    if (last > 0) {
        fetch(0);
        fetched.put(tiles);
    }
    sync_block();
    for (int64_t tile = 0; tile < last; tile++) {
        const half_bits* here = tiles + tile % 2 * TILE * STRIDE;
        if (tile + 1 < last) fetch(tile + 1);
        {
            Sums scores[TILE / 16];
            score(scores, rows, here);
#pragma unroll
            for (int i = 0; i < TILE / 16; i++)
                store_shared_by_column(scores_of_warp + i * 16 * COLUMN, scores[i], COLUMN);
        }
        sync_warp();
        bool matters = false;
#pragma unroll 1  // registers are scarce
        for (int i = 0; i < TILE; i += 32) {
            const int64_t mention = tile * TILE + i + lane;
            const bool real = mention < mentions;
            const float log_sum = real ? lse[mention] : infinity();
            const float of_lse = real ? grad_lse[mention] : 0, of_gold = real ? grad_gold[mention] : 0;
            const int64_t at_gold = real && gold ? gold[mention] - first_entity : -1;
            const bool has_gold = at_gold >= 0 && at_gold < 16;
            float* column = scores_of_warp + (i + lane) * COLUMN;
            float s[16];
#pragma unroll
            for (int j = 0; j < 16; j += 4)
                *reinterpret_cast<float4*>(s + j) = *reinterpret_cast<const float4*>(column + j);
            // P - 1 as one number: close to loss 0 the gradients of lse and gold_logit cancel.
            float gold_gradient = 0;
            if (has_gold) gold_gradient = exp2_fast((column[at_gold] - log_sum) * LOG2E) * of_lse + of_gold;
            half_bits* gradients = reinterpret_cast<half_bits*>(column);
            unsigned pair[8];
            float largest = -infinity();
#pragma unroll
            for (int j = 0; j < 16; j++) {
                largest = fmaxf(largest, s[j]);
                const unsigned half = to_half(exp2_fast((s[j] - log_sum) * LOG2E + BIAS) * of_lse);
                pair[j / 2] = j % 2 ? pair[j / 2] | half << 16 : half;
            }
            reinterpret_cast<uint4*>(gradients)[0] = make_uint4(pair[0], pair[1], pair[2], pair[3]);
            reinterpret_cast<uint4*>(gradients)[1] = make_uint4(pair[4], pair[5], pair[6], pair[7]);
            if (has_gold) gradients[at_gold] = to_half(gold_gradient * SCALE);
            // With NaN among the scores log_sum is NaN, and that matters.
            matters |= has_gold || !(exp2_fast((largest - log_sum) * LOG2E) < filter);
        }
        sync_warp();
        if (ballot(matters))
#pragma unroll
            for (int i = 0; i < TILE; i += 16) {
                Left<BY_COLUMN> left;
                load_shared(left, reinterpret_cast<half_bits*>(scores_of_warp + i * COLUMN), COLUMN * 2);
                add_weighted(sums, left, here + i * STRIDE);
            }
        if (tile + 1 < last) fetched.put(tiles + (tile + 1) % 2 * TILE * STRIDE);
        sync_block();
    }

    float* sums_of_warp = reinterpret_cast<float*>(shared_memory) + warp * 16 * PADDED;
#pragma unroll
    for (int step = 0; step < STEPS; step++) store_shared(sums_of_warp + step * 16, sums[step], PADDED);
    sync_warp();
    const float scale = dense ? *normaliser / SCALE : 0;
    const int column = lane * 4;
    for (int row = 0; row < 16; row++) {
        const int64_t entity = first_entity + row;
        if (entity >= entities) break;
        float4 sum = zeros();
        if (dense && column < PADDED)
            add_scaled(sum, scale, *reinterpret_cast<const float4*>(sums_of_warp + row * PADDED + column));
        if (starts)
#pragma unroll 4
            for (int64_t i = starts[entity]; i < starts[entity + 1]; i++) {
                const int64_t pair = pairs[i], mention = pair / k;
                add_scaled(sum, grad_scores[pair], load_four_padded(h + mention * PADDED, column));
                if (grad_att) add_scaled(sum, weights[pair], load_four_padded(grad_att + mention * PADDED, column));
            }
        store_four(grad_table + entity * SIZE, column, sum);
    }
}
