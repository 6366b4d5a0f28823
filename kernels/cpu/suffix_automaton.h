// A text as a suffix automaton that grows by a token at a time and knows what usually follows each of its parts.
//
// Construction: Blumer et al., "The smallest automaton recognizing the subwords of a text" (Theoretical Computer Science
// 40, 1985). A state is a class of parts of the text that end at the same places; `link` leads to the longest suffix
// that ends at more places. At most 2n states and 3n edges for n tokens, amortised constant time a token.
//
// Beside it every state counts its places and remembers the token that most often came next (of equals the latest). A
// new token changes that for all suffixes of the text; the kClasses longest classes of them are brought up to date. Only
// a text that ends in many repetitions of one pattern has more, and there the longer contexts are the ones asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace penstock {

class SuffixAutomaton {
  public:
    static constexpr int kClasses = 64;
    static constexpr int kNone = -1;

    // A part of the text: the last `matched` tokens of what `state` stands for.
    struct Place {
        int state = 0, matched = 0;
    };

    SuffixAutomaton() : states_(1, State{0, kNone, kNone, 0, kNone, kNone, kNone}) {}

    void clear() { *this = SuffixAutomaton(); }  // its memory too

    int size() const { return states_[last_].length; }

    size_t bytes() const {
        return states_.capacity() * sizeof(State) + edges_.capacity() * sizeof(Edge) + buckets_.capacity() * sizeof(int);
    }

    void reserve(size_t tokens) {
        grow(states_, tokens + tokens / 2);
        grow(edges_, tokens / 2);
    }

    // Takes in the next token; those below 0 end a text, nothing is drafted beyond them.
    void append(int token) {
        const int before = last_;
        const int now = add_state(State{states_[before].length + 1, 0, token, 1, kNone, kNone, kNone});
        int p = before, q = kNone;
        while (p != kNone && (q = next(p, token)) == kNone) {
            add_edge(p, now);
            p = states_[p].link;
        }
        if (p == kNone) {
            states_[now].link = 0;
        } else if (states_[q].length == states_[p].length + 1) {
            states_[now].link = q;
        } else {
            const int clone = split(p, q);
            for (; p != kNone && next(p, token) == q; p = states_[p].link) {
                redirect(p, q, clone);
                if (states_[p].best == q) states_[p].best = clone;
            }
            states_[q].link = states_[now].link = clone;
        }
        last_ = now;
        count(before);
    }

    // The longest suffix of the text, of at most `most` tokens, that came before.
    Place suffix(int most) const {
        Place place{states_[last_].link, 0};
        if (place.state == kNone) return {};
        place.matched = states_[place.state].length;
        for (int i = 0; place.matched > most && i < kClasses; ++i) {
            const int shorter = states_[place.state].link;
            if (states_[shorter].length < most) break;
            place.state = shorter, place.matched = states_[shorter].length;
        }
        if (place.matched > most) place.matched = most;
        return place;
    }

    // The longest suffix of `tokens` that is part of the text.
    Place find(const int *tokens, int count) const {
        Place place;
        for (int i = 0; i < count; ++i) {
            int target;
            while ((target = next(place.state, tokens[i])) == kNone && place.state != 0) {
                place.state = states_[place.state].link;
                place.matched = states_[place.state].length;
            }
            if (target != kNone) place.state = target, ++place.matched;
        }
        return place;
    }

    // Moves to the longest suffix of `place` that something follows; whether it has `least` tokens.
    bool settle(Place &place, int least) const {
        while (place.state != 0 && states_[place.state].best == kNone) {
            place.state = states_[place.state].link;
            place.matched = states_[place.state].length;
        }
        return place.matched >= least;
    }

    // What most often follows `place`, then what follows that, and so on, while the context has at least `least` (> 0)
    // tokens: at most `most` of them into `out`. Returns how many.
    int follow(Place place, int least, int most, int *out) const {
        int n = 0;
        while (n < most && settle(place, least)) {
            const int target = states_[place.state].best, token = states_[target].token;
            if (token < 0) break;
            out[n++] = token;
            place.state = target, ++place.matched;
        }
        return n;
    }

