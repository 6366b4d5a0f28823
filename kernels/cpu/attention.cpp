// Paged attention: writes the step's keys and values, then attends, for ragged batches of decode and prefill rows.
//
// Flash attention (online softmax over tiles of kTile keys) with two fixed habits that make a query's result
// independent of the batch, of chunking and of the number of threads, bit for bit: tiles start at multiples of
// kTile positions, and the online softmax restarts at multiples of kSplit positions, the parts being merged in
// order. Which thread computes which part is then free: long contexts are split over threads (flash decoding).
#include <algorithm>
#include <iterator>
#include <vector>

#include "gemm.h"
#include "graph.h"
#include "pool.h"

namespace penstock {
namespace {

constexpr int kTile = 64;        // keys of a tile
constexpr int kSplit = 512;      // keys of a part; a multiple of kTile
constexpr int kQueryRows = 192;  // query rows (tokens x heads of one KV head) that share a repacked tile
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Spec {
    int num_heads, num_kv_heads, head_dim, page_size;
    int window;      // visible keys, 0 for all
    float scale;
    float soft_cap;  // 0 for none
    int first;       // the first position that later ones see
};

// One unit of work: a block of query tokens of a row, some KV heads, some of the parts of its context.
struct Item {
    int slot, token, tokens;    // first query token in the flat batch, and how many
    int position;               // of the first query token
    int kv_head, kv_heads;
    int head, heads;            // of the query heads that share a KV head
    int part_begin, part_end;   // in units of kSplit positions
    long partial;               // where its parts go, counted in query rows; -1 when it holds all of them
    float cost;

