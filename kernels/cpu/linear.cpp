// y = x W^T + bias over weights packed once into panels; gated, y = silu(gate) * up of two halves of such a product.
//
// A panel holds kPanel output columns: word k of all its columns side by side, then word k + 1. One layout serves
// one row (streams the weights at memory speed) and thousands (register tiles over cached panels).
#include <algorithm>

#include "graph.h"
#include "pool.h"
#include "product.h"

namespace penstock {
namespace {

struct Linear {
    const uint32_t *packed;  // (panels, k_words, kPanel)
    Outputs outputs;
    int in_features, k_words, panels;
};

// Rows x[first .. first + rows) into words [k][rows], zero beyond in_features.
template <class Mode>
void pack_rows(const typename Mode::element *x, long ldx, int first, int rows, int in_features, int k_words,
               uint32_t *out) {
    const int whole = in_features / Mode::steps;
    for (int r = 0; r < rows; ++r) {
        const auto *row = reinterpret_cast<const unsigned char *>(x + (first + r) * ldx);
        for (int k = 0; k < whole; ++k) std::memcpy(out + static_cast<long>(k) * rows + r, row + 4l * k, 4);
        if (whole < k_words) {
            uint32_t last = 0;
            std::memcpy(&last, row + 4l * whole, 4 / Mode::steps);
            out[static_cast<long>(whole) * rows + r] = last;
        }
    }
}

template <class Mode>
void forward(const Linear &w, const typename Mode::element *x, long ldx, int rows, typename Mode::element *y,
             long ldy) {
    const RowBlocks blocks(rows);
    const long k_words = w.k_words;
    const uint32_t *packed_x;
    const bool direct = rows == 1 && w.in_features % Mode::steps == 0;
    if (direct) {
        packed_x = reinterpret_cast<const uint32_t *>(x);
    } else {
        auto *out = static_cast<uint32_t *>(scratch(Scratch::kPack, 4ul * rows * k_words));
        auto pack = [&](int b) {
            const int first = blocks.begin(b);
            pack_rows<Mode>(x, ldx, first, blocks.begin(b + 1) - first, w.in_features, w.k_words,
                            out + first * k_words);
        };
        if (rows * k_words < 65536)
            for (int b = 0; b < blocks.count; ++b) pack(b);
        else
            parallel_for(blocks.count, pack);
        packed_x = out;
    }

    // Chunks: groups of row blocks that stay cached, times runs of panels.
    const int groups = (blocks.count + kCachedBlocks - 1) / kCachedBlocks;
    const int threads = parallel_threads();
    const int step = std::max(w.outputs.gated ? 2 : 1, panels_at_once(std::min(rows, kRows)));
    int run = std::max(1, w.panels * groups / (threads * 16));
    run = std::min(w.panels, (run + step - 1) / step * step);
    const double words = static_cast<double>(k_words) * w.panels * kPanel;
    if (words * (6 + rows) < 6e5) run = w.panels;  // about ten microseconds: not worth a second thread
    const int runs = (w.panels + run - 1) / run;

    auto chunk = [&](int index) {
        const int group = index / runs, first_panel = index % runs * run;
        const int last_panel = std::min(w.panels, first_panel + run);
        const int first_block = static_cast<int>(static_cast<long>(group) * blocks.count / groups);
        const int last_block = static_cast<int>(static_cast<long>(group + 1) * blocks.count / groups);
        alignas(64) float c[kRows * 4 * kPanel];
        for (int p = first_panel; p < last_panel; p += step) {
            const int panels = std::min(step, last_panel - p);
            for (int b = first_block; b < last_block; ++b) {
                const int first = blocks.begin(b), height = blocks.begin(b + 1) - first;
                const long ldc = step * kPanel;
                const uint32_t *a = packed_x + first * k_words, *panel = w.packed + p * k_words * kPanel;
                if (b == first_block)
                    tiles<Mode, 0, true>(height, panels, a, panel, kPanel, k_words * kPanel, w.k_words, c, ldc, false);
                else
                    tiles<Mode, 0>(height, panels, a, panel, kPanel, k_words * kPanel, w.k_words, c, ldc, false);
                for (int r = 0; r < height; ++r)
                    w.outputs.store_row(c + r * ldc, p, panels, y + (first + r) * ldy);
            }
        }
    };
    parallel_for(groups * runs, chunk);
}

template <class Mode>
void pack_weight(const typename Mode::element *weight, long ldw, const Outputs &outputs, int in_features,
                 uint32_t *packed) {
    const long k_words = (in_features + Mode::steps - 1) / Mode::steps;
    parallel_for(outputs.panels(), [&](int p) {
        uint32_t *out = packed + p * k_words * kPanel;
        const int first_row = outputs.first_row(p), rows = outputs.count_rows(p);
        if (rows < kPanel) std::memset(out, 0, 4ul * k_words * kPanel);
        const int whole = in_features / Mode::steps;
        for (int k0 = 0; k0 < whole; k0 += 16)  // 16 words of every row: a cache line in, kPanel lines out
            for (int r = 0; r < rows; ++r) {
                const auto *row = reinterpret_cast<const unsigned char *>(weight + (long)(first_row + r) * ldw);
                for (int k = k0; k < std::min(whole, k0 + 16); ++k)
                    std::memcpy(out + static_cast<long>(k) * kPanel + r, row + 4l * k, 4);
            }
        if (whole < k_words)
            for (int r = 0; r < rows; ++r) {
                uint32_t last = 0;
                std::memcpy(&last, weight + (long)(first_row + r) * ldw + (long)whole * Mode::steps,
                            4 / Mode::steps);
                out[static_cast<long>(whole) * kPanel + r] = last;
            }
    });
}

// Row `id` of the original weight out of the panels.
template <class Mode> void unpack_row(const Linear &w, int id, typename Mode::element *out) {
    const uint32_t *column = w.packed + static_cast<long>(id / kPanel) * w.k_words * kPanel + id % kPanel;
    for (int k = 0; k < w.k_words; ++k) {
        const int at = k * Mode::steps;
        std::memcpy(out + at, column + static_cast<long>(k) * kPanel,
                    sizeof(*out) * std::min(Mode::steps, w.in_features - at));
    }
}

}  // namespace
}  // namespace penstock

