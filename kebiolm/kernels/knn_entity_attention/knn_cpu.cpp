// The kNN entity-attention operator on CPUs: forward in one pass over the table, and its exact gradients.
//
// The M x E scores are never stored. A panel of mentions is transposed, so that a vector register holds one dimension
// of several mentions and the entity's scalars are broadcast straight from the row-major table: maxima and sums over
// entities then run down the registers and need no horizontal step. A block of scores lives in the L1 cache only, a
// stretch of blocks in the L2 cache while all panels pass over it.
//
// Everything about one mention happens in one vector lane, in an order that depends on the table and on `parts`
// alone: results do not depend on the other mentions, nor on how many threads really run.
//
// Plain C interface, for ctypes. Letters: M mentions, E entities, d dimensions, k neighbours.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// Accumulators of ENTITIES x VECTORS registers, VECTORS for the mentions, and a broadcast fit the register file.
#if defined(__AVX512F__)
constexpr int LANES = 16, ENTITIES = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, ENTITIES = 4;
#else
constexpr int LANES = 4, ENTITIES = 4;
#endif
constexpr int VECTORS = 3;
constexpr int PANEL = VECTORS * LANES;
constexpr int64_t BLOCK = 32;  // entities whose scores are in cache at a time
constexpr int64_t STRETCH_BYTES = 256 << 10;  // of the table; what fits the L2 cache beside its gradient
constexpr float LOG2E = 1.4426950408889634f;
constexpr float LARGE_TOTAL = 256.0f;  // of a block's exponentials: more costs digits
constexpr float LOG_HALF = -0.6931472f;
constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t Int __attribute__((vector_size(LANES * 4)));
typedef std::conditional_t<LANES == 16, uint16_t, uint8_t> Mask;  // a bit for each lane, from the lowest
constexpr uint32_t ALL_LANES = (1u << LANES) - 1;

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<Vec*>(to) = value; }

// Keeps a loaded vector in its register; GCC would load it again for each multiplication.
inline void keep(Vec& value) {
#if defined(__x86_64__)
    asm("" : "+v"(value));
#elif defined(__aarch64__)
    asm("" : "+w"(value));
#else
    (void)value;
#endif
}

struct FreeAligned {
    void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
};
typedef std::unique_ptr<float[], FreeAligned> Floats;

Floats zeros(int64_t count) {
    const size_t size = std::max<int64_t>(count, 1);
    Floats memory(static_cast<float*>(::operator new[](size * sizeof(float), std::align_val_t(64))));
    std::memset(memory.get(), 0, size * sizeof(float));
    return memory;
}

// 2^x. From 2^128 on it is inf, below 2^-126 it stays there, which no sum with a term of 1 can notice.
inline Vec exp2_clamped(Vec x) {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits; 127 is the bias of the exponent.
    const Vec lowest = Vec{} - 126.0f, highest = Vec{} + 128.0f, magic = Vec{} + (12582912.0f + 127.0f);
    x = lowest > x ? lowest : x;
    x = x > highest ? highest : x;
    const Vec shifted = x + magic;
    const Vec r = x - (shifted - magic);
    // Least maximal relative error on [-1/2, 1/2] with p(0) = 1: 1e-7.
    Vec p = 1.326472614891827e-3f * r + 9.671512991189957e-3f;
    p = p * r + 5.550733581185341e-2f;
    p = p * r + 2.4022242426872253e-1f;
    p = p * r + 6.931470036506653e-1f;
    p = p * r + 1.0f;
    // A product and not a sum of bits: NaN stays NaN.
    return p * (Vec)((Int)shifted << 23);
}

// Which lanes of `values` are above those of `bounds`; NaN is not.
inline uint32_t lanes_above(Vec values, Vec bounds) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)values, (__m512)bounds, _CMP_GT_OQ);
#elif defined(__AVX__)
    return _mm256_movemask_ps((__m256)(values > bounds));
#elif defined(__SSE__)
    return _mm_movemask_ps((__m128)(values > bounds));
#else
    uint32_t bits = 0;
    for (int lane = 0; lane < LANES; ++lane) bits |= static_cast<uint32_t>(values[lane] > bounds[lane]) << lane;
    return bits;
#endif
}

