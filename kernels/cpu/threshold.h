// At which value the largest of some numbers weigh enough: top-k (every weight 1) and top-p without a sort.
//
// A search that narrows two bounds, as bisection does, on values that occur: each round sums the weights on one side of
// a probe and moves a bound to the next number beyond it. Probes are interpolated (Dekker's way of safeguarding
// them); every third halves the distance between the bounds' bit patterns, so that no distribution takes many rounds.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "masks.h"

namespace penstock {

// Floats in their own order as integers.
inline int32_t ordered(float x) {
    int32_t i;
    std::memcpy(&i, &x, sizeof i);
    return i ^ ((i >> 31) & 0x7fffffff);
}
inline float from_ordered(int32_t i) {
    i ^= (i >> 31) & 0x7fffffff;
    float x;
    std::memcpy(&x, &i, sizeof x);
    return x;
}

struct Side {
    double weight;  // of what is at or above the probe
    float above, below;  // the nearest numbers: at or above it, and below
};

// What f(i) gives for the vectors of n numbers, summed; in float32 over short runs alone, so that many equal numbers do
// not add up the same error.
template <class F> inline double sum_of_vectors(int n, const F &f) {
    constexpr int kRun = 32 * kLanes;
    double total = 0.0;
    for (int first = 0; first < n; first += kRun) {
        vf part{};
        for (int i = first; i < std::min(n, first + kRun); i += kLanes) part = f(part, i);
        total += sum(part);
    }
    return total;
}

template <class WeightAt> inline Side side_of(const float *values, int n, float probe, const WeightAt &weight_at) {
    const vf at = splat(probe);
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    vf above = splat(kInfinity), below = splat(-kInfinity);
    const double weight = sum_of_vectors(n, [&](vf part, int i) {
        const vf v = load(values + i);
        const Where up = at_least(v, at);
        above = min_where(above, up, v);
        below = max_where(below, opposite(up), v);
        return add_where(part, up, weight_at(i));
    });
    return {weight, smallest(above), largest(below)};
}

// A number, and about how much the values that are not less weigh.
struct Bound {
    float at;
    double weight;
};

// The largest of the n `values` at which it and all that are larger weigh `wanted` together, sought above low.at and up
// to top.at (which no value within the search exceeds); low.at when there is none. n is a multiple of kLanes, filled up
// with -inf; `weights` may be null (1 each). With `slack` a smaller number will do at which they weigh that much more.
inline float crossing(const float *values, const float *weights, int n, double wanted, Bound low, Bound top,
                      double slack = 0.0) {
    for (int round = 0; low.at < top.at && (low.weight - wanted > slack || slack == 0.0); ++round) {
        float probe;
        if (round % 3 == 2 || low.at == -FLT_MAX || !(low.weight > top.weight)) {
            const int64_t both = static_cast<int64_t>(ordered(low.at)) + ordered(top.at);
            probe = from_ordered(static_cast<int32_t>((both + 1) >> 1));
        } else {
            const double share = (wanted - top.weight) / (low.weight - top.weight);
            const double distance = static_cast<double>(top.at) - low.at;
            probe = static_cast<float>(top.at - distance * std::min(0.95, std::max(0.05, share)));
        }
        probe = std::min(std::max(probe, std::nextafterf(low.at, top.at)), top.at);
        const Side side = weights == nullptr
                              ? side_of(values, n, probe, [](int) { return splat(1.0f); })
                              : side_of(values, n, probe, [&](int i) { return load(weights + i); });
        if (side.above <= top.at && side.weight >= wanted) low = {side.above, side.weight};
        else top = {side.below, side.weight};
    }
    return low.at;
}

}  // namespace penstock