using namespace penstock;

extern "C" {

// out_features is what y has; the weight of a gated one has twice as many rows, gate above up.

// Words of 32 bits that the packed weight takes.
long penstock_linear_words(int is_bf16, int out_features, int in_features, int gated) {
    const long k_words = is_bf16 ? (in_features + 1) / 2 : in_features;
    return static_cast<long>(Outputs{nullptr, out_features, gated != 0}.panels()) * kPanel * k_words;
}

void penstock_linear_pack(int is_bf16, const void *weight, long ldw, int out_features, int in_features, int gated,
                          uint32_t *packed) {
    const Outputs outputs{nullptr, out_features, gated != 0};
    if (is_bf16) pack_weight<BFloat16>(static_cast<const bf16 *>(weight), ldw, outputs, in_features, packed);
    else pack_weight<Float32>(static_cast<const float *>(weight), ldw, outputs, in_features, packed);
}

void *penstock_linear_new(int is_bf16, const uint32_t *packed, const float *bias, int out_features, int in_features,
                          int gated) {
    const Outputs outputs{bias, out_features, gated != 0};
    return new Linear{packed, outputs, in_features, is_bf16 ? (in_features + 1) / 2 : in_features, outputs.panels()};
}

void penstock_linear_free(void *linear) { delete static_cast<Linear *>(linear); }

void penstock_linear_bf16(const void *linear, const bf16 *x, long ldx, int rows, bf16 *y) {
    const Linear &w = *static_cast<const Linear *>(linear);
    forward<BFloat16>(w, x, ldx, rows, y, w.outputs.out_features);
}

void penstock_linear_f32(const void *linear, const float *x, long ldx, int rows, float *y) {
    const Linear &w = *static_cast<const Linear *>(linear);
    forward<Float32>(w, x, ldx, rows, y, w.outputs.out_features);
}

void penstock_linear_rows_bf16(const void *linear, const int *ids, int count, bf16 *out) {
    const Linear &w = *static_cast<const Linear *>(linear);
    parallel_for((count + 7) / 8, [&](int run) {
        for (int i = run * 8; i < std::min(count, run * 8 + 8); ++i)
            unpack_row<BFloat16>(w, ids[i], out + static_cast<long>(i) * w.in_features);
    });
}

void penstock_linear_rows_f32(const void *linear, const int *ids, int count, float *out) {
    const Linear &w = *static_cast<const Linear *>(linear);
    parallel_for((count + 7) / 8, [&](int run) {
        for (int i = run * 8; i < std::min(count, run * 8 + 8); ++i)
            unpack_row<Float32>(w, ids[i], out + static_cast<long>(i) * w.in_features);
    });
}
}

PENSTOCK_RECORDABLE(linear_bf16)
PENSTOCK_RECORDABLE(linear_f32)