// Entities in a stretch, whole blocks of them.
inline int64_t stretch_of(int64_t stride) {
    const int64_t block_bytes = BLOCK * stride * static_cast<int64_t>(sizeof(float));
    return std::max<int64_t>(1, STRETCH_BYTES / block_bytes) * BLOCK;
}

// Asks for `count` rows, half a stretch ahead, to be in the L2 cache when they are needed: the memory's own guesses
// come late, since a block reads many rows side by side. Behind the end of the table it does nothing.
inline void fetch_ahead(const float* rows, int64_t stride, int64_t count) {
    const float* const from = rows + stretch_of(stride) / 2 * stride;
    for (int64_t x = 0; x < count * stride; x += 16) __builtin_prefetch(from + x, 0, 2);
}

// Scores of N table rows for the V * LANES mentions of a panel [d][V * LANES]; one order of summation for any V and N.
template <int V, int N>
inline void dot(const float* panel, const float* rows, int64_t stride, int64_t d, float* scores) {
    Vec sum[N][V] = {};
    for (int64_t x = 0; x < d; ++x) {
        Vec h[V];
        for (int v = 0; v < V; ++v) {
            h[v] = load(panel + (x * V + v) * LANES);
            keep(h[v]);
        }
        for (int n = 0; n < N; ++n)
            for (int v = 0; v < V; ++v) sum[n][v] += h[v] * rows[n * stride + x];
    }
    for (int n = 0; n < N; ++n)
        for (int v = 0; v < V; ++v) store(scores + (n * V + v) * LANES, sum[n][v]);
}

template <int V>
inline void dot_block(const float* panel, const float* rows, int64_t stride, int64_t d, int64_t count, float* scores) {
    int64_t n = 0;
    for (; n + ENTITIES <= count; n += ENTITIES)
        dot<V, ENTITIES>(panel, rows + n * stride, stride, d, scores + n * V * LANES);
    for (; n < count; ++n) dot<V, 1>(panel, rows + n * stride, stride, d, scores + n * V * LANES);
}

// Mentions in panels, the last one only as wide as it must be; `lanes` counts all lanes, also the empty ones.
struct Panels {
    int64_t count, lanes;
    explicit Panels(int64_t mentions)
        : count((mentions + PANEL - 1) / PANEL), lanes((mentions + LANES - 1) / LANES * LANES) {}
    int vectors(int64_t panel) const {
        return static_cast<int>(std::min<int64_t>(VECTORS, lanes / LANES - panel * VECTORS));
    }
};

Floats transpose(const float* h, const std::vector<int64_t>& mentions, int64_t d, const Panels& panels) {
    Floats packed = zeros(panels.lanes * d);
    for (size_t i = 0; i < mentions.size(); ++i) {
        const int64_t panel = i / PANEL, width = panels.vectors(panel) * LANES;
        float* to = packed.get() + panel * PANEL * d + i % PANEL;
        for (int64_t x = 0; x < d; ++x) to[x * width] = h[mentions[i] * d + x];
    }
    return packed;
}

// Calls `work(std::integral_constant<int, V>, panel)` with the width of the panel as a constant.
template <typename Work>
inline void for_each_panel(const Panels& panels, Work work) {
    for (int64_t panel = 0; panel < panels.count; ++panel) {
        switch (panels.vectors(panel)) {
            case 3: work(std::integral_constant<int, 3>(), panel); break;
            case 2: work(std::integral_constant<int, 2>(), panel); break;
            default: work(std::integral_constant<int, 1>(), panel);
        }
    }
}

// A score and its entity as one number: the larger number comes first, of equal scores the lower entity.
typedef uint64_t Candidate;

inline Candidate candidate(float score, int64_t entity) {
    const float one_zero = score + 0.0f;  // -0 equals 0
    uint32_t bits;
    std::memcpy(&bits, &one_zero, sizeof bits);
    bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;  // a float is sign and magnitude
    return static_cast<uint64_t>(bits) << 32 | ~static_cast<uint32_t>(entity);
}

inline int64_t entity_of(Candidate found) { return ~static_cast<uint32_t>(found); }

inline float score_of(Candidate found) {
    uint32_t bits = static_cast<uint32_t>(found >> 32);
    bits ^= bits >> 31 ? 0x80000000u : 0xffffffffu;
    float score;
    std::memcpy(&score, &bits, sizeof score);
    return score;
}

