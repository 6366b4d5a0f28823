// A text that a user expects as the answer, followed while the answer is written.
//
// As long as the answer says what is predicted, the next token is the next one there. After a divergence the place is
// looked for again: where the longest end of the answer stands in the prediction, of several such places the nearest
// behind the last sure one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace penstock {

class PredictedText {
  public:
    static constexpr int kContext = 16;  // tokens of the answer that a place is looked for with
    static constexpr int kSure = 3;      // tokens in a row after which a place is believed
    static constexpr int kPlaces = 2048; // looked at on each side of the sure place, nearest first
    static constexpr int kFromStart = 1 << 20;  // `matched` of an answer that has said nothing else yet

    void set(const int *tokens, int count) {
        tokens_.assign(tokens, tokens + count);
        int bits = 4;
        while (1 << bits < count) ++bits;
        shift_ = 32 - bits;
        begins_.assign((size_t(1) << bits) + 1, 0);
        places_.resize(count);
        for (int token : tokens_) ++begins_[bucket(token) + 1];
        for (size_t b = 1; b < begins_.size(); ++b) begins_[b] += begins_[b - 1];
        std::vector<int> ends(begins_.begin(), begins_.end() - 1);
        for (int i = 0; i < count; ++i) places_[ends[bucket(tokens_[i])]++] = i;
        at_ = sure_ = 0;
        matched_ = kFromStart;
        guess_ = false;
    }

    void clear() { *this = PredictedText(); }
    bool empty() const { return tokens_.empty(); }
    int matched() const { return matched_; }
    bool is_sure() const { return matched_ >= kSure; }
    size_t bytes() const { return sizeof(int) * (tokens_.capacity() + places_.capacity() + begins_.capacity()); }

    // Takes in the newest token of the answer; `recent` are the last `count` ones, it included. Whether it was predicted.
    bool follow(const int *recent, int count) {
        const int token = recent[count - 1];
        const bool predicted = matched_ > 0 && at_ < size() && tokens_[at_] == token;
        if (predicted) {
            ++at_, ++matched_;
        } else {
            const bool was_sure = is_sure();
            find(recent, count);
            // Nothing fits, right after the first token that differs: it may stand in the place of another one.
            guess_ = matched_ == 0 && was_sure;
            if (guess_) at_ = sure_ + 1;
        }
        if (is_sure()) sure_ = at_;
        return predicted;
    }

    // What is predicted next, at most `most` tokens, into `out`. Returns how many.
    int draft(int most, int *out) const {
        if (matched_ == 0 && !guess_) return 0;
        const int n = std::max(0, std::min(most, size() - at_));
        std::copy_n(tokens_.begin() + std::min(at_, size()), n, out);
        return n;
    }

  private:
    int size() const { return static_cast<int>(tokens_.size()); }

    uint32_t bucket(int token) const { return (static_cast<uint32_t>(token) * 0x9E3779B1u) >> shift_; }

    void find(const int *recent, int count) {
        const int most = std::min(count, kContext);
        const uint32_t b = bucket(recent[count - 1]);
        const int *first = places_.data() + begins_[b], *end = places_.data() + begins_[b + 1];
        const int *middle = std::lower_bound(first, end, sure_);
        matched_ = 0;
        const auto look = [&](int i) {
            int length = 0;
            while (length < most && length <= i && tokens_[i - length] == recent[count - 1 - length]) ++length;
            if (length > matched_) matched_ = length, at_ = i + 1;
            return matched_ == most;
        };
        for (const int *i = middle; i != end && i - middle < kPlaces; ++i)
            if (look(*i)) return;
        for (const int *i = middle; i != first && middle - i < kPlaces; --i)
            if (look(i[-1])) return;
    }

    // `places_` from begins_[b] to begins_[b + 1] are those of the tokens in bucket b, in order.
    std::vector<int> tokens_, places_, begins_;
    int shift_ = 28;
    int at_ = 0;       // what comes next there
    int sure_ = 0;     // where that was when it was last believed
    int matched_ = 0;  // tokens before `at_` that the answer ends in; 0: no place is known
    bool guess_ = false;
};

}  // namespace penstock
