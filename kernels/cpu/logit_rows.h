// Rows of logits cut into blocks and pieces, the maxima in every block, and weights relative to the most likely token.
//
// The cuts depend on the size of the vocabulary alone, and sums are taken over blocks in order: what comes out of a
// row is the same in any batch and with any number of threads. A NaN counts as forbidden, like -inf.
#pragma once

#include <algorithm>
#include <cfloat>

#include "masks.h"
#include "pool.h"

namespace penstock {

constexpr int kBlock = 1024;  // elements whose maxima and sums are kept
constexpr int kPiece = 8 * kBlock;  // what a thread takes on when rows are few
constexpr float kForbidden = -std::numeric_limits<float>::infinity();
constexpr float kLowest = -FLT_MAX;  // of what is not forbidden

template <class T> struct Row {
    const T *logits;
    int vocab;

    int blocks() const { return (vocab + kBlock - 1) / kBlock; }
    int pieces() const { return (vocab + kPiece - 1) / kPiece; }
    const T *block(int b) const { return logits + static_cast<long>(b) * kBlock; }
    int length(int b) const { return std::min(kBlock, vocab - b * kBlock); }
    int first_block(int piece) const { return piece * (kPiece / kBlock); }
    int last_block(int piece) const { return std::min(blocks(), first_block(piece + 1)); }
};

// f(i, vector) over a block in the order of ids; lanes behind its end are forbidden.
template <class T, class F> inline void each_logits(const T *x, int count, F &&f) {
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) f(i, load(x + i));
    if (i < count) {
        float lane[kLanes];
        for (int j = 0; j < kLanes; ++j) lane[j] = i + j < count ? widen(x[i + j]) : kForbidden;
        f(i, load(lane));
    }
}

// f(vector, vector) over a block in whatever order of ids is quickest: lanes that are forbidden may follow any others.
template <class T, class F> inline void each_pair(const T *x, int count, F &&f) {
    int i = 0;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
        if constexpr (sizeof(T) == 2) {
            const vu both = *reinterpret_cast<const vu_at *>(x + i);
            f((vf)(both << 16), (vf)(both & 0xffff0000u));
        } else {
            f(load(x + i), load(x + i + kLanes));
        }
    }
    if (i < count) {
        float lane[2 * kLanes];
        for (int j = 0; j < 2 * kLanes; ++j) lane[j] = i + j < count ? widen(x[i + j]) : kForbidden;
        f(load(lane), load(lane + kLanes));
    }
}

// The largest of every lane over a block: the maxima of kLanes groups of tokens.
template <class T> inline vf lane_maxima(const T *x, int count) {
    vf m = splat(kForbidden), n = m;
    each_pair(x, count, [&](vf a, vf b) {
        m = max(a, m);
        n = max(b, n);
    });
    return max(m, n);
}

// `maxima` (blocks, kLanes); `each` runs a function for all pieces. Returns the largest logit.
template <class T, class Each> float scan_maxima(const Row<T> &row, const Each &each, float *maxima) {
    each([&](int piece) {
        for (int b = row.first_block(piece); b < row.last_block(piece); ++b)
            store(maxima + b * kLanes, lane_maxima(row.block(b), row.length(b)));
    });
    vf m = splat(kForbidden);
    for (int b = 0; b < row.blocks(); ++b) m = max(load(maxima + b * kLanes), m);
    return largest(m);
}

// Where the largest logit comes first; 0 in a row in which everything is forbidden.
template <class T> int first_of(const Row<T> &row, const float *maxima, float value) {
    const vf wanted = splat(value);
    int b = 0;
    while (b < row.blocks() && bits(at_least(load(maxima + b * kLanes), wanted)) == 0) ++b;
    if (b == row.blocks()) return 0;
    int found = -1;
    each_logits(row.block(b), row.length(b), [&](int i, vf v) {
        const unsigned hits = bits(at_least(v, wanted));
        if (found < 0 && hits != 0) found = i + __builtin_ctz(hits);
    });
    return value == kForbidden ? 0 : b * kBlock + found;
}

// exp((logit - max) / temperature), within 2^-22; 2^-126 where it would be less, a forbidden token's included.
struct Weigh {
    vf max, scale, low;

    Weigh(float most, float temperature) {
        // Beyond these bounds nothing but overflow would change.
        const float by = kLog2e / std::min(std::max(temperature, 1e-20f), 1e20f);
        max = splat(most);
        scale = splat(by);
        low = splat(std::max(-126.0f / by, -FLT_MAX));
    }

    vf operator()(vf logits) const {
        const vf d = penstock::max(logits - max, low);
        const vf shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
        const vf shifted = fma(d, scale, shifter);
        const vf f = fma(d, scale, shifter - shifted);
        vf p = splat(1.339887440266574e-3f);
        p = fma(p, f, splat(9.618437357674640e-3f));
        p = fma(p, f, splat(5.550332471162809e-2f));
        p = fma(p, f, splat(2.402264791363012e-1f));
        p = fma(p, f, splat(6.931472028550421e-1f));
        p = fma(p, f, splat(1.0f));
        return (vf)((vu)p + ((vu)shifted << 23));
    }
};

// How the pieces of a row are run: one after the other, or shared out.
struct InTurn {
    int pieces;
    static constexpr bool kShared = false;
    template <class F> void operator()(const F &f) const {
        for (int i = 0; i < pieces; ++i) f(i);
    }
};
struct Shared {
    int pieces;
    static constexpr bool kShared = true;
    template <class F> void operator()(const F &f) const { parallel_for(pieces, f); }
};

// body(i, each) for rows [0, count), `each` running what it is given for all pieces of a row. Rows go side by side,
// in runs of about `together` elements; where they are few and long, their pieces do.
template <class Body> void each_logit_row(int count, int vocab, int together, const Body &body) {
    const int pieces = (vocab + kPiece - 1) / kPiece;
    const int threads = parallel_threads();
    if (threads > 1 && pieces >= 4 && count < 2 * threads) {
        for (int i = 0; i < count; ++i) body(i, Shared{pieces});
        return;
    }
    const int run = std::max(1, together / std::max(1, vocab));
    parallel_for((count + run - 1) / run, [&](int r) {
        for (int i = r * run; i < std::min(count, (r + 1) * run); ++i) body(i, InTurn{pieces});
    });
}

}  // namespace penstock
