// What products with packed weights have in common, whatever a weight's numbers are: blocks of rows, the order of the
// panels, and how sums become y = x W^T + bias, or gated, y = silu(gate) * up of two halves of such a product.
#pragma once

#include <algorithm>

#include "gemm.h"

namespace penstock {

// The rows are cut into blocks of nearly equal height, none above kRows.
struct RowBlocks {
    int rows, count;
    explicit RowBlocks(int rows) : rows(rows), count((rows + kRows - 1) / kRows) {}
    int begin(int b) const { return static_cast<int>(static_cast<long>(b) * rows / count); }
};

constexpr int kCachedBlocks = 16;  // of packed rows that stay in the second-level cache beside a panel

// What y is made of. The weight of a gated product has twice as many rows as y has columns, gate above up.
struct Outputs {
    const float *bias;  // (out_features,), gated (2 * out_features,), or null
    int out_features;
    bool gated;

    // Gated, a panel of gate has the panel of up beside it.
    int panels() const { return (out_features + kPanel - 1) / kPanel * (gated ? 2 : 1); }

    // The rows of the weight in panel p: where they begin and how many there are.
    int first_row(int p) const {
        const int column = (gated ? p / 2 : p) * kPanel;
        return gated && p % 2 == 1 ? out_features + column : column;
    }
    int count_rows(int p) const { return std::min(kPanel, out_features - (gated ? p / 2 : p) * kPanel); }

    // The sums c of panels [p, p + panels) of one row, to where they belong in y.
    template <class T> inline void store_row(const float *c, int p, int panels, T *y) const {
        if (gated) return store_gated(c, p, panels, y);
        const int column = p * kPanel;
        each_vector(std::min(out_features - column, panels * kPanel), [&](int i, int n) {
            vf value = load(c + i);
            if (bias != nullptr) value += load_n(bias + column + i, n);
            store_n(y + column + i, value, n);
        });
    }

  private:
    template <class T> inline void store_gated(const float *c, int p, int panels, T *y) const {
        for (int pair = 0; pair < panels; pair += 2) {
            const int column = (p + pair) / 2 * kPanel;
            each_vector(std::min(out_features - column, kPanel), [&](int i, int n) {
                vf gate = load(c + pair * kPanel + i), up = load(c + (pair + 1) * kPanel + i);
                if (bias != nullptr) {
                    gate += load_n(bias + column + i, n);
                    up += load_n(bias + out_features + column + i, n);
                }
                store_n(y + column + i, gate / (splat(1.0f) + exp2(gate * splat(-kLog2e))) * up, n);
            });
        }
    }
};

}  // namespace penstock
