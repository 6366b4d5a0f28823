// The one inner product of all kernels: MR rows of A times a panel of B, accumulated in float32 registers.
//
// Operands are in words of 32 bits: one float32, or a pair of bfloat16 (two steps of the reduction side by side, as
// VDPBF16PS wants them). Each element of C is summed over k in rising order with one accumulator whatever MR and
// the number of panels are, so a row's result does not depend on the rows that are computed with it.
#pragma once

#include "simd.h"

namespace penstock {

// Rows of a register tile, at most kLanes: 12 x 2 accumulators of AVX-512's 32 registers, 6 x 2 of AVX2's 16.
constexpr int kRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 4;
constexpr int kPanel = 2 * kLanes;     // columns of a panel

struct Float32 {
    using element = float;
    static constexpr int steps = 1;  // reduction steps in a word
    static inline vf splat_word(const uint32_t *a) {
        float x;
        std::memcpy(&x, a, 4);
        return splat(x);
    }
    static inline vf load_words(const uint32_t *b) { return (vf) * reinterpret_cast<const vu_at *>(b); }
    static inline vf dot(vf acc, vf a, vf b) { return fma(a, b, acc); }
};

struct BFloat16 {
    using element = bf16;
    static constexpr int steps = 2;
    static inline vu splat_word(const uint32_t *a) {
        uint32_t x;
        std::memcpy(&x, a, 4);
        return vu{} + x;
    }
    static inline vu load_words(const uint32_t *b) { return *reinterpret_cast<const vu_at *>(b); }
    static inline vf dot(vf acc, vu a, vu b) {
#if defined(PENSTOCK_AVX512) && defined(__AVX512BF16__)
        return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
        const vu high = vu{} + 0xffff0000u;
        return fma((vf)(a & high), (vf)(b & high), fma((vf)(a << 16), (vf)(b << 16), acc));
#endif
    }
};

// How far ahead of its use a panel that comes from memory is asked for, in words, and from how many rows on: with fewer
// the loads alone keep memory busy, with more the products between them leave it idle. Measured: 9 to 16 % on 8 to 16
// rows, a loss below.
constexpr long kFetchWords = 2048;
constexpr int kFetchRows = 8;

// C (MR, PANELS * kPanel) = A B, or += A B. A word (r, k) is at a[k * MR + r] when LDA is 0, at a[r * LDA + k]
// otherwise; B's row k of panel p is at b + p * panel_stride + k * ldb; C's row r at c + r * ldc. All in words. STREAM:
// B is read from memory, not from a cache.
template <class Mode, int MR, int PANELS, int LDA, bool STREAM>
inline void tile(const uint32_t *a, const uint32_t *b, long ldb, long panel_stride, int k_words, float *c, long ldc,
                 bool accumulate) {
    constexpr int V = 2 * PANELS;
    vf acc[MR][V];
    for (int r = 0; r < MR; ++r)
        for (int v = 0; v < V; ++v) acc[r][v] = accumulate ? load(c + r * ldc + v * kLanes) : vf{};
#pragma GCC unroll 2
    for (int k = 0; k < k_words; ++k) {
        if constexpr (STREAM && MR >= kFetchRows)
            for (int v = 0; v < V; ++v)
                prefetch(b + k * ldb + (v / 2) * panel_stride + (v % 2) * kLanes + kFetchWords);
        decltype(Mode::load_words(b)) bv[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v)
            bv[v] = Mode::load_words(b + k * ldb + (v / 2) * panel_stride + (v % 2) * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r) {
            const auto av = Mode::splat_word(LDA == 0 ? a + k * MR + r : a + r * LDA + k);
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) acc[r][v] = Mode::dot(acc[r][v], av, bv[v]);
        }
    }
    for (int r = 0; r < MR; ++r)
        for (int v = 0; v < V; ++v) store(c + r * ldc + v * kLanes, acc[r][v]);
}

// Few rows leave registers free and the multiplier idle between dependent products: take more panels at once.
constexpr int panels_at_once(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

// As `tile`, for rows <= kRows known at run time and any number of panels.
template <class Mode, int LDA, bool STREAM = false, int MR = kRows>
inline void tiles(int rows, int panels, const uint32_t *a, const uint32_t *b, long ldb, long panel_stride,
                  int k_words, float *c, long ldc, bool accumulate) {
    if constexpr (MR > 1) {
        if (rows < MR)
            return tiles<Mode, LDA, STREAM, MR - 1>(rows, panels, a, b, ldb, panel_stride, k_words, c, ldc,
                                                    accumulate);
    }
    constexpr int P = panels_at_once(MR);
    int p = 0;
    for (; p + P <= panels; p += P)
        tile<Mode, MR, P, LDA, STREAM>(a, b + p * panel_stride, ldb, panel_stride, k_words, c + p * kPanel, ldc,
                                       accumulate);
    for (; p < panels; ++p)
        tile<Mode, MR, 1, LDA, STREAM>(a, b + p * panel_stride, ldb, panel_stride, k_words, c + p * kPanel, ldc,
                                       accumulate);
}

}  // namespace penstock
