// y = x W^T + bias over weights of 8 or 4 bits (quantized.h), multiplied as integers.
//
// An activation is rounded to 16 bits, relative to the largest of its block of 128 inputs. So the products of a block
// and their sum are exact in 32 bits in whatever order they are computed, and the scaled sums of blocks are added in
// float32 in rising order: a row's result depends neither on the rows beside it nor on which of two ways it is
// computed. Few rows take the codes apart in registers; many take the levels of a panel as int16, unpacked once.
#include "graph.h"
#include "pool.h"
#include "quantized.h"

namespace penstock {
namespace {

// ------------------------------------------------------------------------------------------------------ activations

// A block of rows as the tiles read it, its parts one after the other in memory.
struct PackedRows {
    uint32_t *words;  // (groups * kGroupPairs, rows) pairs of int16
    uint32_t *zeros;  // (groups, rows): what the codes' zero adds to the sum of a group, to be taken off
    float *scales;    // (blocks, rows)

    static long size(int groups, int rows) {
        return (groups * (kGroupPairs + 1l) + count_blocks(groups)) * rows;
    }
    PackedRows(uint32_t *at, int groups, int rows)
        : words(at),
          zeros(words + static_cast<long>(groups) * kGroupPairs * rows),
          scales(reinterpret_cast<float *>(zeros + static_cast<long>(groups) * rows)) {}
};

// The low halves of lanes.
inline void store_low(int16_t *p, vu x) {
#if defined(PENSTOCK_AVX512)
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16((__m512i)x));
#else
    *reinterpret_cast<vh_at *>(p) = __builtin_convertvector(x, vh);
#endif
}

inline vu max(vu a, vu b) { return a > b ? a : b; }

// The scale of up to kBlock activations; `rounded` are they in units of it, zero from `count` on.
template <class T> float round_block(const T *x, int count, int16_t *rounded) {
    alignas(64) float values[kBlock];
    if (count < kBlock) std::memset(values, 0, sizeof values);
    vu bits = {};  // of magnitudes: as integers they rise as the numbers do, and NaN is above all
    each_vector(count, [&](int i, int n) {
        const vf v = load_n(x + i, n);
        store(values + i, v);
        bits = max(bits, (vu)v & 0x7fffffffu);
    });
    uint32_t top = 0;
    for (int i = 0; i < kLanes; ++i) top = std::max(top, static_cast<uint32_t>(bits[i]));
    float largest;
    std::memcpy(&largest, &top, 4);
    const bool negligible = largest < kNegligible;
    const vf inverse = splat(negligible ? 0.0f : kLargestActivation / largest);
    const vf shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    for (int i = 0; i < kBlock; i += kLanes) store_low(rounded + i, (vu)(load(values + i) * inverse + shifter));
    return negligible ? 0.0f : largest / kLargestActivation;
}

template <class Codes, class T>
void pack_rows(const T *x, long ldx, int rows, int in_features, const PackedRows &out) {
    const int groups = count_groups(in_features);
    alignas(64) int16_t rounded[kBlock];
    for (int r = 0; r < rows; ++r)
        for (int block = 0; block * kBlock < in_features; ++block) {
            const int first = block * kBlock;
            out.scales[block * rows + r] =
                round_block(x + r * ldx + first, std::min(kBlock, in_features - first), rounded);
            for (int g = block * kBlockGroups; g < std::min(groups, (block + 1) * kBlockGroups); ++g) {
                const int16_t *group = rounded + g % kBlockGroups * kGroup;
                uint32_t *words = out.words + static_cast<long>(g) * kGroupPairs * rows + r;
                int32_t sum = 0;
                for (int i = 0; i < kGroup; ++i) sum += group[i];
                out.zeros[g * rows + r] = static_cast<uint32_t>(-Codes::zero * sum);
                uint32_t pairs[kGroupPairs];
                std::memcpy(pairs, group, sizeof pairs);
                for (int i = 0; i < kGroupPairs; ++i) words[i * rows] = pairs[i];
            }
        }
}

// --------------------------------------------------------------------------------------------------------- products

// Multipliers of kLanes columns. By intrinsics, because GCC converts vectors of 8 bits in many steps.
inline vu load_multipliers(const unsigned char *p) {
#if defined(PENSTOCK_AVX512)
    return (vu)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
#elif defined(PENSTOCK_AVX2)
    return (vu)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
#else
    vu out;
    for (int i = 0; i < kLanes; ++i) out[i] = static_cast<uint32_t>(static_cast<int8_t>(p[i]));
    return out;
#endif
}

// acc + a.low * b.low + a.high * b.high: the halves of each lane are int16.
inline vu dot(vu acc, vu a, vu b) {
#if defined(PENSTOCK_AVX512) && defined(__AVX512VNNI__)
    return (vu)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(PENSTOCK_AVX512)
    return acc + (vu)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(PENSTOCK_AVX2)
    return acc + (vu)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return acc + (vu)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    const vi low = ((vi)(a << 16) >> 16) * ((vi)(b << 16) >> 16), high = ((vi)a >> 16) * ((vi)b >> 16);
    return acc + (vu)low + (vu)high;
#endif
}

template <class Codes, int MR, int V, int J>
inline void add_pair(const vu (&raw)[V][Codes::words], const uint32_t *words, vu (&acc)[MR][V]) {
    vu w[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) w[v] = Codes::template unpack<J>(raw[v]);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
        const vu a = vu{} + words[J * MR + r];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) acc[r][v] = dot(acc[r][v], w[v], a);
    }
}

