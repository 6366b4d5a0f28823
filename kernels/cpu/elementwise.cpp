// RMSNorm, residual add, SiLU gating, rotary embedding, the masking of logits and copies of rows, each in one pass over its tensors.
//
// Arithmetic in float32, one rounding at the end; a row is always summed in the same order.
#include <algorithm>
#include <type_traits>

#include "graph.h"
#include "pool.h"
#include "simd.h"

namespace penstock {
namespace {

// Rows in runs of about 32k elements; below two runs the pool costs more than it saves.
template <class F> void each_row(long rows, long elements_per_row, const F &f) {
    const long run = std::max(1l, 32768 / std::max(1l, elements_per_row));
    const int runs = static_cast<int>((rows + run - 1) / run);
    if (runs <= 2) {
        for (long r = 0; r < rows; ++r) f(r);
        return;
    }
    parallel_for(runs, [&](int i) {
        for (long r = i * run; r < std::min(rows, (i + 1) * run); ++r) f(r);
    });
}

// 1 / sqrt(mean of squares + eps), with four running sums to hide the latency of one.
template <class T> float inverse_rms(const T *x, int n, float eps) {
    vf sums[4] = {};
    int i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes)
        for (int j = 0; j < 4; ++j) {
            const vf v = load(x + i + j * kLanes);
            sums[j] = fma(v, v, sums[j]);
        }
    each_vector(n - i, [&](int j, int m) {
        const vf v = load_n(x + i + j, m);
        sums[0] = fma(v, v, sums[0]);
    });
    return 1.0f / std::sqrt(sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(n) + eps);
}

template <class T> void scale_by(const T *x, const T *weight, float factor, int n, T *out) {
    const vf f = splat(factor);
    each_vector(n, [&](int i, int m) { store_n(out + i, load_n(x + i, m) * f * load_n(weight + i, m), m); });
}

template <class T> void rms_norm(const T *x, const T *weight, float eps, long rows, int n, T *out) {
    each_row(rows, n, [&](long r) { scale_by(x + r * n, weight, inverse_rms(x + r * n, n, eps), n, out + r * n); });
}

template <class T>
void add_rms_norm(const T *x, T *residual, const T *weight, float eps, long rows, int n, T *out) {
    each_row(rows, n, [&](long r) {
        T *sums = residual + r * n;
        each_vector(n, [&](int i, int m) { store_n(sums + i, load_n(x + r * n + i, m) + load_n(sums + i, m), m); });
        scale_by(sums, weight, inverse_rms(sums, n, eps), n, out + r * n);
    });
}

template <class T> void silu_mul(const T *gate_up, long rows, int n, T *out) {
    each_row(rows, 4l * n, [&](long r) {
        const T *gate = gate_up + r * 2 * n, *up = gate + n;
        each_vector(n, [&](int i, int m) {
            const vf g = load_n(gate + i, m);
            const vf sigmoid = splat(1.0f) / (splat(1.0f) + exp2(g * splat(-kLog2e)));
            store_n(out + r * n + i, g * sigmoid * load_n(up + i, m), m);
        });
    });
}

struct Rotary {
    const float *cos_sin;  // (max_position, rotary_dim)
    const int *positions;
    int head_dim, rotary_dim;
    float eps;
};

template <class T> void rotate_head(T *x, const float *cos_sin, const T *norm, const Rotary &spec) {
    const int half = spec.rotary_dim / 2;
    const float *cos = cos_sin, *sin = cos_sin + half;
    const vf factor = splat(norm != nullptr ? inverse_rms(x, spec.head_dim, spec.eps) : 1.0f);
    auto normed = [&](int i, int m) {
        const vf v = load_n(x + i, m);
        return norm != nullptr ? v * factor * load_n(norm + i, m) : v;
    };
    each_vector(half, [&](int i, int m) {
        const vf a = normed(i, m), b = normed(half + i, m);
        const vf c = load_n(cos + i, m), s = load_n(sin + i, m);
        store_n(x + i, a * c - b * s, m);
        store_n(x + half + i, b * c + a * s, m);
    });
    if (norm != nullptr)
        each_vector(spec.head_dim - spec.rotary_dim, [&](int i, int m) {
            store_n(x + spec.rotary_dim + i, normed(spec.rotary_dim + i, m), m);
        });
}

template <class T>
void rotary(T *q, long q_stride, int q_heads, const T *q_norm, T *k, long k_stride, int k_heads, const T *k_norm,
            int tokens, const Rotary &spec) {
    each_row(tokens, 2l * (q_heads + k_heads) * spec.head_dim, [&](long t) {
        const float *cos_sin = spec.cos_sin + static_cast<long>(spec.positions[t]) * spec.rotary_dim;
        for (int h = 0; h < q_heads; ++h) rotate_head(q + t * q_stride + h * spec.head_dim, cos_sin, q_norm, spec);
        for (int h = 0; h < k_heads; ++h) rotate_head(k + t * k_stride + h * spec.head_dim, cos_sin, k_norm, spec);
    });
}

// The bits of -inf.
template <class T> constexpr auto kForbidden = uint32_t{0xff800000};
template <> constexpr auto kForbidden<bf16> = uint16_t{0xff80};

// Without a branch, because there is no pattern in the bits.
template <class T> void mask_some(T *logits, uint32_t word, int count) {
    using Bits = std::remove_const_t<decltype(kForbidden<T>)>;
    for (int j = 0; j < count; ++j) {
        const Bits keep = -static_cast<Bits>(word >> j & 1);
        Bits x;
        std::memcpy(&x, logits + j, sizeof x);
        x = (x & keep) | (kForbidden<T> & ~keep);
        std::memcpy(logits + j, &x, sizeof x);
    }
}

template <class T> void mask_row(T *logits, const uint32_t *bits, int vocab) {
    int first = 0;
    for (; first + 32 <= vocab; first += 32, ++bits)
        if (*bits != ~0u) mask_some(logits + first, *bits, 32);
    if (first < vocab) mask_some(logits + first, *bits, vocab - first);
}

template <class T>
void mask_logits(T *logits, long stride, int vocab, const uint32_t *bits, int words, const int *rows, int count) {
    each_row(count, vocab, [&](long i) { mask_row(logits + rows[i] * stride, bits + i * words, vocab); });
}

void embedding(const char *table, long rows, long row_bytes, const int *ids, int count, char *out) {
    each_row(count, row_bytes / 2, [&](long i) {
        if (ids[i] >= 0 && ids[i] < rows) std::memcpy(out + i * row_bytes, table + ids[i] * row_bytes, row_bytes);
        else std::memset(out + i * row_bytes, 0, row_bytes);
    });
}

void copy_rows(const char *from, long from_stride, char *to, long to_stride, long rows, long row_bytes) {
    each_row(rows, row_bytes / 2, [&](long r) { std::memcpy(to + r * to_stride, from + r * from_stride, row_bytes); });
}

}  // namespace
}  // namespace penstock