    int rows() const { return tokens * heads; }
    int context() const { return position + tokens; }
};

struct Plan {
    Spec spec;
    std::vector<Item> items;   // to compute
    std::vector<Item> merges;  // blocks whose parts lie in the workspace
    std::vector<int> token_slot, token_position;
    const int *page_table = nullptr;
    long page_table_stride = 0;
    long partial_rows = 0;
    float cost = 0;
};

struct Strides {  // in elements
    long token, head;
};
struct PageStrides {
    long page, offset, head;
};

template <class T> struct Tensors {
    const T *q, *k, *v;
    Strides q_strides, k_strides, v_strides;
    T *k_pages, *v_pages;
    PageStrides k_page_strides, v_page_strides;
    T *out;  // contiguous
};

int divide_up(int a, int b) { return (a + b - 1) / b; }

// The first position that any query of the item sees.
int first_visible(const Spec &spec, int position) {
    const int first = std::min(spec.first, position);
    return spec.window > 0 ? std::max(first, position - spec.window + 1) : first;
}

void build(Plan &plan, int rows, const int *slots, const int *starts, const int *q_start) {
    const Spec &spec = plan.spec;
    const int group = spec.num_heads / spec.num_kv_heads;
    const int threads = parallel_threads();
    plan.items.clear(), plan.merges.clear();
    plan.token_slot.resize(q_start[rows]), plan.token_position.resize(q_start[rows]);
    plan.partial_rows = 0, plan.cost = 0;

    // A query that sits alone takes several KV heads at once, so that its pages are read front to back.
    const int alone = std::max(1, std::min(spec.num_kv_heads, rows * spec.num_kv_heads / (threads * 8)));
    std::vector<Item> blocks;
    bool uneven = false;
    for (int row = 0; row < rows; ++row) {
        const int length = q_start[row + 1] - q_start[row];
        for (int t = 0; t < length; ++t) {
            plan.token_slot[q_start[row] + t] = slots[row];
            plan.token_position[q_start[row] + t] = starts[row] + t;
        }
        uneven |= length > 1;
        for (int head = 0; head < group; head += kQueryRows) {
            const int heads = std::min(group - head, kQueryRows);
            const int height = std::max(1, kQueryRows / heads);
            const int cuts = divide_up(length, height);
            for (int cut = 0; cut < cuts; ++cut) {
                const int begin = static_cast<int>(static_cast<long>(cut) * length / cuts);
                const int end = static_cast<int>(static_cast<long>(cut + 1) * length / cuts);
                const int at_once = (end - begin) * heads <= 16 ? alone : 1;
                for (int kv = 0; kv < spec.num_kv_heads; kv += at_once) {
                    Item item{};
                    item.slot = slots[row], item.token = q_start[row] + begin, item.tokens = end - begin;
                    item.position = starts[row] + begin;
                    item.kv_head = kv, item.kv_heads = std::min(at_once, spec.num_kv_heads - kv);
                    item.head = head, item.heads = heads;
                    const int low = first_visible(spec, item.position);
                    item.part_begin = low / kSplit, item.part_end = divide_up(item.context(), kSplit);
                    item.partial = -1;
                    const float tiles = static_cast<float>(item.context() - low) / kTile + 1;
                    item.cost = tiles * item.kv_heads * spec.head_dim * (24.0f + 3.0f * item.rows());
                    plan.cost += item.cost;
                    blocks.push_back(item);
                }
            }
        }
    }

    const float target = plan.cost / (3.0f * threads);
    for (const Item &block : blocks) {
        const int parts = block.part_end - block.part_begin;
        const int pieces = threads == 1 ? 1 : std::min(parts, static_cast<int>(block.cost / target) + 1);
        if (pieces <= 1) {
            plan.items.push_back(block);
            continue;
        }
        Item merge = block;
        merge.partial = plan.partial_rows;
        plan.merges.push_back(merge);
        const long part_rows = static_cast<long>(block.kv_heads) * block.rows();
        for (int piece = 0; piece < pieces; ++piece) {
            Item item = block;
            item.part_begin = block.part_begin + piece * parts / pieces;
            item.part_end = block.part_begin + (piece + 1) * parts / pieces;
            item.partial = plan.partial_rows + (item.part_begin - block.part_begin) * part_rows;
            item.cost = block.cost * (item.part_end - item.part_begin) / parts;
            plan.items.push_back(item);
        }
        plan.partial_rows += parts * part_rows;
    }
    if (uneven)  // the longest first, so that no thread is left with one at the end
        std::stable_sort(plan.items.begin(), plan.items.end(),
                         [](const Item &a, const Item &b) { return a.cost > b.cost; });
}

// ---- tiles: keys transposed to panels of words [dim][key], values to panels of words [key][dim] ----

// The rows of the tile after this one, asked for while this one is packed: pages lie scattered, so the hardware does
// not see the next one coming, and all at once they would fill the queues that this one's loads need.
template <class T> struct Ahead {
    const T *const *rows;
    long offset;
    int used, dims;

    void fetch(int first, int count) const {
        for (int i = first; i < std::min(first + count, used); ++i)
            for (int at = 0; at < dims; at += 64 / static_cast<int>(sizeof(T))) prefetch(rows[i] + offset + at);
    }
};

template <class T>
void pack_keys(const T *const *rows, int used, int dims, uint32_t *out, const Ahead<T> &ahead) {
    const int words = dims * static_cast<int>(sizeof(T)) / 4;
    auto place = [&](int key, int word) { return out + (key / kPanel * words + word) * kPanel + key % kPanel; };
#if defined(PENSTOCK_AVX512)
    const int blocks = std::min(16, (words + 15) / 16);
    for (int key = 0; key < used; key += 16) {
        const T *row[16];
        for (int i = 0; i < 16; ++i) row[i] = rows[std::min(key + i, used - 1)];  // beyond `used`: any finite key
        for (int word = 0; word < words; word += 16) {
            ahead.fetch(key + word / 16 * 16 / blocks, 16 / blocks);
            const int width = std::min(16, words - word);
            const __mmask16 mask = static_cast<__mmask16>((1u << width) - 1u);
            __m512i r[16];
            for (int i = 0; i < 16; ++i)
                r[i] = _mm512_maskz_loadu_epi32(mask, reinterpret_cast<const uint32_t *>(row[i]) + word);
            transpose16(r);
            uint32_t *to = place(key, word);
            if (width == 16)
                for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * kPanel, r[i]);
            else
                for (int i = 0; i < width; ++i) _mm512_storeu_si512(to + i * kPanel, r[i]);
        }
    }
#else
    for (int key = 0; key < (used + kPanel - 1) / kPanel * kPanel; ++key) {
        ahead.fetch(key, 1);
        const auto *row = reinterpret_cast<const unsigned char *>(rows[std::min(key, used - 1)]);
        for (int word = 0; word < words; ++word) std::memcpy(place(key, word), row + 4l * word, 4);
    }
#endif
}

// Values of two keys to a word (bfloat16) or of one (float32); word w of panel p at (p * kTile / steps + w) * kPanel.
inline void pack_values(const float *const *rows, int used, int dims, uint32_t *out, const Ahead<float> &ahead) {
    for (int key = 0; key < used; ++key) {
        ahead.fetch(key, 1);
        for (int dim = 0; dim < dims; dim += kPanel) {
            float *to = reinterpret_cast<float *>(out) + (dim / kPanel * kTile + key) * kPanel;
            const int width = std::min(kPanel, dims - dim);
            std::memcpy(to, rows[key] + dim, 4ul * width);
            if (width < kPanel) std::memset(to + width, 0, 4ul * (kPanel - width));
        }
    }
}

inline void pack_values(const bf16 *const *rows, int used, int dims, uint32_t *out, const Ahead<bf16> &ahead) {
    static const bf16 zeros[1024] = {};
    for (int key = 0; key < used; key += 2) {
        const bf16 *even = rows[key], *odd = key + 1 < used ? rows[key + 1] : zeros;
        ahead.fetch(key, 2);
        int dim = 0;
        auto place = [&](int d) { return out + (d / kPanel * (kTile / 2) + key / 2) * kPanel + d % kPanel; };
#if defined(PENSTOCK_AVX512)
        alignas(64) static const uint16_t low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
        const __m512i first = _mm512_load_si512(low);
        const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
        for (; dim + 32 <= dims; dim += 32) {
            const __m512i a = _mm512_loadu_si512(even + dim), b = _mm512_loadu_si512(odd + dim);
            uint32_t *to = place(dim);
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, first, b));
            _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(a, second, b));
        }