// What one part of the table has seen of each mention. The sum is that of 2^(score * LOG2E - offset): an offset that
// seldom changes, near the largest score so far, saves a pass over each block for its maximum.
struct Seen {
    int64_t k;  // at most the entities of the part
    Floats offset, sum, lost, threshold;  // the true sum is sum - lost
    std::vector<int64_t> found;
    std::vector<Candidate> candidates;  // [M][2 k]: what takes the memory, for each thread

    Seen(int64_t mentions, int64_t lanes, int64_t neighbours)
        : k(neighbours), offset(zeros(lanes)), sum(zeros(lanes)), lost(zeros(lanes)), threshold(zeros(lanes)),
          found(mentions, 0), candidates(mentions * 2 * neighbours) {
        std::fill_n(offset.get(), mentions, -INF);
        std::fill_n(threshold.get(), lanes, INF);  // empty lanes take nothing
        std::fill_n(threshold.get(), mentions, -INF);
    }

    void take(int64_t mention, float value, int64_t entity) {
        Candidate* const mine = candidates.data() + mention * 2 * k;
        mine[found[mention]++] = candidate(value, entity);
        if (found[mention] < 2 * k) return;
        std::nth_element(mine, mine + k - 1, mine + 2 * k, std::greater<>());
        threshold[mention] = score_of(mine[k - 1]);
        found[mention] = k;
    }
};

// Adds the exponentials of N entities' scores to `total` and says which scores are above the threshold. Not inlined:
// its constants would take the registers of the scalar products.
template <int V, int N>
__attribute__((noinline)) void see_scores(const float* scores, const float* offset, const float* threshold, Mask* near,
                                          Vec* total) {
    for (int v = 0; v < V; ++v) {
        const Vec at = load(offset + v * LANES), bound = load(threshold + v * LANES);
        Vec added = {};
        for (int n = 0; n < N; ++n) {
            const Vec score = load(scores + (n * V + v) * LANES);
            near[n * V + v] = static_cast<Mask>(lanes_above(score, bound));
            added += exp2_clamped(score * LOG2E - at);
        }
        total[v] += added;
    }
}

// Where the total of a block is not small, moves the offset to its largest score and sums the block anew.
__attribute__((noinline)) void move_offset(const float* scores, int64_t width, int64_t count, float* offset,
                                           float* sum, float* lost, Vec& total) {
    Vec highest = load(scores);
    for (int64_t n = 1; n < count; ++n) {
        const Vec score = load(scores + n * width);
        highest = score > highest ? score : highest;
    }
    const Int stays = total < LARGE_TOTAL;
    const Vec old_offset = load(offset);
    const Vec new_offset = stays ? old_offset : highest * LOG2E;
    Vec again = {};
    for (int64_t n = 0; n < count; ++n) again += exp2_clamped(load(scores + n * width) * LOG2E - new_offset);
    const Vec scale = exp2_clamped(old_offset - new_offset);
    total = stays ? total : again;
    store(offset, new_offset);
    store(sum, stays ? load(sum) : load(sum) * scale);
    store(lost, stays ? load(lost) : load(lost) * scale);
}

// Places of the bits that are set, in order; returns their number.
template <int WORDS>
inline int64_t places_of_bits(const uint64_t (&words)[WORDS], uint16_t* places) {
    int64_t found = 0;
    for (int w = 0; w < WORDS; ++w) {
        uint64_t bits = words[w];
        const int64_t end = found + __builtin_popcountll(bits);
        // Two in any case, right or not: a branch on a number that is mostly 0, 1 or 2 would be mispredicted.
        for (int64_t i = found; i < std::max(end, found + 2); ++i) {
            places[i] = static_cast<uint16_t>(w * 64 + __builtin_ctzll(bits | uint64_t(1) << 63));
            bits &= bits - 1;
        }
        found = end;
    }
    return found;
}