using namespace penstock;

// Rows are contiguous. One entry per element type.
#define PENSTOCK_ELEMENTWISE(T, NAME)                                                                                \
    void penstock_rms_norm_##NAME(const T *x, const T *weight, float eps, long rows, int n, T *out) {                \
        rms_norm(x, weight, eps, rows, n, out);                                                                      \
    }                                                                                                                \
    void penstock_add_rms_norm_##NAME(const T *x, T *residual, const T *weight, float eps, long rows, int n,         \
                                      T *out) {                                                                      \
        add_rms_norm(x, residual, weight, eps, rows, n, out);                                                        \
    }                                                                                                                \
    void penstock_silu_mul_##NAME(const T *gate_up, long rows, int n, T *out) { silu_mul(gate_up, rows, n, out); }   \
    /* q, k: heads side by side in a token, tokens at the given strides, rotated in place. */                        \
    void penstock_rotary_##NAME(T *q, long q_stride, int q_heads, const T *q_norm, T *k, long k_stride, int k_heads, \
                                const T *k_norm, int tokens, const float *cos_sin, const int *positions,             \
                                int head_dim, int rotary_dim, float eps) {                                           \
        rotary(q, q_stride, q_heads, q_norm, k, k_stride, k_heads, k_norm, tokens,                                   \
               Rotary{cos_sin, positions, head_dim, rotary_dim, eps});                                               \
    }                                                                                                                \
    /* Row i of bits, (count, words), is for row rows[i] of logits, in place; a zero bit forbids. */                 \
    void penstock_mask_logits_##NAME(T *logits, long stride, int vocab, const uint32_t *bits, int words,             \
                                     const int *rows, int count) {                                                   \
        mask_logits(logits, stride, vocab, bits, words, rows, count);                                                \
    }

extern "C" {
PENSTOCK_ELEMENTWISE(bf16, bf16)
PENSTOCK_ELEMENTWISE(float, f32)

void penstock_embedding(const char *table, long rows, long row_bytes, const int *ids, int count, char *out) {
    embedding(table, rows, row_bytes, ids, count, out);
}

// Strides in bytes.
void penstock_copy_rows(const char *from, long from_stride, char *to, long to_stride, long rows, long row_bytes) {
    copy_rows(from, from_stride, to, to_stride, rows, row_bytes);
}
}

PENSTOCK_RECORDABLE(rms_norm_bf16)
PENSTOCK_RECORDABLE(rms_norm_f32)
PENSTOCK_RECORDABLE(add_rms_norm_bf16)
PENSTOCK_RECORDABLE(add_rms_norm_f32)
PENSTOCK_RECORDABLE(silu_mul_bf16)
PENSTOCK_RECORDABLE(silu_mul_f32)
PENSTOCK_RECORDABLE(rotary_bf16)
PENSTOCK_RECORDABLE(rotary_f32)
PENSTOCK_RECORDABLE(embedding)
PENSTOCK_RECORDABLE(copy_rows)
