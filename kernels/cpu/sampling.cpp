// The next token of every row: the most likely one, or one draw from what top-k, top-p and min-p leave.
//
// All three are thresholds on logits; tokens that tie with the last one kept are kept. A threshold is found without a
// sort and mostly in one pass over the vocabulary: a sample tells between which two bounds it probably lies, the pass
// weighs what is above them and packs what is between, and the exact threshold is found among the latter. Where the
// bounds were wrong the pass is repeated with others that are sure. This is SELECT (Floyd and Rivest, 1975) over
// weights. The draw is the inverse CDF in the order of ids, with sums of blocks in float64.
#include "logit_rows.h"
#include "threshold.h"

namespace penstock {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kSample = 2048;  // logits looked at for the bounds, an eighth of small vocabularies
constexpr int kHead = 512;  // groups of tokens whose largest stand for the head of the distribution
constexpr int kSmall = 4096;  // vocabularies of which everything is packed
constexpr double kDeviations = 3.0;  // of the sample's estimate, from it to each bound
constexpr int kSteps = 3;  // below bounds that were too high, each twice as wide as the one before
constexpr int kElementsTogether = 8192;

struct Wish {
    float temperature;  // 0: the most likely token
    int top_k;  // 0: all
    float top_p, min_p;
    double uniform;  // in [0, 1)
};

// At or above `high`: weighed. Below, but not below `low`: packed.
struct Bounds {
    float low, high;
};

// Of what is at or above `high`: how many, their weights beside those of all, or their weights alone.
enum class Want { kCount, kMass, kKept };

// Arrays of a row's own, cut from the thread's buffer; measured first with no buffer at all.
class Cut {
  public:
    explicit Cut(char *at) : at_(at) {}
    template <class X> X *take(long count) {
        char *mine = at_ + used_;
        used_ += (sizeof(X) * count + 63) / 64 * 64;
        return reinterpret_cast<X *>(mine);
    }
    unsigned long used() const { return used_; }

  private:
    char *at_;
    unsigned long used_ = 0;
};

struct Arrays {
    float *maxima;  // (blocks, kLanes)
    double *kept, *all;  // (blocks,)
    int *found;  // (blocks,) how many are packed
    float *values, *weights;  // what is packed, or the sample

    Arrays(Cut &cut, int blocks, int pieces) {
        const long packed = static_cast<long>(pieces) * (kPiece + kLanes);
        const long sample = blocks * kLanes + kSample + 2 * kLanes;
        maxima = cut.take<float>(blocks * kLanes);
        kept = cut.take<double>(blocks);
        all = cut.take<double>(blocks);
        found = cut.take<int>(blocks);
        values = cut.take<float>(std::max(packed, sample) + kLanes);
        weights = cut.take<float>(std::max(packed, sample) + kLanes);
    }

