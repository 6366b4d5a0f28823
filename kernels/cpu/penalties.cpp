// Repetition, frequency and presence penalties, in one pass over a row of logits.
#include "logit_rows.h"

namespace penstock {
namespace {

struct Penalties {
    float repetition, frequency, presence;
};

void penalise(float *x, int vocab, const int *counts, const unsigned char *prompt_has, const Penalties &penalties) {
    for (int i = 0; i < vocab; ++i) {
        const float v = x[i], count = static_cast<float>(counts[i]);
        const bool came = counts[i] > 0;
        const float repeated = v > 0.0f ? v / penalties.repetition : v * penalties.repetition;
        const float at = came | (prompt_has[i] != 0) ? repeated : v;
        x[i] = at - penalties.frequency * count - (came ? penalties.presence : 0.0f);
    }
}

}  // namespace
}  // namespace penstock

using namespace penstock;

extern "C" {
// logits (count, vocab) in place. Row i is penalised as slots[i] says (repetition, frequency, presence: arrays over
// slots) by what row count_rows[i] of output_counts and prompt_has, both (any, vocab), holds.
void penstock_penalise(float *logits, long stride, int vocab, int count, const int *slots, const int *count_rows,
                       const int *output_counts, const unsigned char *prompt_has, const float *repetition,
                       const float *frequency, const float *presence) {
    const int pieces = (vocab + kPiece - 1) / kPiece;
    parallel_for(count * pieces, [&](int part) {
        const int i = part / pieces, slot = slots[i];
        const long first = static_cast<long>(part % pieces) * kPiece, at = static_cast<long>(count_rows[i]) * vocab;
        penalise(logits + i * stride + first, static_cast<int>(std::min<long>(kPiece, vocab - first)),
                 output_counts + at + first, prompt_has + at + first,
                 Penalties{repetition[slot], frequency[slot], presence[slot]});
    });
}
}