// C's row r is at c + r * ldc; what a block adds to it.
template <int MR, int V>
inline void add_block(const vu (&sum)[MR][V], const unsigned char *scales, long panel_bytes, const float *row_scales,
                      vf (&total)[MR][V]) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
        const vf scale = load(reinterpret_cast<const bf16 *>(scales + (v / 2) * panel_bytes) + (v % 2) * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r)
            total[r][v] = fma(__builtin_convertvector((vi)sum[r][v], vf) * scale, splat(row_scales[r]), total[r][v]);
    }
}

template <int MR, int V> inline void store_tile(const vf (&total)[MR][V], float *c, long ldc) {
    for (int r = 0; r < MR; ++r)
        for (int v = 0; v < V; ++v) store(c + r * ldc + v * kLanes, total[r][v]);
}

// Whether the panels after these are asked for meanwhile: so short streams end before the processor sees that they are
// streams. Measured, by rows: 20 to 30 % for up to 3 rows of 4 bits, 10 to 25 % for 3 rows of 8 bits and more; a loss
// elsewhere, where the loads alone keep memory busy.
template <class Codes, int MR> constexpr bool kFetch = Layout<Codes>::multiplied ? MR <= 3 : MR >= 3;

// C (MR, PANELS * kPanel) = the rows of x times panels, taken apart in registers.
template <class Codes, int MR, int PANELS>
inline void tile(PackedRows x, const unsigned char *panel, long panel_bytes, int groups, float *c, long ldc) {
    using L = Layout<Codes>;
    constexpr int V = 2 * PANELS;
    vf total[MR][V] = {};
    for (int left = groups; left > 0; left -= kBlockGroups) {
        const unsigned char *multipliers = panel + L::scale_bytes, *codes = panel + L::header_bytes;
        vu block[MR][V] = {};
        for (int g = std::min(left, kBlockGroups); g > 0; --g) {
            vu sum[MR][V];
#pragma GCC unroll 16
            for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
                for (int v = 0; v < V; ++v) sum[r][v] = (L::multiplied ? vu{} : block[r][v]) + x.zeros[r];
            x.zeros += MR;
#pragma GCC unroll 4
            for (int u = 0; u < kGroupUnits; ++u) {
                vu raw[V][Codes::words];
#pragma GCC unroll 16
                for (int v = 0; v < V; ++v)
#pragma GCC unroll 2
                    for (int i = 0; i < Codes::words; ++i) {
                        const unsigned char *at = codes + (v / 2) * panel_bytes + (i * kPanel + v % 2 * kLanes) * 4;
                        if constexpr (kFetch<Codes, MR>) prefetch(at + PANELS * panel_bytes);
                        raw[v][i] = *reinterpret_cast<const vu_at *>(at);
                    }
                add_pair<Codes, MR, V, 0>(raw, x.words, sum);
                add_pair<Codes, MR, V, 1>(raw, x.words, sum);
                add_pair<Codes, MR, V, 2>(raw, x.words, sum);
                add_pair<Codes, MR, V, 3>(raw, x.words, sum);
                x.words += kPairs * MR;
                codes += L::unit_bytes;
            }
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) {
                if constexpr (L::multiplied) {
                    const vu by = load_multipliers(multipliers + (v / 2) * panel_bytes + v % 2 * kLanes);
#pragma GCC unroll 16
                    for (int r = 0; r < MR; ++r) block[r][v] += sum[r][v] * by;
                } else {
#pragma GCC unroll 16
                    for (int r = 0; r < MR; ++r) block[r][v] = sum[r][v];
                }
            }
            multipliers += kPanel;
        }
        add_block<MR, V>(block, panel, panel_bytes, x.scales, total);
        x.scales += MR;
        panel = codes;
    }
    store_tile<MR, V>(total, c, ldc);
}