    static Arrays of_thread(int blocks, int pieces) {
        Cut measure(nullptr);
        Arrays(measure, blocks, pieces);
        Cut cut(static_cast<char *>(scratch(Scratch::kSampling, measure.used())));
        return Arrays(cut, blocks, pieces);
    }
};

template <class T, class Each> class Drawing {
  public:
    Drawing(const Row<T> &row, const Wish &wish, const Each &each)
        : row_(row), wish_(wish), each_(each), to_(Arrays::of_thread(row.blocks(), row.pieces())),
          most_(scan_maxima(row, each, to_.maxima)), weigh_(most_, wish.temperature) {}

    int token() {
        if (wish_.temperature <= 0.0f || !(most_ >= kLowest && most_ < kInfinity))
            return first_of(row_, to_.maxima, most_);
        // The threshold of min-p is known at once; that of top-p does not matter where it is lower.
        if (wish_.min_p > 0.0f) {
            const double below = static_cast<double>(wish_.temperature) * std::log(static_cast<double>(wish_.min_p));
            sure_ = std::min(most_, std::max(kLowest, static_cast<float>(most_ + below)));
        }
        const bool some = 0 < wish_.top_k && wish_.top_k < row_.vocab;
        const bool few = some && wish_.top_k <= std::max(groups() / 2, row_.vocab / 16);
        if (few) pack_top_k();
        else if (some) top_k();
        least_ = std::max(floor_, sure_);
        if (few) {
            weigh_packed();
            if (wish_.top_p < 1.0f) top_p_of_packed();
        } else if (wish_.top_p < 1.0f) {
            top_p();
        } else {
            collect<Want::kKept>({least_, least_});
        }
        add_packed();
        return pick();
    }

  private:
    int groups() const { return row_.blocks() * kLanes; }

    // --------------------------------------------------------------------------------- one pass over the vocabulary

    // to_.kept says what is at or above bounds.high, to_.all (kMass) what is at or above floor_, block by block.
    template <Want kWant> void collect(Bounds bounds) {
        num_ = 0;
        each_([&](int piece) {
            float *out = to_.values + (Each::kShared ? static_cast<long>(piece) * (kPiece + kLanes) : num_);
            for (int b = row_.first_block(piece); b < row_.last_block(piece); ++b) {
                to_.found[b] = collect_block<kWant>(b, bounds, out);
                out += to_.found[b];
            }
            if (!Each::kShared) num_ = static_cast<int>(out - to_.values);
        });
        if (Each::kShared)
            for (int piece = 0; piece < row_.pieces(); ++piece) {
                int found = 0;
                for (int b = row_.first_block(piece); b < row_.last_block(piece); ++b) found += to_.found[b];
                std::memmove(to_.values + num_, to_.values + static_cast<long>(piece) * (kPiece + kLanes),
                             found * sizeof(float));
                num_ += found;
            }
        fill_up();
    }

    template <Want kWant> int collect_block(int b, Bounds bounds, float *out) {
        const T *x = row_.block(b);
        const int length = row_.length(b);
        const Weigh weigh = weigh_;
        const vf low = splat(bounds.low), high = splat(bounds.high), floor = splat(floor_);
        to_.kept[b] = to_.all[b] = 0.0;
        if (bits(at_least(load(to_.maxima + b * kLanes), low)) == 0) {
            if (kWant == Want::kMass && !(bounds.low <= floor_)) {
                vf all[2] = {};
                each_pair(x, length, [&](vf a, vf b) {
                    const vf w = weigh(a), v = weigh(b);
                    all[0] = add_where(all[0], at_least(a, floor), w);
                    all[1] = add_where(all[1], at_least(b, floor), v);
                });
                to_.all[b] = sum(all[0] + all[1]);
            }
            return 0;
        }
        vf kept{}, all{};
        int above = 0;
        const float *begin = out;
        auto take = [&](vf v) {
            const Where up = at_least(v, high);
            if (kWant == Want::kCount) {
                above += count(up);
            } else {
                const vf w = weigh(v);
                kept = add_where(kept, up, w);
                if (kWant == Want::kMass) all = add_where(all, at_least(v, floor), w);
            }
            if (kWant != Want::kKept) out += pack(out, but_not(at_least(v, low), up), v);
        };
        each_pair(x, length, [&](vf a, vf b) {
            take(a);
            take(b);
        });
        to_.kept[b] = kWant == Want::kCount ? above : sum(kept);
        to_.all[b] = sum(all);
        return static_cast<int>(out - begin);
    }

    void fill_up() {
        const int end = (num_ + kLanes - 1) / kLanes * kLanes;
        for (int i = num_; i < end; ++i) to_.values[i] = kForbidden;
    }

    void weigh_packed() {
        for (int i = 0; i < num_; i += kLanes) store(to_.weights + i, weigh_(load(to_.values + i)));
    }

    float crossing_of_packed(const float *weights, double wanted, double all, float low) const {
        const int n = (num_ + kLanes - 1) / kLanes * kLanes;
        return crossing(to_.values, weights, n, wanted, {low, all}, {most_, 0.0});
    }

    // What at least `wanted` of the groups' maxima reach, and few more.
    float crossing_of_maxima(int wanted) const {
        const double all = groups();
        return crossing(to_.maxima, nullptr, groups(), wanted, {kLowest, all}, {most_, 0.0}, wanted / 8.0);
    }

    // The weight of what is packed and no less than `least`.
    double weight_of_packed(float least) const {
        const vf at = splat(least);
        return sum_of_vectors(num_, [&](vf part, int i) {
            return add_where(part, at_least(load(to_.values + i), at), load(to_.weights + i));
        });
    }

    double over_blocks(const double *sums) const {
        double total = 0.0;
        for (int b = 0; b < row_.blocks(); ++b) total += sums[b];
        return total;
    }

    // ----------------------------------------------------------------------------------------------- the thresholds

    // top-k by packing little more than k tokens: those that reach the k-th largest of the groups' maxima, or a bound
    // that a sample suggests where there are fewer groups.
    void pack_top_k() {
        Bounds bounds{kLowest, kInfinity};
        if (wish_.top_k <= groups() / 2) bounds.low = crossing_of_maxima(wish_.top_k);
        else if (row_.vocab > kSmall) bounds.low = guess<Want::kCount>(wish_.top_k).low;
        collect<Want::kCount>(bounds);
        if (num_ < wish_.top_k && bounds.low > kLowest) collect<Want::kCount>(bounds = {kLowest, kInfinity});
        floor_ = crossing_of_packed(nullptr, wish_.top_k, num_, bounds.low);
    }

    // Any top-k: floor_ alone.
    void top_k() {
        Bounds bounds = row_.vocab <= kSmall ? Bounds{kLowest, kInfinity} : guess<Want::kCount>(wish_.top_k);
        for (int round = 0;; ++round) {
            collect<Want::kCount>(bounds);
            const double above = over_blocks(to_.kept);
            if (round < 2 && retry(bounds, kLowest, kInfinity, wish_.top_k, above, above + num_)) continue;
            floor_ = crossing_of_packed(nullptr, wish_.top_k - above, num_, bounds.low);
            return;
        }
    }

    void top_p_of_packed() {
        const double all = weight_of_packed(floor_), wanted = wish_.top_p * all;
        least_ = crossing_of_packed(to_.weights, wanted, all, least_);
    }

    void top_p() {
        const float lowest = std::max(floor_, sure_);
        Bounds bounds = row_.vocab <= kSmall ? Bounds{lowest, kInfinity} : guess<Want::kMass>(wish_.top_p);
        bounds = {std::max(bounds.low, lowest), std::max(bounds.high, lowest)};
        for (int round = 0;; ++round) {
            collect<Want::kMass>(bounds);
            weigh_packed();
            const double wanted = wish_.top_p * over_blocks(to_.all);
            const double above = over_blocks(to_.kept), between = weight_of_packed(kLowest);
            const float step = round < kSteps ? std::ldexp(wish_.temperature, round) : kInfinity;
            if (round < kSteps + 2 && retry(bounds, lowest, step, wanted, above, above + between)) continue;
            least_ = crossing_of_packed(to_.weights, wanted - above, between, bounds.low);
            return;
        }
    }

    // Does the threshold lie outside of the bounds? Then they are replaced by the side on which it does; below them, the
    // next `step` alone while there are rounds left.
    static bool retry(Bounds &bounds, float lowest, float step, double wanted, double above, double within) {
        if (above >= wanted && bounds.high < kInfinity) bounds = {bounds.high, kInfinity};
        else if (within < wanted && bounds.low > lowest) bounds = {std::max(lowest, bounds.low - step), bounds.low};
        else return false;
        return true;
    }

    // Bounds between which the threshold probably lies. `wanted` is a number of tokens (kCount) or a share (kMass).
    // Estimate and variance are those of a sample in which every logit stands for row.vocab / sample of its like;
    // the head, which few samples would hit, is known from the groups' maxima instead.
    template <Want kWant> Bounds guess(double wanted) {
        float *values = to_.values, *weights = to_.weights;
        float head = kInfinity;
        int n = 0;
        if (kWant == Want::kMass) {
            head = crossing_of_maxima(std::min(kHead, groups() / 4));
            for (int i = 0; i < groups(); i += kLanes) {
                const vf v = load(to_.maxima + i);
                n += pack(values + n, at_least(v, splat(std::max(head, floor_))), v);
            }
            n = weigh_sample(0, n, 1.0f);
        }
        const int body = n, vectors = std::min(kSample, row_.vocab / 8) / kLanes;
        for (int i = 0; i < vectors; ++i) {
            const vf v = load(row_.logits + static_cast<long>(i) * (row_.vocab - kLanes) / vectors);
            n += pack(values + n, but_not(at_least(v, splat(floor_)), at_least(v, splat(head))), v);
        }
        const float each = static_cast<float>(row_.vocab) / static_cast<float>(vectors * kLanes);
        n = weigh_sample<kWant == Want::kCount>(body, n, each);

        double all = 0.0;
        for (int i = 0; i < n; i += kLanes) all += sum(load(weights + i));
        if (kWant == Want::kMass) wanted *= all;
        const float middle = crossing(values, weights, n, wanted, {floor_, all}, {most_, 0.0}, all / 500);
        const double share = wanted / all;
        vf above{}, under{};
        for (int i = body; i < n; i += kLanes) {
            const vf w = load(weights + i);
            const Where up = at_least(load(values + i), splat(middle));
            above = add_where(above, up, w * w);
            under = add_where(under, opposite(up), w * w);
        }
        const double variance = (1 - share) * (1 - share) * sum(above) + share * share * sum(under);
        const double margin = kDeviations * std::sqrt(variance);
        Bounds bounds{floor_, kInfinity};
        if (wanted + margin < all)
            bounds.low = crossing(values, weights, n, wanted + margin, {floor_, all}, {middle, wanted}, margin / 4);
        const double less = wanted - 1.25 * margin;
        if (less > 0) {
            const float high = crossing(values, weights, n, less, {middle, wanted}, {most_, 0.0}, margin / 4);
            // In the head nearly everything above is packed already. What ties with `high` is packed, too.
            if (high < head) bounds.high = std::nextafterf(high, kInfinity);
        }
        return bounds;
    }

    // Weights of the sample's values from `first` to `end`, and both filled up to whole vectors: the new end.
    template <bool kCounted = false> int weigh_sample(int first, int end, float each) {
        const int filled = (end + kLanes - 1) / kLanes * kLanes;
        for (int i = end; i < filled; ++i) to_.values[i] = kForbidden;
        for (int i = first; i < filled; i += kLanes) {
            const vf v = load(to_.values + i);
            const vf w = kCounted ? splat(1.0f) : weigh_(v);
            store(to_.weights + i, only(at_least(v, splat(kLowest)), w * splat(each)));
        }
        return filled;
    }

    // ----------------------------------------------------------------------------------------------------- the draw

    // What of the packed is kept joins the sums of its blocks.
    void add_packed() {
        const vf least = splat(least_);
        const float *values = to_.values, *weights = to_.weights;
        for (int b = 0; b < row_.blocks(); ++b) {
            const int found = to_.found[b];
            if (found == 0) continue;
            vf total{};
            for (int i = 0; i < found; i += kLanes) {
                const Where mine = leading(std::min(kLanes, found - i));
                total = add_where(total, both(mine, at_least(load(values + i), least)), load(weights + i));
            }
            to_.kept[b] += sum(total);
            values += found;
            weights += found;
        }
    }

    int pick() const {
        const double total = over_blocks(to_.kept);
        // Rounding must not carry the point past the last token.
        const double point = std::min(wish_.uniform * total, std::nextafter(total, 0.0));
        double before = 0.0;
        int chosen = 0;
        for (int b = 0; b < row_.blocks(); ++b) {
            if (!(to_.kept[b] > 0.0)) continue;
            chosen = b;
            if (before + to_.kept[b] > point) break;
            before += to_.kept[b];
        }
        return chosen * kBlock + place(chosen, point - before);
    }

    // The token of a block at which its kept weights exceed `point`; the last that weighs anything beside the others
    // where rounding leaves none.
    int place(int b, double point) const {
        const vf least = splat(least_);
        double before = 0.0;
        int chosen = 0;
        bool found = false;
        each_logits(row_.block(b), row_.length(b), [&](int i, vf v) {
            if (found) return;
            const vf w = only(at_least(v, least), weigh_(v));
            const double all = sum(w);
            if (before + all == before) return;
            float lane[kLanes];
            std::memcpy(lane, &w, sizeof lane);
            found = before + all > point;
            double here = before;
            for (int j = 0; j < kLanes && !(here > point); ++j)
                if (here + lane[j] > here) {
                    here += lane[j];
                    chosen = i + j;
                }
            before += all;
        });
        return chosen;
    }

    Row<T> row_;
    Wish wish_;
    Each each_;
    Arrays to_;
    float most_;
    Weigh weigh_;
    float sure_ = kLowest;  // min-p's threshold
    float floor_ = kLowest;  // top-k's threshold
    float least_ = kLowest;  // of all three
    int num_ = 0;  // packed values
};

}  // namespace
}  // namespace penstock

using namespace penstock;

#define PENSTOCK_SAMPLING(T, NAME)                                                                                    \
    /* tokens[i] of logits row rows[i] (null: row i), sampled as slots[i] says: temperature, top_k, top_p and min_p   \
       are arrays over slots, uniform (count,) in [0, 1). */                                                          \
    void penstock_sample_##NAME(const T *logits, long stride, int vocab, const int *rows, int count,                  \
                                const int *slots, const float *temperature, const int *top_k, const float *top_p,     \
                                const float *min_p, const double *uniform, int *tokens) {                             \
        each_logit_row(count, vocab, kElementsTogether, [&](int i, auto each) {                                       \
            const int slot = slots[i];                                                                                \
            const Wish wish{temperature[slot], top_k[slot], top_p[slot], min_p[slot], uniform[i]};                    \
            const Row<T> row{logits + (rows == nullptr ? i : rows[i]) * stride, vocab};                               \
            tokens[i] = Drawing<T, decltype(each)>(row, wish, each).token();                                          \
        });                                                                                                           \
    }

extern "C" {
PENSTOCK_SAMPLING(bf16, bf16)
PENSTOCK_SAMPLING(float, f32)
}