#endif
        for (; dim < dims; ++dim) *place(dim) = even[dim].bits | static_cast<uint32_t>(odd[dim].bits) << 16;
        for (; dim % kPanel != 0; ++dim) *place(dim) = 0;
    }
}

// ---- softmax ----

struct Softmax {
    float *best, *total;  // per row: running maximum (log2 domain) and sum of the weights relative to it

    Softmax operator+(long rows) const { return {best + rows, total + rows}; }
};

// Raw scores (height, kTile) of up to kRows rows to weights, of which the first kTile / steps words are used; a row
// sees the keys [begin, end). Returns the factors by which earlier sums of each row must shrink.
template <class T>
inline vf weigh(int height, float *scores, const int *begin, const int *end, int used, const Spec &spec,
                Softmax state, T *weights) {
    constexpr bool coarse = sizeof(T) == 2;
    const int vectors = (used + kLanes - 1) / kLanes;
    const float factor = spec.soft_cap > 0 ? kLog2e : spec.scale * kLog2e;
    const vf scale = splat(factor);
    vf tops[kLanes];
    for (int r = 0; r < height; ++r) {
        float *row = scores + r * kTile;
        if (spec.soft_cap > 0)
            for (int v = 0; v < vectors; ++v) {
                const vf capped = tanh(load(row + v * kLanes) * splat(spec.scale / spec.soft_cap));
                store(row + v * kLanes, splat(spec.soft_cap) * capped);
            }
        if (begin[r] > 0 || end[r] < vectors * kLanes) {
            for (int i = 0; i < std::min(begin[r], vectors * kLanes); ++i) row[i] = -kInfinity;
            for (int i = std::max(0, end[r]); i < vectors * kLanes; ++i) row[i] = -kInfinity;
        }
        vf top = load(row);
        for (int v = 1; v < vectors; ++v) top = max(top, load(row + v * kLanes));
        tops[r] = top;
    }
    for (int r = height; r < kLanes; ++r) tops[r] = splat(-kInfinity);

    const vf old = load(state.best);
    const vf best = max(old, reduce_rows(tops, [](vf a, vf b) { return max(a, b); }) * scale);
    const vf reference = best == splat(-kInfinity) ? vf{} : best;  // a row that has seen nothing yet
    const vf shrink = exp2(old - reference);
    float references[kLanes];
    store(references, reference);

    vf sums[kLanes];
    for (int r = 0; r < height; ++r) {
        const float *row = scores + r * kTile;
        const vf minus = splat(-references[r]);
        vf partial = {};
        for (int v = 0; v < vectors; ++v) {
            const vf weight = exp2<coarse>(fma(load(row + v * kLanes), scale, minus));
            partial += weight;
            store(weights + r * kTile + v * kLanes, weight);
        }
        sums[r] = partial;
    }
    for (int r = height; r < kLanes; ++r) sums[r] = vf{};
    store(state.best, best);
    store(state.total,
          fma(load(state.total), shrink, reduce_rows(sums, [](vf a, vf b) { return a + b; })));
    return shrink;
}