template <int V>
inline void see_block(const float* panel, int64_t first_mention, const float* rows, int64_t stride, int64_t d,
                      int64_t first_entity, int64_t count, Seen& seen) {
    constexpr int WIDTH = V * LANES, MASK_BITS = 8 * sizeof(Mask), WORDS = BLOCK * V * sizeof(Mask) / 8;
    alignas(64) float scores[BLOCK * WIDTH];
    alignas(8) Mask near[BLOCK * V];
    float* const offset = seen.offset.get() + first_mention;
    const float* const threshold = seen.threshold.get() + first_mention;
    Vec total[V] = {};
    if (count < BLOCK) std::memset(near, 0, sizeof near);
    int64_t n = 0;
    for (; n + ENTITIES <= count; n += ENTITIES) {
        // Later panels find the rows where the first one had them fetched.
        if (first_mention == 0) fetch_ahead(rows + n * stride, stride, ENTITIES);
        dot<V, ENTITIES>(panel, rows + n * stride, stride, d, scores + n * WIDTH);
        see_scores<V, ENTITIES>(scores + n * WIDTH, offset, threshold, near + n * V, total);
    }
    for (; n < count; ++n) {
        dot<V, 1>(panel, rows + n * stride, stride, d, scores + n * WIDTH);
        see_scores<V, 1>(scores + n * WIDTH, offset, threshold, near + n * V, total);
    }
    for (int v = 0; v < V; ++v) {
        float* const sum = seen.sum.get() + first_mention + v * LANES;
        float* const lost = seen.lost.get() + first_mention + v * LANES;
        if (lanes_above(Vec{} + LARGE_TOTAL, total[v]) != ALL_LANES)
            move_offset(scores + v * LANES, WIDTH, count, offset + v * LANES, sum, lost, total[v]);
        // Kahan's sum: after one large term the blocks of a large table are each below its rounding, and all would go.
        const Vec old_sum = load(sum), added = total[v] - load(lost);
        const Vec new_sum = old_sum + added;
        store(lost, (new_sum - old_sum) - added);
        store(sum, new_sum);
    }
    uint64_t words[WORDS];
    std::memcpy(words, near, sizeof near);
    uint16_t places[BLOCK * WIDTH + 2];
    const int64_t taken = places_of_bits(words, places);
    for (int64_t i = 0; i < taken; ++i) {
        const int64_t at = places[i] / MASK_BITS * LANES + places[i] % MASK_BITS, lane = at % WIDTH;
        if (scores[at] > threshold[lane]) seen.take(first_mention + lane, scores[at], first_entity + at / WIDTH);
    }
}

// Joins what the parts have seen of one mention: log-sum-exp, neighbours in order, their weighted sum.
void finish_mention(const std::vector<Seen>& parts, int64_t mention, const float* table, int64_t stride, int64_t d,
                    int64_t k, int64_t first_row, float* lse, float* topk_val, int64_t* topk_idx, float* att) {
    double highest = -INF, sum = 0;
    std::vector<Candidate> all;
    for (const Seen& part : parts) {
        highest = std::max<double>(highest, part.offset[mention]);
        const Candidate* const mine = part.candidates.data() + mention * 2 * part.k;
        all.insert(all.end(), mine, mine + part.found[mention]);
    }
    for (const Seen& part : parts)
        sum += std::exp2(part.offset[mention] - highest) * (double(part.sum[mention]) - part.lost[mention]);
    *lse = static_cast<float>((highest + std::log2(sum)) / LOG2E);
    // Scores that are NaN or -inf are no candidates: the caller computes the mention anew.
    if (static_cast<int64_t>(all.size()) < k) *lse = NOT_A_NUMBER;
    all.resize(std::max<size_t>(all.size(), k), candidate(-INF, 0));
    std::nth_element(all.begin(), all.begin() + k - 1, all.end(), std::greater<>());
    std::sort(all.begin(), all.begin() + k, std::greater<>());
    std::vector<double> weight(k);
    double total = 0;
    for (int64_t j = 0; j < k; ++j) {
        topk_val[j] = score_of(all[j]);
        topk_idx[j] = entity_of(all[j]) + first_row;
        total += weight[j] = std::exp(static_cast<double>(topk_val[j]) - topk_val[0]);
    }
    std::fill_n(att, d, 0.0f);
    for (int64_t j = 0; j < k; ++j) {
        const float share = static_cast<float>(weight[j] / total);
        const float* const row = table + entity_of(all[j]) * stride;
        for (int64_t x = 0; x < d; ++x) att[x] += share * row[x];
    }
}