// As `tile`, for rows <= kRows known at run time and any number of panels.
template <class Codes, int MR = kRows>
inline void tiles(int rows, int panels, const PackedRows &x, const unsigned char *panel, long panel_bytes,
                  int groups, float *c, long ldc) {
    if constexpr (MR > 1) {
        if (rows < MR) return tiles<Codes, MR - 1>(rows, panels, x, panel, panel_bytes, groups, c, ldc);
    }
    constexpr int P = panels_at_once(MR);
    int p = 0;
    for (; p + P <= panels; p += P)
        tile<Codes, MR, P>(x, panel + p * panel_bytes, panel_bytes, groups, c + p * kPanel, ldc);
    for (; p < panels; ++p)
        tile<Codes, MR, 1>(x, panel + p * panel_bytes, panel_bytes, groups, c + p * kPanel, ldc);
}

// The levels of a panel as pairs of int16, (groups * kGroupPairs, kPanel) words.
template <class Codes> void unpack_panel(const unsigned char *panel, int groups, uint32_t *levels) {
    using L = Layout<Codes>;
    for (int g = 0; g < groups; ++g) {
        const unsigned char *block = panel + g / kBlockGroups * L::block_bytes;
        const unsigned char *codes = block + L::header_bytes + g % kBlockGroups * L::group_bytes;
        for (int v = 0; v < 2; ++v) {
            vpair by = vpair{} + 1;
            if constexpr (L::multiplied) {
                const vu m = load_multipliers(block + L::scale_bytes + g % kBlockGroups * kPanel + v * kLanes);
                by = (vpair)(m << 16 | (m & 0xffffu));
            }
            uint32_t *out = levels + static_cast<long>(g) * kGroupPairs * kPanel + v * kLanes;
            for (int u = 0; u < kGroupUnits; ++u, out += kPairs * kPanel) {
                vu raw[Codes::words];
                for (int i = 0; i < Codes::words; ++i) {
                    const unsigned char *at = codes + u * L::unit_bytes + (i * kPanel + v * kLanes) * 4;
                    raw[i] = *reinterpret_cast<const vu_at *>(at);
                }
                auto put = [&](int j, vu pair) {
                    const vpair level = ((vpair)pair - static_cast<uint16_t>(Codes::zero)) * by;
                    *reinterpret_cast<vu_at *>(out + j * kPanel) = (vu)level;
                };
                put(0, Codes::template unpack<0>(raw));
                put(1, Codes::template unpack<1>(raw));
                put(2, Codes::template unpack<2>(raw));
                put(3, Codes::template unpack<3>(raw));
            }
        }
    }
}

// C (MR, kPanel) = the rows of x times one panel, whose levels are unpacked.
template <class Codes, int MR>
inline void unpacked_tile(PackedRows x, const uint32_t *levels, const unsigned char *scales, int groups, float *c,
                          long ldc) {
    vf total[MR][2] = {};
    for (int left = groups * kGroupPairs; left > 0; left -= kBlockPairs) {
        vu sum[MR][2] = {};
        const int count = std::min(left, kBlockPairs);
#pragma GCC unroll 2
        for (int k = 0; k < count; ++k) {
            const vu first = *reinterpret_cast<const vu_at *>(levels + k * kPanel);
            const vu second = *reinterpret_cast<const vu_at *>(levels + k * kPanel + kLanes);
#pragma GCC unroll 16
            for (int r = 0; r < MR; ++r) {
                const vu a = vu{} + x.words[k * MR + r];
                sum[r][0] = dot(sum[r][0], first, a);
                sum[r][1] = dot(sum[r][1], second, a);
            }
        }
        add_block<MR, 2>(sum, scales, 0, x.scales, total);
        x.words += kBlockPairs * MR;
        x.scales += MR;
        levels += kBlockPairs * kPanel;
        scales += Layout<Codes>::block_bytes;
    }
    store_tile<MR, 2>(total, c, ldc);
}

template <class Codes, int MR = kRows>
inline void unpacked_tiles(int rows, const PackedRows &x, const uint32_t *levels, const unsigned char *scales,
                           int groups, float *c, long ldc) {
    if constexpr (MR > 1) {
        if (rows < MR) return unpacked_tiles<Codes, MR - 1>(rows, x, levels, scales, groups, c, ldc);
    }
    unpacked_tile<Codes, MR>(x, levels, scales, groups, c, ldc);
}

// From so many blocks of rows on, unpacking a panel once costs less than doing it for each. Measured: never for 8 bits,
// whose codes come apart in one instruction.
template <class Codes> constexpr int kUnpackedBlocks = Layout<Codes>::multiplied ? 6 : 1 << 30;