// total += part, rows of `pitch` floats. Kept out of line: every merge must round alike.
__attribute__((noinline)) void merge_rows(int rows, int pitch, Softmax total, float *total_out, Softmax part,
                                          const float *part_out) {
    for (int r = 0; r < rows; ++r) {
        if (part.best[r] == -kInfinity) continue;
        const float best = std::max(total.best[r], part.best[r]);
        const float old_factor = exp2(splat(total.best[r] - best))[0];
        const float new_factor = exp2(splat(part.best[r] - best))[0];
        total.best[r] = best;
        total.total[r] = std::fma(total.total[r], old_factor, part.total[r] * new_factor);
        float *to = total_out + static_cast<long>(r) * pitch;
        const float *from = part_out + static_cast<long>(r) * pitch;
        for (int i = 0; i < pitch; i += kLanes)
            store(to + i, fma(load(to + i), splat(old_factor), load(from + i) * splat(new_factor)));
    }
}

template <class Mode> class Attention {
    using T = typename Mode::element;
    static constexpr int kWeightWords = kTile / Mode::steps;

  public:
    Attention(const Plan &plan, const Tensors<T> &tensors, float *workspace)
        : plan(plan), spec(plan.spec), t(tensors), dims(plan.spec.head_dim), words(dims / Mode::steps),
          pitch(divide_up(dims, kPanel) * kPanel), workspace(workspace),
          workspace_state{workspace + plan.partial_rows * pitch, workspace + plan.partial_rows * (pitch + 1)} {}

    static unsigned long workspace_bytes(const Plan &plan) {
        const long pitch = divide_up(plan.spec.head_dim, kPanel) * kPanel;
        return 4ul * plan.partial_rows * (pitch + 2);
    }

    void write_token(int token) const {
        const int position = plan.token_position[token];
        const long page = page_of(plan.token_slot[token], position);
        const long offset = position % spec.page_size;
        T *key = t.k_pages + page * t.k_page_strides.page + offset * t.k_page_strides.offset;
        T *value = t.v_pages + page * t.v_page_strides.page + offset * t.v_page_strides.offset;
        for (int head = 0; head < spec.num_kv_heads; ++head) {
            std::memcpy(key + head * t.k_page_strides.head, t.k + token * t.k_strides.token + head * t.k_strides.head,
                        sizeof(T) * dims);
            std::memcpy(value + head * t.v_page_strides.head,
                        t.v + token * t.v_strides.token + head * t.v_strides.head, sizeof(T) * dims);
        }
    }

    void compute(const Item &item) const {
        const int rows = item.rows(), all_rows = rows * item.kv_heads;
        Buffers b(*this, item);
        for (int kv = 0; kv < item.kv_heads; ++kv)
            for (int block = 0; block < blocks(rows); ++block) {
                const int first = first_row(rows, block);
                pack_queries(item, item.kv_head + kv, first, first_row(rows, block + 1),
                             b.queries + (static_cast<long>(kv) * rows + first) * words);
            }
        clear(all_rows, b.total_state, b.total);

        const int low = first_visible(spec, item.position), high = item.context();
        Rows here, next;
        next.find(*this, item, std::max(low, item.part_begin * kSplit) / kTile * kTile, high);
        for (int part = item.part_begin; part < item.part_end; ++part) {
            clear(all_rows, b.state, b.out);
            const int part_low = std::max(low, part * kSplit) / kTile * kTile;
            const int part_high = std::min(high, (part + 1) * kSplit);
            for (int tile_at = part_low; tile_at < part_high; tile_at += kTile) {
                std::swap(here, next);
                next.find(*this, item, tile_at + kTile, high);
                for (int kv = 0; kv < item.kv_heads; ++kv) {
                    const bool last = kv + 1 == item.kv_heads;
                    const Rows &then = last ? next : here;
                    const long key_offset = last ? 0 : t.k_page_strides.head;
                    const long value_offset = last ? 0 : t.v_page_strides.head;
                    pack_keys(here.keys, here.used, dims, b.keys, {then.keys, key_offset, then.used, dims});
                    pack_values(here.values, here.used, dims, b.values, {then.values, value_offset, then.used, dims});
                    attend(item, tile_at, here.used, kv, b);
                    here.advance(*this);
                }
            }
            if (item.partial >= 0) {
                const long at = item.partial + static_cast<long>(part - item.part_begin) * all_rows;
                std::memcpy(workspace + at * pitch, b.out, 4ul * all_rows * pitch);
                std::memcpy(workspace_state.best + at, b.state.best, 4ul * all_rows);
                std::memcpy(workspace_state.total + at, b.state.total, 4ul * all_rows);
            } else {
                merge_rows(all_rows, pitch, b.total_state, b.total, b.state, b.out);
            }
        }
        if (item.partial < 0) finish(item, b.total_state, b.total);
    }

    void merge(const Item &item) const {
        const int all_rows = item.rows() * item.kv_heads;
        auto *total = static_cast<float *>(scratch(Scratch::kAttention, 4ul * all_rows * (pitch + 2)));
        const Softmax state{total + static_cast<long>(all_rows) * pitch,
                            total + static_cast<long>(all_rows) * (pitch + 1)};
        clear(all_rows, state, total);
        for (int part = item.part_begin; part < item.part_end; ++part) {
            const long at = item.partial + static_cast<long>(part - item.part_begin) * all_rows;
            merge_rows(all_rows, pitch, state, total, workspace_state + at, workspace + at * pitch);
        }
        finish(item, state, total);
    }

  private:
    const Plan &plan;
    const Spec &spec;
    const Tensors<T> &t;
    const int dims, words, pitch;
    float *workspace;
    Softmax workspace_state;

    // The thread's scratch, cut up for an item.
    struct Buffers {
        uint32_t *keys, *values, *queries, *weights;
        float *scores, *out, *total;
        Softmax state, total_state;

        Buffers(const Attention &a, const Item &item) {
            const long rows = item.rows(), all_rows = rows * item.kv_heads, padded = all_rows + kLanes;
            const long sizes[] = {kTile * (long)a.words, kWeightWords * (long)a.pitch, all_rows * a.words,
                                  kRows * (long)kWeightWords, kRows * (long)kTile, all_rows * a.pitch,
                                  all_rows * a.pitch, padded, padded, padded, padded};
            long offsets[std::size(sizes)], words = 0;
            for (size_t i = 0; i < std::size(sizes); ++i) {
                offsets[i] = words;
                words += (sizes[i] + 31) / 16 * 16;
            }
            auto *base = static_cast<uint32_t *>(scratch(Scratch::kAttention, 4ul * words));
            auto floats = [&](int i) { return reinterpret_cast<float *>(base + offsets[i]); };
            keys = base + offsets[0], values = base + offsets[1], queries = base + offsets[2];
            weights = base + offsets[3];
            scores = floats(4), out = floats(5), total = floats(6);
            state = {floats(7), floats(8)}, total_state = {floats(9), floats(10)};
        }
    };

    // Where the keys and values of a tile lie, for one KV head.
    struct Rows {
        const T *keys[kTile], *values[kTile];
        int used = 0;

        // The item's first KV head.
        void find(const Attention &a, const Item &item, int tile_at, int high) {
            used = std::max(0, std::min(kTile, high - tile_at));
            for (int i = 0; i < used;) {
                const int position = tile_at + i, offset = position % a.spec.page_size;
                const long page = a.page_of(item.slot, position);
                const T *k = a.t.k_pages + page * a.t.k_page_strides.page + item.kv_head * a.t.k_page_strides.head;
                const T *v = a.t.v_pages + page * a.t.v_page_strides.page + item.kv_head * a.t.v_page_strides.head;
                const int run = std::min(used - i, a.spec.page_size - offset);
                for (int j = 0; j < run; ++j, ++i) {
                    keys[i] = k + (offset + j) * a.t.k_page_strides.offset;
                    values[i] = v + (offset + j) * a.t.v_page_strides.offset;
                }
            }
        }

        void advance(const Attention &a) {
            for (int i = 0; i < used; ++i)
                keys[i] += a.t.k_page_strides.head, values[i] += a.t.v_page_strides.head;
        }
    };

    static int blocks(int rows) { return divide_up(rows, kRows); }
    static int first_row(int rows, int block) { return block * rows / blocks(rows); }

    long page_of(int slot, int position) const {
        return plan.page_table[slot * plan.page_table_stride + position / spec.page_size];
    }

    // All query rows of one KV head against one packed tile.
    void attend(const Item &item, int tile_at, int used, int kv, const Buffers &b) const {
        const int rows = item.rows();
        for (int block = 0; block < blocks(rows); ++block) {
            const int first = first_row(rows, block), height = first_row(rows, block + 1) - first;
            const int oldest = item.position + first / item.heads;
            const int newest = item.position + (first + height - 1) / item.heads;
            // Keys that none of these queries sees would only add zeros.
            const int seen = std::min(used, newest + 1 - tile_at);
            if (seen <= 0 || first_visible(spec, oldest) >= tile_at + kTile) continue;
            int begin[kRows], end[kRows];
            for (int r = 0; r < height; ++r) {
                const int position = item.position + (first + r) / item.heads;
                begin[r] = first_visible(spec, position) - tile_at;
                end[r] = position + 1 - tile_at;
            }
            const long row = static_cast<long>(kv) * rows + first;
            float *out = b.out + row * pitch;
            tiles<Mode, 0>(height, divide_up(seen, kPanel), b.queries + row * words, b.keys, kPanel,
                           static_cast<long>(words) * kPanel, words, b.scores, kTile, false);
            const vf shrink = weigh(height, b.scores, begin, end, seen, spec, b.state + row,
                                    reinterpret_cast<T *>(b.weights));
            for (int r = 0; r < height; ++r)
                if (shrink[r] != 1.0f)
                    for (int i = 0; i < pitch; i += kLanes)
                        store(out + r * pitch + i, load(out + r * pitch + i) * splat(shrink[r]));
            tiles<Mode, kWeightWords>(height, pitch / kPanel, b.weights, b.values, kPanel,
                                      static_cast<long>(kWeightWords) * kPanel, divide_up(seen, Mode::steps), out,
                                      pitch, true);
        }
    }

    void pack_queries(const Item &item, int kv_head, int first, int last, uint32_t *out) const {
        const int height = last - first;
        for (int r = first; r < last; ++r) {
            const long token = item.token + r / item.heads;
            const int head = kv_head * (spec.num_heads / spec.num_kv_heads) + item.head + r % item.heads;
            const auto *row =
                reinterpret_cast<const unsigned char *>(t.q + token * t.q_strides.token + head * t.q_strides.head);
            for (int w = 0; w < words; ++w) std::memcpy(out + w * height + r - first, row + 4l * w, 4);
        }
    }

    void clear(int rows, Softmax state, float *out) const {
        for (int r = 0; r < rows; ++r) state.best[r] = -kInfinity, state.total[r] = 0;
        std::memset(out, 0, 4ul * rows * pitch);
    }

    void finish(const Item &item, Softmax state, const float *out) const {
        const int group = spec.num_heads / spec.num_kv_heads;
        for (int kv = 0; kv < item.kv_heads; ++kv)
            for (int r = 0; r < item.rows(); ++r) {
                const long at = static_cast<long>(kv) * item.rows() + r;
                const int head = (item.kv_head + kv) * group + item.head + r % item.heads;
                const long token = item.token + r / item.heads;
                T *to = t.out + (token * spec.num_heads + head) * dims;
                const vf factor = splat(1.0f / state.total[at]);
                each_vector(dims, [&](int i, int n) { store_n(to + i, load(out + at * pitch + i) * factor, n); });
            }
    }
};