// Gradient of the scores of a block, in place: g_lse * P, and at a mention's gold entity also g_gold. Close to loss 0
// the two cancel: there P - 1 is computed as one number.
template <int V>
inline void score_gradients(const float* lse, const float* grad_lse, const float* grad_gold, const int32_t* gold,
                            int64_t first_entity, int64_t count, float* scores) {
    constexpr int WIDTH = V * LANES;
    int has_gold = 0;
    float at_gold[WIDTH] = {};
    for (int lane = 0; lane < WIDTH; ++lane)
        has_gold |= gold[lane] >= first_entity && gold[lane] < first_entity + count;
    if (has_gold) {
        for (int lane = 0; lane < WIDTH; ++lane)
            if (gold[lane] >= first_entity && gold[lane] < first_entity + count)
                at_gold[lane] = scores[(gold[lane] - first_entity) * WIDTH + lane];
    }
    for (int64_t n = 0; n < count; ++n)
        for (int v = 0; v < V; ++v) {
            float* const score = scores + (n * V + v) * LANES;
            const int at = v * LANES;
            store(score, load(grad_lse + at) * exp2_clamped((load(score) - load(lse + at)) * LOG2E));
        }
    if (!has_gold) return;
    for (int lane = 0; lane < WIDTH; ++lane)
        if (gold[lane] >= first_entity && gold[lane] < first_entity + count) {
            float& gradient = scores[(gold[lane] - first_entity) * WIDTH + lane];
            const float log_p = at_gold[lane] - lse[lane];
            if (log_p > LOG_HALF)
                gradient = grad_lse[lane] * std::expm1(log_p) + (grad_lse[lane] + grad_gold[lane]);
            else
                gradient += grad_gold[lane];
        }
}

// grad_panel [d][V * LANES] += sum over the block's entities of their row times their score gradients; X dimensions.
// Here and below the block is summed first: the running sum is larger, and is rounded once a block.
template <int V, int X>
inline void add_to_mentions(const float* gradients, const float* rows, int64_t stride, int64_t count, float* to) {
    Vec sum[X][V] = {};
    for (int64_t n = 0; n < count; ++n) {
        Vec gradient[V];
        for (int v = 0; v < V; ++v) {
            gradient[v] = load(gradients + (n * V + v) * LANES);
            keep(gradient[v]);
        }
        for (int x = 0; x < X; ++x)
            for (int v = 0; v < V; ++v) sum[x][v] += gradient[v] * rows[n * stride + x];
    }
    for (int x = 0; x < X; ++x)
        for (int v = 0; v < V; ++v) {
            float* const place = to + (x * V + v) * LANES;
            store(place, load(place) + sum[x][v]);
        }
}

// block [N][padded_d], X vectors of dimensions += sum over the `width` mentions of a panel of h times their gradients.
template <int N, int X>
inline void add_to_entities(const float* gradients, const float* h, int64_t padded_d, int64_t width, float* to) {
    Vec sum[N][X] = {};
    for (int64_t lane = 0; lane < width; ++lane) {
        Vec row[X];
        for (int x = 0; x < X; ++x) {
            row[x] = load(h + lane * padded_d + x * LANES);
            keep(row[x]);
        }
        for (int n = 0; n < N; ++n)
            for (int x = 0; x < X; ++x) sum[n][x] += row[x] * gradients[n * width + lane];
    }
    for (int n = 0; n < N; ++n)
        for (int x = 0; x < X; ++x) {
            float* const place = to + n * padded_d + x * LANES;
            store(place, load(place) + sum[n][x]);
        }
}

template <int V>
inline void add_to_panel(const float* gradients, const float* rows, int64_t stride, int64_t d, int64_t count,
                         float* to) {
    int64_t x = 0;
    for (; x + ENTITIES <= d; x += ENTITIES)
        add_to_mentions<V, ENTITIES>(gradients, rows + x, stride, count, to + x * V * LANES);
    for (; x < d; ++x) add_to_mentions<V, 1>(gradients, rows + x, stride, count, to + x * V * LANES);
}

template <int N>
inline void add_to_entity_rows(const float* gradients, const float* h, int64_t padded_d, int64_t width, float* to) {
    int64_t x = 0;
    for (; x + 3 * LANES <= padded_d; x += 3 * LANES) add_to_entities<N, 3>(gradients, h + x, padded_d, width, to + x);
    for (; x < padded_d; x += LANES) add_to_entities<N, 1>(gradients, h + x, padded_d, width, to + x);
}

