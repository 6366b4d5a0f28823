// How likely given tokens were: their log probabilities and ranks, and the k most likely tokens of every row.
//
// The softmax is normalised by sums of blocks, in order. The k best are sought only in blocks whose maxima reach the
// k-th largest of the groups' maxima.
#include <cmath>

#include "logit_rows.h"
#include "threshold.h"

namespace penstock {
namespace {

constexpr int kElementsTogether = 8192;

struct Candidate {
    float logit;
    int token;
    // More likely first; of equals the lower id.
    bool operator<(const Candidate &other) const {
        return logit != other.logit ? logit > other.logit : token < other.token;
    }
};

struct Scored {
    float *logprob;
    int *rank;
    int *top_ids;
    float *top_logprobs;
};

inline unsigned long padded(unsigned long bytes) { return (bytes + 63) / 64 * 64; }

template <class T, class Each>
void score_row(const Row<T> &row, const Each &each, int token, int k, const Scored &out) {
    const int blocks = row.blocks(), groups = blocks * kLanes;
    const unsigned long maxima_bytes = padded(groups * sizeof(float)), sums_bytes = padded(blocks * sizeof(double));
    char *room = static_cast<char *>(scratch(
        Scratch::kSampling, maxima_bytes + sums_bytes + padded(blocks * sizeof(int)) + sizeof(Candidate) * row.vocab));
    float *maxima = reinterpret_cast<float *>(room);
    double *sums = reinterpret_cast<double *>(room + maxima_bytes);
    int *higher = reinterpret_cast<int *>(room + maxima_bytes + sums_bytes);
    auto *best = reinterpret_cast<Candidate *>(room + maxima_bytes + sums_bytes + padded(blocks * sizeof(int)));

    const float most = scan_maxima(row, each, maxima);
    const float chosen = widen(row.logits[token]);
    const Weigh weigh(most, 1.0f);
    each([&](int piece) {
        for (int b = row.first_block(piece); b < row.last_block(piece); ++b) {
            vf total{};
            int more = 0;
            each_logits(row.block(b), row.length(b), [&](int, vf v) {
                total += weigh(v);
                more += count(above(v, splat(chosen)));
            });
            sums[b] = sum(total);
            higher[b] = more;
        }
    });
    double total = 0.0;
    *out.rank = 1;
    for (int b = 0; b < blocks; ++b) {
        total += sums[b];
        *out.rank += higher[b];
    }
    // What is infinite weighs everything, and where all is forbidden everything weighs the same.
    const double normaliser = std::isinf(most) ? 0.0 : std::log(total);
    auto logprob = [&](float logit) {
        return logit == most ? static_cast<float>(-normaliser)
                             : static_cast<float>(static_cast<double>(logit) - most - normaliser);
    };
    *out.logprob = logprob(chosen);
    if (k == 0) return;

    int n = 0;
    const float low = k > groups / 2 ? kForbidden : crossing(maxima, nullptr, groups, k, {kLowest, 1.0 * groups}, {most, 0.0});
    const bool enough = low > kLowest;
    for (int b = 0; b < blocks; ++b) {
        if (enough && bits(at_least(load(maxima + b * kLanes), splat(low))) == 0) continue;
        const T *x = row.block(b);
        for (int i = 0; i < row.length(b); ++i) {
            const float logit = widen(x[i]);
            if (!enough || logit >= low) best[n++] = {logit == logit ? logit : kForbidden, b * kBlock + i};
        }
    }
    std::partial_sort(best, best + k, best + n);
    for (int i = 0; i < k; ++i) {
        out.top_ids[i] = best[i].token;
        out.top_logprobs[i] = logprob(best[i].logit);
    }
}

template <class T>
void score(const T *logits, long stride, int vocab, const int *rows, int count, const int *tokens, int k,
           float *logprobs, int *ranks, int *top_ids, float *top_logprobs) {
    each_logit_row(count, vocab, kElementsTogether, [&](int i, auto each) {
        const Row<T> row{logits + (rows == nullptr ? i : rows[i]) * stride, vocab};
        const long top = static_cast<long>(i) * k;
        score_row(row, each, tokens[i], k, Scored{logprobs + i, ranks + i, top_ids + top, top_logprobs + top});
    });
}

}  // namespace
}  // namespace penstock

using namespace penstock;

#define PENSTOCK_LOGPROBS(T, NAME)                                                                                    \
    /* Of tokens[i] in logits row rows[i] (null: row i): the log probability and the rank from 1; and the k <= vocab  \
       best, more likely first, as rows of (count, k). */                                                             \
    void penstock_score_##NAME(const T *logits, long stride, int vocab, const int *rows, int count,                   \
                               const int *tokens, int k, float *logprobs, int *ranks, int *top_ids,                   \
                               float *top_logprobs) {                                                                 \
        score(logits, stride, vocab, rows, count, tokens, k, logprobs, ranks, top_ids, top_logprobs);                 \
    }

extern "C" {
PENSTOCK_LOGPROBS(bf16, bf16)
PENSTOCK_LOGPROBS(float, f32)
}
