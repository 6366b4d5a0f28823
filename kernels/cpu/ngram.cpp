// Drafts from what a request's own text, its predicted answer and other answers say: the state of all slots of an engine.
#include "predicted_text.h"
#include "suffix_automaton.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

namespace penstock {
namespace {

constexpr int kRecent = 32;            // tokens that other texts are searched for
constexpr int kLongestOutput = 16384;  // tokens of one answer that go into a pool
constexpr int kEndOfText = -1;

// The last `window / 2` to `window` tokens of a text. The first half of a window is dropped when a second automaton,
// begun in the middle, has the other one; so nothing is ever built anew at once.
class Window {
  public:
    void clear() { old_.clear(), young_.clear(); }

    void append(int token, int window) {
        old_.append(token);
        if (old_.size() > window / 2) young_.append(token);
        if (old_.size() >= window) {
            std::swap(old_, young_);
            young_.clear();
        }
    }

    void reserve(int tokens) { old_.reserve(tokens); }
    const SuffixAutomaton &text() const { return old_; }
    size_t bytes() const { return old_.bytes() + young_.bytes(); }

  private:
    SuffixAutomaton old_, young_;
};

struct Slot {
    Window text;
    std::vector<int> waiting;  // tokens not in `text` yet
    size_t taken = 0;          // of those, how many are
    int recent[kRecent];
    int num_recent = 0;
    PredictedText predicted;
    std::vector<int> drafted;  // the head of the last draft that was as predicted
    int num_output = 0, accepted = 0, rejected = 0;
    int pool = -1;
    std::vector<int> output;  // for the pool

    void remember(int token) {
        if (num_recent == kRecent) std::memmove(recent, recent + 1, sizeof(int) * --num_recent);
        recent[num_recent++] = token;
    }
};

struct Settings {
    int least, most, window, pool_window;
};

// How a draft came about, for those who estimate its chances.
enum Source { kShort, kMedium, kLong, kVeryLong, kPredictedUnsure, kPredicted };

int source_of(int matched) { return matched < 4 ? kShort : matched < 8 ? kMedium : matched < 16 ? kLong : kVeryLong; }

struct Drafter {
    Settings settings;
    std::vector<Slot> slots;
    std::vector<Window> pools;
    std::vector<int> queue;  // slots with waiting tokens, in order
    std::vector<int> scratch;

    void start(int index, const int *tokens, int count, int num_prompt, int pool) {
        Slot &slot = slots[index];
        const int skipped = std::max(0, count - settings.window);
        slot.text.reserve(count - skipped);
        slot.waiting.assign(tokens + skipped, tokens + count);
        if (!slot.waiting.empty()) queue.push_back(index);
        for (int i = std::max(0, count - kRecent); i < count; ++i) slot.remember(tokens[i]);
        slot.pool = pool;
        if (pool >= 0 && num_prompt < count) keep(slot, tokens + num_prompt, count - num_prompt);
    }

    // The prediction, and the answer so far, which a resumed request has.
    void predict(int index, const int *tokens, int count, const int *output, int num_output) {
        Slot &slot = slots[index];
        slot.predicted.set(tokens, count);
        for (int i = 0; i < num_output; ++i) {
            const int first = std::max(0, i + 1 - PredictedText::kContext);
            slot.predicted.follow(output + first, i + 1 - first);
        }
        slot.num_output = num_output;
    }

    void stop(int index) {
        Slot &slot = slots[index];
        if (slot.pool >= 0 && !slot.output.empty()) {
            Window &pool = pools[slot.pool];
            for (int token : slot.output) pool.append(token, settings.pool_window);
            pool.append(kEndOfText, settings.pool_window);
        }
        queue.erase(std::remove(queue.begin(), queue.end(), index), queue.end());
        slot = Slot();
    }

    // Up to `budget` waiting tokens, oldest slots first. Returns how many are still waiting.
    long ingest(long budget) {
        size_t done = 0;
        long left = 0;
        for (; done < queue.size(); ++done) {
            Slot &slot = slots[queue[done]];
            const size_t n = std::min<size_t>(slot.waiting.size() - slot.taken, std::max(0l, budget));
            for (size_t i = 0; i < n; ++i) slot.text.append(slot.waiting[slot.taken + i], settings.window);
            slot.taken += n, budget -= static_cast<long>(n);
            if (slot.taken < slot.waiting.size()) break;
            slot.waiting = {}, slot.taken = 0;
        }
        queue.erase(queue.begin(), queue.begin() + static_cast<long>(done));
        for (int index : queue) left += static_cast<long>(slots[index].waiting.size() - slots[index].taken);
        return left;
    }

    void extend(int index, const int *tokens, int count, int verified) {
        Slot &slot = slots[index];
        if (!slot.predicted.empty()) judge(slot, tokens, count, verified);
        for (int i = 0; i < count; ++i) {
            if (slot.waiting.empty()) slot.text.append(tokens[i], settings.window);
            else slot.waiting.push_back(tokens[i]);
            slot.remember(tokens[i]);
            if (slot.predicted.empty()) continue;
            const int known = std::min(++slot.num_output, static_cast<int>(PredictedText::kContext));
            slot.accepted += slot.predicted.follow(slot.recent + slot.num_recent - known, known);
        }
        if (slot.pool >= 0) keep(slot, tokens, count);
    }

