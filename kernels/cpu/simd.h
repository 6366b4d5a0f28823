// Vectors of the machine compiled for: float32 lanes, bfloat16 conversion, fused products, exp2.
//
// kLanes is 16 with AVX-512, 8 with AVX2, 4 elsewhere (SSE, NEON: whatever the compiler makes of vector extensions).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace penstock {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define PENSTOCK_AVX512 1
constexpr int kLanes = 16;
#elif defined(__AVX2__) && defined(__FMA__)
#define PENSTOCK_AVX2 1
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vf __attribute__((vector_size(kLanes * 4), may_alias));
typedef int32_t vi __attribute__((vector_size(kLanes * 4), may_alias));
typedef uint32_t vu __attribute__((vector_size(kLanes * 4), may_alias));
typedef uint16_t vh __attribute__((vector_size(kLanes * 2), may_alias));
typedef float vf_at __attribute__((vector_size(kLanes * 4), may_alias, aligned(4)));
typedef uint32_t vu_at __attribute__((vector_size(kLanes * 4), may_alias, aligned(2)));
typedef uint16_t vh_at __attribute__((vector_size(kLanes * 2), may_alias, aligned(2)));

struct bf16 {
    uint16_t bits;
};

inline float widen(bf16 x) {
    const uint32_t u = static_cast<uint32_t>(x.bits) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
inline float widen(float x) { return x; }

inline vf splat(float x) { return vf{} + x; }

inline vf fma(vf a, vf b, vf c) {
#if defined(PENSTOCK_AVX512)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(PENSTOCK_AVX2)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

inline vf max(vf a, vf b) {
#if defined(PENSTOCK_AVX512)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}

// A fixed tree: half against half, down to one lane.
inline float sum(vf a) {
#if defined(PENSTOCK_AVX512)
    const __m512 x = (__m512)a;
    const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    const __m128 w = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(w, _mm_movehdup_ps(w)));
#else
    float lane[kLanes];
    std::memcpy(lane, &a, sizeof lane);
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
#endif
}

#if defined(PENSTOCK_AVX512)
// 16 rows of 16 words, columns to rows.
inline void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}
#endif

// One result a row: lane r of the answer is row r reduced over its lanes, in the order of `sum`.
template <class F> inline vf reduce_rows(vf rows[kLanes], const F &f) {
#if defined(PENSTOCK_AVX512)
    transpose16(reinterpret_cast<__m512i *>(rows));
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) rows[i] = f(rows[i], rows[i + half]);
    return rows[0];
#else
    vf columns[kLanes];
    for (int r = 0; r < kLanes; ++r)
        for (int i = 0; i < kLanes; ++i) columns[i][r] = rows[r][i];
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) columns[i] = f(columns[i], columns[i + half]);
    return columns[0];
#endif
}

inline vf load(const float *p) { return *reinterpret_cast<const vf_at *>(p); }
inline void store(float *p, vf x) { *reinterpret_cast<vf_at *>(p) = x; }

inline vf load(const bf16 *p) {
#if defined(PENSTOCK_AVX512)  // GCC's own conversion takes five instructions
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))), 16);
#else
    return (vf)(__builtin_convertvector(*reinterpret_cast<const vh_at *>(p), vu) << 16);
#endif
}

// Round to nearest even; a NaN stays a NaN.
inline void store(bf16 *p, vf x) {
#if defined(PENSTOCK_AVX512) && defined(__AVX512BF16__)
    *reinterpret_cast<vh_at *>(p) = (vh)_mm512_cvtneps_pbh((__m512)x);
#else
    const vu u = (vu)x;
    const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const vu quiet = (u >> 16) | 0x40u;
    *reinterpret_cast<vh_at *>(p) = __builtin_convertvector(x == x ? rounded : quiet, vh);
#endif
}

// The first n < kLanes elements; the other lanes are zero.
template <class T> inline vf load_part(const T *p, int n) {
    T whole[kLanes] = {};
    std::memcpy(whole, p, sizeof(T) * n);
    return load(whole);
}
template <class T> inline void store_part(T *p, vf x, int n) {
    T whole[kLanes];
    store(whole, x);
    std::memcpy(p, whole, sizeof(T) * n);
}

// Calls f(i, n) for the vectors of [0, count): n lanes from i, fewer than kLanes only in the last.
template <class F> inline void each_vector(int count, F &&f) {
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) f(i, kLanes);
    if (i < count) f(i, count - i);
}
template <class T> inline vf load_n(const T *p, int n) { return n == kLanes ? load(p) : load_part(p, n); }
template <class T> inline void store_n(T *p, vf x, int n) {
    if (n == kLanes) store(p, x);
    else store_part(p, x, n);
}

// 2^x, exactly 0 for -inf and exactly 1 at 0; within 2 ulp, or within 2^-17 when COARSE (for results that will be
// rounded to bfloat16).
template <bool COARSE = false> inline vf exp2(vf x) {
#if defined(PENSTOCK_AVX512)
    const vf clamped = max(x, splat(-200.0f));
    const vf whole = (vf)_mm512_roundscale_ps((__m512)clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const vf f = clamped - whole;
#else
    const vf low = splat(-126.0f), high = splat(127.0f);
    const vf clamped = x < low ? low : x > high ? high : x;
    const vf shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const vf shifted = clamped + shifter;
    const vf f = clamped - (shifted - shifter);
#endif
    vf p;
    if constexpr (COARSE) {
        p = splat(9.6181291076284772e-3f);
        p = fma(p, f, splat(5.5504108664821580e-2f));
    } else {
        p = splat(1.535336188319500e-4f);
        p = fma(p, f, splat(1.339887440266574e-3f));
        p = fma(p, f, splat(9.618437357674640e-3f));
        p = fma(p, f, splat(5.550332471162809e-2f));
    }
    p = fma(p, f, splat(2.402264791363012e-1f));
    p = fma(p, f, splat(6.931472028550421e-1f));
    p = fma(p, f, splat(1.0f));
#if defined(PENSTOCK_AVX512)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    const vf result = (vf)((vu)p + ((vu)shifted << 23));
    return x < low ? vf{} : result;
#endif
}

// Towards the second-level cache. Not __builtin_prefetch: GCC takes a function that only prefetches for one without
// effect and drops its calls.
inline void prefetch(const void *p) {
#if defined(__x86_64__)
    asm volatile("prefetcht1 %0" : : "m"(*static_cast<const char *>(p)));
#else
    __builtin_prefetch(p, 0, 2);
#endif
}

constexpr float kLog2e = 1.44269504088896340736f;

inline vf tanh(vf x) {
    const vf e = exp2(x * splat(2.0f * kLog2e));
    const vf far = splat(1.0f) - splat(2.0f) / (e + splat(1.0f));
    const vf s = x * x;  // the subtraction above loses the small arguments
    vf p = splat(62.0f / 2835.0f);
    p = fma(p, s, splat(-17.0f / 315.0f));
    p = fma(p, s, splat(2.0f / 15.0f));
    p = fma(p, s, splat(-1.0f / 3.0f));
    const vf near = fma(p * s, x, x);
    return s < splat(0.04f) ? near : far;
}

}  // namespace penstock
