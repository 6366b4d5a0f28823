// Weights into 8 or 4 bits (quantized.h), once when they are loaded, and rows of them back.
#include "pool.h"
#include "quantized.h"

namespace penstock {
namespace {

// To the nearest, ties to even.
inline bf16 narrow(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    if (x != x) return {static_cast<uint16_t>(u >> 16 | 0x40)};
    return {static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

inline vf nearest(vf x) {
#if defined(PENSTOCK_AVX512)
    return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const vf shifter = splat(12582912.0f);
    return (x + shifter) - shifter;
#endif
}

// The integers nearest to weights / scale, and the sum of the squared errors.
template <class Codes> float to_integers(const float *weights, int count, float scale, float *integers) {
    const vf step = splat(scale), inverse = splat(std::abs(scale) < kNegligible ? 0.0f : 1.0f / scale);
    const vf low = splat(Codes::low), high = splat(Codes::high);
    vf errors = {};
    for (int i = 0; i < count; i += kLanes) {
        const vf w = load(weights + i);
        vf integer = nearest(w * inverse);
        integer = integer < low ? low : integer > high ? high : integer;
        store(integers + i, integer);
        const vf error = fma(-integer, step, w);
        errors = fma(error, error, errors);
    }
    return sum(errors);
}

inline float largest_of(const float *weights, int count) {
    float largest = 0.0f;
    for (int i = 0; i < count; ++i)
        if (!(std::abs(weights[i]) <= std::abs(largest))) largest = weights[i];
    return largest;
}

// One block of one column: its weights, zero beyond the last, as integers to be stored, with the scale.
bf16 quantize(Int8, const float *weights, float *integers, int8_t *) {
    const bf16 scale = narrow(std::abs(largest_of(weights, kBlock)) / 127.0f);
    to_integers<Int8>(weights, kBlock, widen(scale), integers);
    return scale;
}

// A group's largest weight lies on the side of -8, which has a level more than the other; which level it becomes, or
// how far it is cut, is tried, and the least squared error wins. The scales so found are then rounded to multiples of
// one for the block.
bf16 quantize(Int4, const float *weights, float *integers, int8_t *multipliers) {
    constexpr float kDivisors[] = {7.0f, 7.5f, 8.0f, 8.5f, 9.0f, 9.5f, 10.0f, 11.0f};
    float scales[kBlockGroups], most = 0.0f;
    for (int g = 0; g < kBlockGroups; ++g) {
        const float *group = weights + g * kGroup;
        const float largest = largest_of(group, kGroup);
        const float tie = 1e-6f * largest * largest;  // nearer than that the first wins, not a rounding
        float least = std::numeric_limits<float>::infinity();
        scales[g] = largest;  // kept if it is no number
        for (float divisor : kDivisors) {
            const float error = to_integers<Int4>(group, kGroup, -largest / divisor, integers);
            if (error < least - tie) {
                least = error;
                scales[g] = -largest / divisor;
            }
        }
        if (!(std::abs(scales[g]) <= most)) most = std::abs(scales[g]);
    }
    const bf16 scale = narrow(most / Int4::multiplier);
    const float step = widen(scale);
    for (int g = 0; g < kBlockGroups; ++g) {
        const float times = step > 0.0f ? std::nearbyint(scales[g] / step) : 0.0f;
        const float bound = Int4::multiplier;
        multipliers[g] = static_cast<int8_t>(std::min(bound, std::max(-bound, times)));
        to_integers<Int4>(weights + g * kGroup, kGroup, multipliers[g] * step, integers + g * kGroup);
    }
    return scale;
}

template <class Codes, class T>
void pack_weight(const T *weight, long ldw, const Outputs &outputs, int in_features, unsigned char *packed) {
    using L = Layout<Codes>;
    const int groups = count_groups(in_features);
    const long bytes = panel_bytes<Codes>(groups);
    parallel_for(outputs.panels(), [&](int p) {
        unsigned char *panel = packed + p * bytes;
        std::memset(panel, 0, bytes);  // columns beyond the last: their scales are zero
        const T *rows = weight + outputs.first_row(p) * ldw;
        alignas(64) float weights[kBlock], integers[kBlock];
        for (int first = 0; first < in_features; first += kBlock, panel += L::block_bytes)
            for (int column = 0; column < outputs.count_rows(p); ++column) {
                const T *from = rows + column * ldw + first;
                const int count = std::min(kBlock, in_features - first);
                if (count < kBlock) std::memset(weights, 0, sizeof weights);
                each_vector(count, [&](int i, int n) { store(weights + i, load_n(from + i, n)); });
                int8_t multipliers[kBlockGroups];
                const bf16 scale = quantize(Codes{}, weights, integers, multipliers);
                std::memcpy(panel + column * 2, &scale, 2);
                if constexpr (L::multiplied)
                    for (int g = 0; g < kBlockGroups; ++g)
                        std::memcpy(panel + L::scale_bytes + g * kPanel + column, &multipliers[g], 1);
                for (int u = 0; u < std::min(kBlock, groups * kGroup - first) / kUnit; ++u) {
                    uint32_t words[Codes::words] = {};
                    for (int i = 0; i < kUnit; ++i) {
                        const int code = static_cast<int>(integers[u * kUnit + i]) + Codes::zero;
                        words[Codes::word(i)] |= (static_cast<uint32_t>(code) & Codes::mask) << Codes::shift(i);
                    }
                    unsigned char *at = panel + L::header_bytes + u * L::unit_bytes + column * 4;
                    for (int i = 0; i < Codes::words; ++i) std::memcpy(at + i * kPanel * 4, &words[i], 4);
                }
            }
    });
}

inline void put(bf16 *out, float x) { *out = narrow(x); }
inline void put(float *out, float x) { *out = x; }

// Row `id` of a weight that is not gated, as it is stored.
template <class Codes, class T> void unpack_row(const Quantized &w, int id, T *out) {
    using L = Layout<Codes>;
    const int column = id % kPanel;
    for (int k = 0; k < w.in_features; ++k) {
        const unsigned char *block = w.packed + id / kPanel * w.panel_bytes + k / kBlock * L::block_bytes;
        bf16 scale;
        std::memcpy(&scale, block + column * 2, 2);
        int8_t multiplier = 1;
        if constexpr (L::multiplied)
            std::memcpy(&multiplier, block + L::scale_bytes + k % kBlock / kGroup * kPanel + column, 1);
        const int unit = k % kBlock / kUnit, i = k % kUnit;
        uint32_t word;
        std::memcpy(&word, block + L::header_bytes + unit * L::unit_bytes + (Codes::word(i) * kPanel + column) * 4, 4);
        const int level = (static_cast<int>(word >> Codes::shift(i) & Codes::mask) - Codes::zero) * multiplier;
        put(out + k, static_cast<float>(level) * widen(scale));
    }
}

template <class T> void quantized_rows(const void *linear, const int *ids, int count, T *out) {
    const Quantized &w = *static_cast<const Quantized *>(linear);
    parallel_for((count + 7) / 8, [&](int run) {
        for (int i = run * 8; i < std::min(count, run * 8 + 8); ++i) {
            T *row = out + static_cast<long>(i) * w.in_features;
            if (w.bits == 8) unpack_row<Int8>(w, ids[i], row);
            else unpack_row<Int4>(w, ids[i], row);
        }
    });
}

template <class T>
void quantized_pack(int bits, const T *weight, long ldw, int out_features, int in_features, int gated,
                    unsigned char *packed) {
    const Outputs outputs{nullptr, out_features, gated != 0};
    if (bits == 8) pack_weight<Int8>(weight, ldw, outputs, in_features, packed);
    else pack_weight<Int4>(weight, ldw, outputs, in_features, packed);
}

}  // namespace
}  // namespace penstock

using namespace penstock;

extern "C" {

// out_features is what y has; the weight of a gated product has twice as many rows, gate above up.

// Bytes that a weight takes in `bits` (8 or 4), scales included.
long penstock_quantized_bytes(int bits, int out_features, int in_features, int gated) {
    const int groups = count_groups(in_features);
    const long panel = bits == 8 ? panel_bytes<Int8>(groups) : panel_bytes<Int4>(groups);
    return Outputs{nullptr, out_features, gated != 0}.panels() * panel;
}

void penstock_quantized_pack_bf16(int bits, const bf16 *weight, long ldw, int out_features, int in_features,
                                  int gated, unsigned char *packed) {
    quantized_pack(bits, weight, ldw, out_features, in_features, gated, packed);
}

void penstock_quantized_pack_f32(int bits, const float *weight, long ldw, int out_features, int in_features,
                                 int gated, unsigned char *packed) {
    quantized_pack(bits, weight, ldw, out_features, in_features, gated, packed);
}

void penstock_quantized_rows_bf16(const void *linear, const int *ids, int count, bf16 *out) {
    quantized_rows(linear, ids, count, out);
}

void penstock_quantized_rows_f32(const void *linear, const int *ids, int count, float *out) {
    quantized_rows(linear, ids, count, out);
}
}