template <int V>
inline void add_to_block(const float* gradients, const float* h, int64_t padded_d, int64_t count, float* to) {
    int64_t n = 0;
    for (; n + ENTITIES <= count; n += ENTITIES)
        add_to_entity_rows<ENTITIES>(gradients + n * V * LANES, h, padded_d, V * LANES, to + n * padded_d);
    for (; n < count; ++n) add_to_entity_rows<1>(gradients + n * V * LANES, h, padded_d, V * LANES, to + n * padded_d);
}

// Whether the table's gradient needs this tile: a share of some mention reaches the filter, or its gold entity is here.
template <int V>
inline bool tile_counts(const float* scores, const float* lse, const int32_t* gold, int64_t first_entity, int64_t count,
                        float filter_eps) {
    const float log_eps = std::log(filter_eps);
    uint32_t below = ALL_LANES;
    for (int v = 0; v < V; ++v) {
        const Vec bound = load(lse + v * LANES) + log_eps;
        for (int64_t n = 0; n < count; ++n) below &= lanes_above(bound, load(scores + (n * V + v) * LANES));
    }
    bool counts = below != ALL_LANES;
    for (int lane = 0; lane < V * LANES; ++lane)
        counts |= gold[lane] >= first_entity && gold[lane] < first_entity + count;
    return counts;
}

inline int64_t part_start(int64_t part, int64_t parts, int64_t entities) {
    // On block borders, so that only the last block of the table can be short.
    const int64_t blocks = (entities + BLOCK - 1) / BLOCK;
    return std::min(entities, blocks * part / parts * BLOCK);
}

// The dense part of the gradients: through lse and gold_logit, over all entities.
void backward_dense(const float* h, int64_t M, const float* table, int64_t E, int64_t stride, int64_t d,
                    int64_t first_row, const int64_t* gold, const float* lse, const float* grad_lse,
                    const float* grad_gold, float filter_eps, int64_t parts, float* grad_h, float* grad_table) {
    std::vector<int64_t> active;  // mentions without gold have no gradient here
    for (int64_t m = 0; m < M; ++m)
        if ((grad_lse && grad_lse[m] != 0) || (grad_gold && gold[m] >= 0 && grad_gold[m] != 0)) active.push_back(m);
    const Panels panels(active.size());
    const int64_t padded_d = (d + LANES - 1) / LANES * LANES;
    const Floats packed = transpose(h, active, d, panels);
    const Floats rows_of_h = zeros(panels.lanes * padded_d);
    const Floats lane_lse = zeros(panels.lanes), lane_grad_lse = zeros(panels.lanes);
    const Floats lane_grad_gold = zeros(panels.lanes);
    std::vector<int32_t> lane_gold(panels.lanes, -1);
    std::fill_n(lane_lse.get(), panels.lanes, INF);  // empty lanes have shares of 0
    for (size_t i = 0; i < active.size(); ++i) {
        const int64_t m = active[i];
        std::memcpy(rows_of_h.get() + i * padded_d, h + m * d, d * sizeof(float));
        lane_lse[i] = lse[m];
        lane_grad_lse[i] = grad_lse ? grad_lse[m] : 0;
        if (gold && gold[m] >= 0) {
            lane_gold[i] = static_cast<int32_t>(gold[m] - first_row);
            lane_grad_gold[i] = grad_gold ? grad_gold[m] : 0;
        }
    }
    const int64_t stretch = stretch_of(stride);
    std::vector<Floats> part_grad_h, part_panel, part_rows;
    for (int64_t part = 0; part < parts; ++part) {
        part_grad_h.push_back(zeros(grad_h ? panels.lanes * d : 0));
        part_panel.push_back(zeros(grad_h ? PANEL * d : 0));
        part_rows.push_back(zeros(grad_table ? stretch * padded_d : 0));
    }
#pragma omp parallel for schedule(static, 1) num_threads(parts)
    for (int64_t part = 0; part < parts; ++part) {
        float* const to_rows = part_rows[part].get();
        float* const to_panel = part_panel[part].get();
        const int64_t part_end = part_start(part + 1, parts, E);
        for (int64_t start = part_start(part, parts, E); start < part_end; start += stretch) {
            const int64_t end = std::min(part_end, start + stretch);
            if (grad_table) std::memset(to_rows, 0, (end - start) * padded_d * sizeof(float));
            for_each_panel(panels, [&](auto vectors, int64_t panel) {
                constexpr int V = decltype(vectors)::value;
                const int64_t lane = panel * PANEL;
                alignas(64) float scores[BLOCK * V * LANES];
                for (int64_t first = start; first < end; first += BLOCK) {
                    const int64_t count = std::min(BLOCK, end - first);
                    const float* const rows = table + first * stride;
                    if (panel == 0) fetch_ahead(rows, stride, count);
                    dot_block<V>(packed.get() + lane * d, rows, stride, d, count, scores);
                    const bool counts =
                        grad_table && (filter_eps <= 0 || tile_counts<V>(scores, lane_lse.get() + lane,
                                                                         lane_gold.data() + lane, first, count,
                                                                         filter_eps));
                    if (!grad_h && !counts) continue;
                    score_gradients<V>(lane_lse.get() + lane, lane_grad_lse.get() + lane, lane_grad_gold.get() + lane,
                                       lane_gold.data() + lane, first, count, scores);
                    if (grad_h) add_to_panel<V>(scores, rows, stride, d, count, to_panel);
                    if (counts)
                        add_to_block<V>(scores, rows_of_h.get() + lane * padded_d, padded_d, count,
                                        to_rows + (first - start) * padded_d);
                }
                // Summed apart for each stretch, for the same reason as each block.
                for (int64_t i = 0; grad_h && i < V * LANES * d; ++i) {
                    part_grad_h[part][lane * d + i] += to_panel[i];
                    to_panel[i] = 0;
                }
            });
            for (int64_t n = start; grad_table && n < end; ++n)
                std::memcpy(grad_table + n * d, to_rows + (n - start) * padded_d, d * sizeof(float));
        }
    }
    if (!grad_h) return;
    for (size_t i = 0; i < active.size(); ++i) {
        const int64_t panel = i / PANEL, width = panels.vectors(panel) * LANES;
        for (int64_t x = 0; x < d; ++x)
            for (const Floats& part : part_grad_h)
                grad_h[active[i] * d + x] += part[panel * PANEL * d + x * width + i % PANEL];
    }
}