    // Draft tokens that were as predicted, and that the model looked at but did not say.
    void judge(Slot &slot, const int *tokens, int count, int verified) {
        const int drafted = static_cast<int>(slot.drafted.size());
        const int n = verified < 0 ? drafted : std::min(verified, drafted);
        int said = 0;
        while (said < n && said < count && tokens[said] == slot.drafted[said]) ++said;
        slot.rejected += n - said;
        slot.drafted.clear();
    }

    void keep(Slot &slot, const int *tokens, int count) {
        const size_t room = kLongestOutput - std::min<size_t>(kLongestOutput, slot.output.size());
        slot.output.insert(slot.output.end(), tokens, tokens + std::min<size_t>(count, room));
    }

    int propose(int index, int most, int *out, int *source) {
        Slot &slot = slots[index];
        const int n = draft(slot, most, out, source);
        if (!slot.predicted.empty()) {
            scratch.resize(most);
            const int predicted = slot.predicted.draft(n, scratch.data());
            int same = 0;
            while (same < predicted && scratch[same] == out[same]) ++same;
            slot.drafted.assign(out, out + same);
        }
        return n;
    }

    int draft(Slot &slot, int most, int *out, int *source) {
        SuffixAutomaton::Place place;
        const SuffixAutomaton *text = nullptr;
        if (slot.waiting.empty()) {
            text = &slot.text.text();
            place = text->suffix(settings.most);
        }
        if (slot.pool >= 0) {
            const SuffixAutomaton &pool = pools[slot.pool].text();
            const int known = std::min(slot.num_recent, settings.most);
            SuffixAutomaton::Place other = pool.find(slot.recent + slot.num_recent - known, known);
            pool.settle(other, 1);
            if (other.matched > place.matched) text = &pool, place = other;
        }
        if (place.matched < settings.least) text = nullptr;
        if (!slot.predicted.empty()) {
            // Of equals the prediction: it was given for this answer.
            const bool first = text == nullptr || slot.predicted.matched() >= place.matched;
            const int n = first ? slot.predicted.draft(most, out) : 0;
            *source = slot.predicted.is_sure() ? kPredicted : kPredictedUnsure;
            if (n > 0) return n;
        }
        *source = source_of(place.matched);
        return text == nullptr ? 0 : text->follow(place, settings.least, most, out);
    }
};

}  // namespace
}  // namespace penstock

using penstock::Drafter;

extern "C" {
// Contexts of `least` to `most` tokens; the last `window` tokens of each text, `pool_window` of each of the pools.
Drafter *penstock_ngram_new(int num_slots, int least, int most, int window, int num_pools, int pool_window) {
    auto *drafter = new Drafter{{least, most, window, pool_window}, {}, {}, {}, {}};
    drafter->slots.resize(num_slots);
    drafter->pools.resize(num_pools);
    return drafter;
}

void penstock_ngram_free(Drafter *drafter) { delete drafter; }

// A slot's text (count,), of which `num_prompt` are prompt. `pool` is the number of its pool, or -1.
void penstock_ngram_start(Drafter *drafter, int slot, const int *tokens, int count, int num_prompt, int pool) {
    drafter->start(slot, tokens, count, num_prompt, pool);
}

void penstock_ngram_predict(Drafter *drafter, int slot, const int *tokens, int count, const int *output, int num_output) {
    drafter->predict(slot, tokens, count, output, num_output);
}

void penstock_ngram_stop(Drafter *drafter, int slot) { drafter->stop(slot); }

void penstock_ngram_clear_pool(Drafter *drafter, int pool) { drafter->pools[pool].clear(); }

// Up to `budget` tokens of texts that were started; returns how many are left.
long penstock_ngram_ingest(Drafter *drafter, long budget) { return drafter->ingest(budget); }

// Row i of (count,) slots got counts[i] tokens, one row's after the other in `tokens`; verified[i] (-1: all) tokens of its
// last draft were looked at.
void penstock_ngram_extend(Drafter *drafter, int count, const int *slots, const int *counts, const int *tokens,
                           const int *verified) {
    for (int i = 0; i < count; ++i) {
        drafter->extend(slots[i], tokens, counts[i], verified == nullptr ? -1 : verified[i]);
        tokens += counts[i];
    }
}

// At most most[i] tokens for row i into `tokens`, one row's after the other; counts[i] says how many, sources[i] why.
// Returns how many in all.
long penstock_ngram_propose(Drafter *drafter, int count, const int *slots, const int *most, int *counts, int *sources,
                            int *tokens) {
    const int *begin = tokens;
    for (int i = 0; i < count; ++i) {
        counts[i] = drafter->propose(slots[i], most[i], tokens, sources + i);
        tokens += counts[i];
    }
    return tokens - begin;
}

// Output tokens that were predicted, and predicted draft tokens that were not said, since the start of each slot.
void penstock_ngram_predicted(Drafter *drafter, int count, const int *slots, int *accepted, int *rejected) {
    for (int i = 0; i < count; ++i) {
        accepted[i] = drafter->slots[slots[i]].accepted;
        rejected[i] = drafter->slots[slots[i]].rejected;
    }
}

// What a slot's text and prediction take.
long penstock_ngram_bytes(Drafter *drafter, int slot) {
    const auto &s = drafter->slots[slot];
    return static_cast<long>(s.text.bytes() + s.predicted.bytes() + sizeof(int) * (s.waiting.capacity() + s.output.capacity()));
}
}