  private:
    struct State {
        int length;  // of the longest part in the class
        int link;
        int token;  // the last one of every part in the class
        int count;  // places where they end
        int best;   // the state behind the most frequent next token
        int first;  // the state behind the first edge, which most states have alone
        int more;   // head of the list of their further edges
    };
    struct Edge {
        int from, to, next_of_bucket, next_of_state;
    };

    template <class T> static void grow(std::vector<T> &items, size_t size) {
        if (items.capacity() < size) items.reserve(size);
    }

    // Vectors double by themselves; half as much again keeps the memory for n tokens in bounds.
    template <class T> static void make_room(std::vector<T> &items) {
        if (items.size() == items.capacity()) items.reserve(items.size() + items.size() / 2 + 16);
    }

    int add_state(const State &state) {
        make_room(states_);
        states_.push_back(state);
        return static_cast<int>(states_.size()) - 1;
    }

    uint32_t bucket(int from, int token) const {
        const uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(from)) << 32 | static_cast<uint32_t>(token);
        return static_cast<uint32_t>((key * 0x9E3779B97F4A7C15ull) >> 32) >> shift_;
    }

    // The edge beyond the first one of its state, or kNone.
    int edge(int from, int token) const {
        if (states_[from].more == kNone) return kNone;
        int e = buckets_[bucket(from, token)];
        while (e != kNone && (edges_[e].from != from || states_[edges_[e].to].token != token)) e = edges_[e].next_of_bucket;
        return e;
    }

    int next(int from, int token) const {
        const int first = states_[from].first;
        if (first == kNone || states_[first].token == token) return first;
        const int e = edge(from, token);
        return e == kNone ? kNone : edges_[e].to;
    }

    void add_edge(int from, int to) {
        if (states_[from].first == kNone) {
            states_[from].first = to;
            return;
        }
        if (edges_.size() >= buckets_.size()) spread();
        make_room(edges_);
        int &head = buckets_[bucket(from, states_[to].token)];
        edges_.push_back(Edge{from, to, head, states_[from].more});
        head = states_[from].more = static_cast<int>(edges_.size()) - 1;
    }

    void redirect(int from, int was, int to) {
        if (states_[from].first == was) states_[from].first = to;
        else edges_[edge(from, states_[was].token)].to = to;
    }

    void spread() {
        const size_t size = buckets_.empty() ? 16 : buckets_.size() * 2;
        shift_ = 32 - __builtin_ctzll(size);
        buckets_.assign(size, kNone);
        for (size_t e = 0; e < edges_.size(); ++e) {
            int &head = buckets_[bucket(edges_[e].from, states_[edges_[e].to].token)];
            edges_[e].next_of_bucket = head;
            head = static_cast<int>(e);
        }
    }

    // A class of its own for the parts of `q` that are no longer than those of `p` and one token.
    int split(int p, int q) {
        State state = states_[q];
        state.length = states_[p].length + 1;
        const int more = state.more;
        state.more = kNone;
        const int clone = add_state(state);
        for (int e = more; e != kNone; e = edges_[e].next_of_state) add_edge(clone, edges_[e].to);
        return clone;
    }

    // The text ended in `before` and got a token: what follows its suffixes, and how often what it ends in came.
    void count(int before) {
        int t = last_, p = before;
        for (int i = 0; p > 0 && i < kClasses; ++i, p = states_[p].link) {
            while (states_[states_[t].link].length > states_[p].length) ++states_[t = states_[t].link].count;
            const int best = states_[p].best;
            if (best == kNone || states_[t].count >= states_[best].count) states_[p].best = t;
        }
    }

    std::vector<State> states_;
    std::vector<Edge> edges_;
    std::vector<int> buckets_;
    int shift_ = 32, last_ = 0;
};

}  // namespace penstock