// The gradients through att and topk_val: k rows of the table for each mention. topk_idx are rows of the whole table.
void backward_neighbours(const float* h, int64_t M, const float* table, int64_t E, int64_t stride, int64_t d,
                         int64_t first_row, int64_t k, const float* att, const float* topk_val,
                         const int64_t* topk_idx, const float* grad_att, const float* grad_topk_val, int64_t parts,
                         float* grad_h, float* grad_table) {
    const Floats weights = zeros(M * k), grad_scores = zeros(M * k);
#pragma omp parallel for schedule(static) num_threads(parts)
    for (int64_t m = 0; m < M; ++m) {
        float* const weight = weights.get() + m * k;
        float* const grad_score = grad_scores.get() + m * k;
        double total = 0;
        for (int64_t j = 0; j < k; ++j) total += weight[j] = std::exp(topk_val[m * k + j] - topk_val[m * k]);
        for (int64_t j = 0; j < k; ++j) {
            const float* const row = table + (topk_idx[m * k + j] - first_row) * stride;
            weight[j] = static_cast<float>(weight[j] / total);
            // The difference first: rows close to their mean would cancel after the product.
            double towards = 0;
            if (grad_att)
                for (int64_t x = 0; x < d; ++x) towards += grad_att[m * d + x] * (row[x] - att[m * d + x]);
            grad_score[j] = static_cast<float>(weight[j] * towards) + (grad_topk_val ? grad_topk_val[m * k + j] : 0);
            if (grad_h)
                for (int64_t x = 0; x < d; ++x) grad_h[m * d + x] += grad_score[j] * row[x];
        }
    }
    if (!grad_table) return;
    // Each part owns a range of entities and looks through all neighbours: no two write one row, order is fixed.
#pragma omp parallel for schedule(static, 1) num_threads(parts)
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t start = part_start(part, parts, E), end = part_start(part + 1, parts, E);
        for (int64_t i = 0; i < M * k; ++i) {
            const int64_t entity = topk_idx[i] - first_row;
            if (entity < start || entity >= end) continue;
            const int64_t m = i / k;
            float* const to = grad_table + entity * d;
            for (int64_t x = 0; x < d; ++x) {
                const float through_att = grad_att ? weights[i] * grad_att[m * d + x] : 0;
                to[x] += through_att + grad_scores[i] * h[m * d + x];
            }
        }
    }
}

}  // namespace