template <class Mode> void run(const Plan &plan, const Tensors<typename Mode::element> &tensors) {
    auto *workspace = plan.partial_rows == 0 ? nullptr
                                             : static_cast<float *>(scratch(
                                                   Scratch::kSplit, Attention<Mode>::workspace_bytes(plan)));
    const Attention<Mode> attention(plan, tensors, workspace);
    const int tokens = static_cast<int>(plan.token_slot.size());
    const int run_length = 64, runs = divide_up(tokens, run_length);
    auto write = [&](int index) {
        for (int i = index * run_length; i < std::min(tokens, (index + 1) * run_length); ++i) attention.write_token(i);
    };
    if (runs > 2) parallel_for(runs, write);
    else
        for (int i = 0; i < runs; ++i) write(i);

    const int items = static_cast<int>(plan.items.size()), merges = static_cast<int>(plan.merges.size());
    if (plan.cost < 1e5f)
        for (int i = 0; i < items; ++i) attention.compute(plan.items[i]);
    else
        parallel_for(items, [&](int i) { attention.compute(plan.items[i]); });
    parallel_for(merges, [&](int i) { attention.merge(plan.merges[i]); });
}

}  // namespace
}  // namespace penstock

using namespace penstock;

extern "C" {

void *penstock_attention_new(int num_heads, int num_kv_heads, int head_dim, int page_size, int window, float scale,
                             float soft_cap, int first) {
    Plan *plan = new Plan;
    plan->spec = {num_heads, num_kv_heads, head_dim, page_size, window, scale, soft_cap, first};
    return plan;
}

void penstock_attention_free(void *plan) { delete static_cast<Plan *>(plan); }

// slots, starts (rows,), q_start (rows + 1,): read now. page_table: read by every run, must outlive them.
void penstock_attention_plan(void *opaque, int rows, const int *slots, const int *starts, const int *q_start,
                             const int *page_table, long page_table_stride) {
    Plan &plan = *static_cast<Plan *>(opaque);
    plan.page_table = page_table, plan.page_table_stride = page_table_stride;
    build(plan, rows, slots, starts, q_start);
}

// Strides in elements: (token, head) of q, k, v; (page, offset, head) of k_pages and v_pages. The last dimension of
// each is contiguous, out is contiguous.
void penstock_attention_run(void *opaque, int is_bf16, const void *q, const void *k, const void *v, void *k_pages,
                            void *v_pages, void *out, long q_token, long q_head, long k_token, long k_head,
                            long v_token, long v_head, long k_page, long k_offset, long k_page_head, long v_page,
                            long v_offset, long v_page_head) {
    const Plan &plan = *static_cast<Plan *>(opaque);
    auto typed = [&]<class Mode>(Mode) {
        using T = typename Mode::element;
        run<Mode>(plan, {static_cast<const T *>(q), static_cast<const T *>(k), static_cast<const T *>(v),
                         {q_token, q_head}, {k_token, k_head}, {v_token, v_head},
                         static_cast<T *>(k_pages), static_cast<T *>(v_pages),
                         {k_page, k_offset, k_page_head}, {v_page, v_offset, v_page_head},
                         static_cast<T *>(out)});
    };
    if (is_bf16) typed(BFloat16{});
    else typed(Float32{});
}
}

PENSTOCK_RECORDABLE(attention_run)