template <class Codes, class T> void forward(const Quantized &w, const T *x, long ldx, int rows, T *y) {
    const RowBlocks blocks(rows);
    const int all_panels = w.outputs.panels();
    const long row_words = PackedRows::size(w.groups, 1);
    auto *words = static_cast<uint32_t *>(scratch(Scratch::kPack, 4ul * rows * row_words));
    auto packed = [&](int b) {
        const int first = blocks.begin(b);
        return PackedRows(words + first * row_words, w.groups, blocks.begin(b + 1) - first);
    };
    auto pack = [&](int b) {
        const int first = blocks.begin(b);
        pack_rows<Codes>(x + first * ldx, ldx, blocks.begin(b + 1) - first, w.in_features, packed(b));
    };
    if (static_cast<long>(rows) * w.in_features < 16384)
        for (int b = 0; b < blocks.count; ++b) pack(b);
    else
        parallel_for(blocks.count, pack);

    // Chunks: parts of the row blocks that stay cached, times runs of panels.
    const bool unpacked = blocks.count >= kUnpackedBlocks<Codes>;
    const int parts = (blocks.count + kCachedBlocks - 1) / kCachedBlocks;
    const int step = std::max(w.outputs.gated ? 2 : 1, unpacked ? 1 : panels_at_once(std::min(rows, kRows)));
    int run = std::max(1, all_panels * parts / (parallel_threads() * 16));
    run = std::min(all_panels, (run + step - 1) / step * step);
    // About ten microseconds are not worth a second thread.
    const double weights = static_cast<double>(all_panels) * kPanel * w.in_features;
    if (weights * (2 * w.bits + rows) < 8e5) run = all_panels;
    const int runs = (all_panels + run - 1) / run;

    parallel_for(parts * runs, [&](int index) {
        const int part = index / runs, first_panel = index % runs * run;
        const int last_panel = std::min(all_panels, first_panel + run);
        const int first_block = static_cast<int>(static_cast<long>(part) * blocks.count / parts);
        const int last_block = static_cast<int>(static_cast<long>(part + 1) * blocks.count / parts);
        const long panel_words = static_cast<long>(w.groups) * kGroupPairs * kPanel;
        uint32_t *levels = nullptr;
        if (unpacked) levels = static_cast<uint32_t *>(scratch(Scratch::kRow, 4ul * step * panel_words));
        alignas(64) float c[kRows * 4 * kPanel];
        const long ldc = step * kPanel;
        for (int p = first_panel; p < last_panel; p += step) {
            const unsigned char *panel = w.packed + p * w.panel_bytes;
            const int panels = std::min(step, last_panel - p);
            for (int i = 0; unpacked && i < panels; ++i)
                unpack_panel<Codes>(panel + i * w.panel_bytes, w.groups, levels + i * panel_words);
            for (int b = first_block; b < last_block; ++b) {
                const int first = blocks.begin(b), height = blocks.begin(b + 1) - first;
                if (!unpacked) tiles<Codes>(height, panels, packed(b), panel, w.panel_bytes, w.groups, c, ldc);
                for (int i = 0; unpacked && i < panels; ++i)
                    unpacked_tiles<Codes>(height, packed(b), levels + i * panel_words, panel + i * w.panel_bytes,
                                          w.groups, c + i * kPanel, ldc);
                T *out = y + static_cast<long>(first) * w.outputs.out_features;
                for (int r = 0; r < height; ++r)
                    w.outputs.store_row(c + r * ldc, p, panels, out + static_cast<long>(r) * w.outputs.out_features);
            }
        }
    });
}

template <class T> void quantized_linear(const void *linear, const T *x, long ldx, int rows, T *y) {
    const Quantized &w = *static_cast<const Quantized *>(linear);
    if (rows == 0) return;
    if (w.bits == 8) forward<Int8>(w, x, ldx, rows, y);
    else forward<Int4>(w, x, ldx, rows, y);
}

}  // namespace
}  // namespace penstock

using namespace penstock;

extern "C" {

void *penstock_quantized_new(int bits, const unsigned char *packed, const float *bias, int out_features,
                             int in_features, int gated) {
    const int groups = count_groups(in_features);
    return new Quantized{packed, Outputs{bias, out_features, gated != 0}, bits, in_features, groups,
                         bits == 8 ? panel_bytes<Int8>(groups) : panel_bytes<Int4>(groups)};
}

void penstock_quantized_free(void *linear) { delete static_cast<Quantized *>(linear); }

void penstock_quantized_bf16(const void *linear, const bf16 *x, long ldx, int rows, bf16 *y) {
    quantized_linear(linear, x, ldx, rows, y);
}

void penstock_quantized_f32(const void *linear, const float *x, long ldx, int rows, float *y) {
    quantized_linear(linear, x, ldx, rows, y);
}
}

PENSTOCK_RECORDABLE(quantized_bf16)
PENSTOCK_RECORDABLE(quantized_f32)
