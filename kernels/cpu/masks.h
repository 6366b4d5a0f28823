// Lanes picked out of vectors: comparisons, and sums, extremes and packing of what they pick.
#pragma once

#include "simd.h"

namespace penstock {

#if defined(PENSTOCK_AVX512)
using Where = __mmask16;
#else
using Where = vi;  // all bits of a lane, or none
#endif

// False where either is NaN.
inline Where at_least(vf x, vf least) {
#if defined(PENSTOCK_AVX512)
    return _mm512_cmp_ps_mask((__m512)x, (__m512)least, _CMP_GE_OQ);
#else
    return x >= least;
#endif
}

inline Where above(vf x, vf bound) {
#if defined(PENSTOCK_AVX512)
    return _mm512_cmp_ps_mask((__m512)x, (__m512)bound, _CMP_GT_OQ);
#else
    return x > bound;
#endif
}

inline Where opposite(Where where) { return ~where; }
inline Where but_not(Where a, Where b) { return a & ~b; }

// The first n lanes.
inline Where leading(int n) {
#if defined(PENSTOCK_AVX512)
    return static_cast<Where>((1u << n) - 1);
#else
    vi lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    return lane < n;
#endif
}

inline Where both(Where a, Where b) { return a & b; }

// Bit i says whether lane i is picked.
inline unsigned bits(Where where) {
#if defined(PENSTOCK_AVX512)
    return where;
#elif defined(PENSTOCK_AVX2)
    return static_cast<unsigned>(_mm256_movemask_ps((__m256)where));
#else
    unsigned found = 0;
    for (int i = 0; i < kLanes; ++i) found |= (static_cast<unsigned>(where[i]) & 1u) << i;
    return found;
#endif
}

inline int count(Where where) { return __builtin_popcount(bits(where)); }

inline vf only(Where where, vf x) {
#if defined(PENSTOCK_AVX512)
    return (vf)_mm512_maskz_mov_ps(where, (__m512)x);
#else
    return (vf)(where & (vi)x);
#endif
}

inline vf add_where(vf sum, Where where, vf x) {
#if defined(PENSTOCK_AVX512)
    return (vf)_mm512_mask_add_ps((__m512)sum, where, (__m512)sum, (__m512)x);
#else
    return sum + only(where, x);
#endif
}

inline vf max_where(vf largest, Where where, vf x) {
#if defined(PENSTOCK_AVX512)
    return (vf)_mm512_mask_max_ps((__m512)largest, where, (__m512)x, (__m512)largest);
#else
    const vf other = where ? x : largest;
    return other > largest ? other : largest;
#endif
}

inline vf min_where(vf smallest, Where where, vf x) {
#if defined(PENSTOCK_AVX512)
    return (vf)_mm512_mask_min_ps((__m512)smallest, where, (__m512)x, (__m512)smallest);
#else
    const vf other = where ? x : smallest;
    return other < smallest ? other : smallest;
#endif
}

// The picked lanes side by side at `out`, which must have room for a whole vector; how many they are.
inline int pack(float *out, Where where, vf x) {
#if defined(PENSTOCK_AVX512)
    store(out, (vf)_mm512_maskz_compress_ps(where, (__m512)x));
    return count(where);
#else
    float lane[kLanes];
    std::memcpy(lane, &x, sizeof lane);
    int n = 0;
    for (unsigned left = bits(where); left != 0; left &= left - 1) out[n++] = lane[__builtin_ctz(left)];
    return n;
#endif
}

inline float largest(vf x) {
    float lane[kLanes], found = -std::numeric_limits<float>::infinity();
    std::memcpy(lane, &x, sizeof lane);
    for (float v : lane) found = v > found ? v : found;
    return found;
}

inline float smallest(vf x) { return -largest(-x); }

}  // namespace penstock