// Both functions: h [M, d] dense; table points to row `first_row` of the whole table, E rows of d floats, `stride`
// floats apart; gold [M] are rows of the whole table, negative where there is none, or null; 1 <= k <= E < 2^31.
// They return 0, or 1 where memory ran out.

extern "C" int kebiolm_knn_forward(const float* h, int64_t M, const float* table, int64_t E, int64_t stride, int64_t d,
                                   int64_t first_row, const int64_t* gold, int64_t k, int64_t threads, float* att,
                                   float* lse, float* gold_logit, float* topk_val, int64_t* topk_idx) try {
    const int64_t parts = std::min(threads, E), stretch = stretch_of(stride);
    const Panels panels(M);
    std::vector<int64_t> mentions(M);
    for (int64_t m = 0; m < M; ++m) mentions[m] = m;
    const Floats packed = transpose(h, mentions, d, panels);
    std::vector<Seen> seen;
    for (int64_t part = 0; part < parts; ++part)
        seen.emplace_back(M, panels.lanes, std::min(k, part_start(part + 1, parts, E) - part_start(part, parts, E)));
#pragma omp parallel for schedule(static, 1) num_threads(parts)
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t part_end = part_start(part + 1, parts, E);
        for (int64_t start = part_start(part, parts, E); start < part_end; start += stretch)
            for_each_panel(panels, [&](auto vectors, int64_t panel) {
                const int64_t end = std::min(part_end, start + stretch);
                for (int64_t first = start; first < end; first += BLOCK)
                    see_block<decltype(vectors)::value>(packed.get() + panel * PANEL * d, panel * PANEL,
                                                        table + first * stride, stride, d, first,
                                                        std::min(BLOCK, end - first), seen[part]);
            });
    }
#pragma omp parallel for schedule(static) num_threads(parts)
    for (int64_t m = 0; m < M; ++m)
        finish_mention(seen, m, table, stride, d, k, first_row, lse + m, topk_val + m * k, topk_idx + m * k,
                       att + m * d);
    std::fill_n(gold_logit, M, 0.0f);
    if (gold)
        for_each_panel(panels, [&](auto vectors, int64_t panel) {
            constexpr int V = decltype(vectors)::value;
            alignas(64) float scores[V * LANES];
            for (int64_t m = panel * PANEL; m < std::min(M, (panel + 1) * PANEL); ++m) {
                if (gold[m] < 0) continue;
                // The same code as above, hence the same bits: the loss is never below 0 by more than rounding of lse.
                dot<V, 1>(packed.get() + panel * PANEL * d, table + (gold[m] - first_row) * stride, stride, d, scores);
                gold_logit[m] = scores[m - panel * PANEL];
            }
        });
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// grad_att, grad_lse, grad_gold, grad_topk_val: null where no gradient comes. filter_eps: a block's shares in a panel
// add nothing to grad_table where all are below it and no gold entity is among them; 0: all add. grad_h [M, d] and
// grad_table [E, d] (its row 0 belongs to row `first_row`): null where none is wanted, else overwritten.
extern "C" int kebiolm_knn_backward(const float* h, int64_t M, const float* table, int64_t E, int64_t stride,
                                    int64_t d, int64_t first_row, const int64_t* gold, int64_t k, int64_t threads,
                                    const float* att, const float* lse, const float* topk_val,
                                    const int64_t* topk_idx, const float* grad_att, const float* grad_lse,
                                    const float* grad_gold, const float* grad_topk_val, float filter_eps,
                                    float* grad_h, float* grad_table) try {
    const int64_t parts = std::min(threads, E);
    if (grad_h) std::fill_n(grad_h, M * d, 0.0f);
    if (grad_lse || (grad_gold && gold))
        backward_dense(h, M, table, E, stride, d, first_row, gold, lse, grad_lse, gold ? grad_gold : nullptr,
                       filter_eps, parts, grad_h, grad_table);
    else if (grad_table)
        std::fill_n(grad_table, E * d, 0.0f);
    if (grad_att || grad_topk_val)
        backward_neighbours(h, M, table, E, stride, d, first_row, k, att, topk_val, topk_idx, grad_att, grad_topk_val,
                            parts, grad_h, grad_table);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
