// The most likely token of every row, the first where several are: one pass at the speed of memory.
#include "graph.h"
#include "logit_rows.h"

namespace penstock {
namespace {

constexpr int kElementsTogether = 32768;

template <class T> void argmax(const T *logits, long stride, int vocab, int count, int *tokens) {
    each_logit_row(count, vocab, kElementsTogether, [&](int i, auto each) {
        const Row<T> row{logits + i * stride, vocab};
        auto *maxima = static_cast<float *>(scratch(Scratch::kSampling, sizeof(float) * kLanes * row.blocks()));
        const float most = scan_maxima(row, each, maxima);
        tokens[i] = first_of(row, maxima, most);
    });
}

}  // namespace
}  // namespace penstock

using namespace penstock;

#define PENSTOCK_ARGMAX(T, NAME)                                                                       \
    /* logits (count, vocab) at `stride`, tokens (count,). */                                          \
    void penstock_argmax_##NAME(const T *logits, long stride, int vocab, int count, int *tokens) {     \
        argmax(logits, stride, vocab, count, tokens);                                                  \
    }

extern "C" {
PENSTOCK_ARGMAX(bf16, bf16)
PENSTOCK_ARGMAX(float, f32)
}

PENSTOCK_RECORDABLE(argmax_bf16)
PENSTOCK_RECORDABLE(argmax_f32)
