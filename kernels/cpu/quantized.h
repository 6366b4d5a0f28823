// How a weight of 8 or 4 bits is stored: which numbers it can hold, and where they lie.
//
// A weight is level * scale, with a scale for each block of 128 consecutive inputs of an output. 8 bits: the level is
// the code. 4 bits: it is the code times a multiplier of 6 bits and a sign, one for each group of 32 inputs, so that
// the sums of groups can be joined as integers.
//
// The panels are those of linear.cpp, kPanel outputs side by side. In a panel a block is the scales of its columns,
// their multipliers, then its units of eight inputs; the next block follows: one row streams the whole.
#pragma once

#include "product.h"

namespace penstock {

typedef uint16_t vpair __attribute__((vector_size(kLanes * 4), may_alias));  // two in a lane

constexpr int kUnit = 8;           // inputs whose codes lie together in a column's words
constexpr int kPairs = kUnit / 2;  // a word of an activation is a pair of inputs
constexpr int kGroup = 32;         // inputs that share a multiplier; rows are filled up to whole groups
constexpr int kGroupUnits = kGroup / kUnit, kGroupPairs = kGroup / 2;
constexpr int kBlock = 128;  // inputs that share a scale
constexpr int kBlockGroups = kBlock / kGroup, kBlockPairs = kBlock / 2;
constexpr float kNegligible = 1e-30f;  // numbers below it count as zero: no scale is so small that it has no inverse

// Codes are stored without a sign: `zero` is that of the number 0. Code i of a unit lies in word(i), shift(i) bits up.
struct Int8 {
    static constexpr int words = 2, zero = 128, low = -127, high = 127, multiplier = 1;
    static constexpr uint32_t mask = 0xff;
    static constexpr int word(int input) { return input / 4; }
    static constexpr int shift(int input) { return input % 4 / 2 * 8 + input % 2 * 16; }

    // The codes of pair J of a unit, as int16 in the halves of a lane.
    template <int J> static inline vu unpack(const vu *raw) {
        if constexpr (J % 2 == 0) return raw[J / 2] & (vu{} + 0x00ff00ffu);
        else return (vu)((vpair)raw[J / 2] >> 8);
    }
};

struct Int4 {
    static constexpr int words = 1, zero = 8, low = -8, high = 7, multiplier = 63;
    static constexpr uint32_t mask = 0xf;
    static constexpr int word(int) { return 0; }
    static constexpr int shift(int input) { return input / 2 * 4 + input % 2 * 16; }

    template <int J> static inline vu unpack(const vu *raw) {
        if constexpr (J == 3) return (vu)((vpair)raw[0] >> 12);
        else return (raw[0] >> (4 * J)) & (vu{} + 0x000f000fu);
    }
};

constexpr int kLargestActivation = 32767;

// The sum of a block's products fits into 32 bits.
template <class Codes>
constexpr long kLargestSum = -1l * Codes::low * Codes::multiplier * kLargestActivation * kBlock;
static_assert(kLargestSum<Int8> < 1l << 31 && kLargestSum<Int4> < 1l << 31);

// How a panel's bytes lie.
template <class Codes> struct Layout {
    static constexpr bool multiplied = Codes::multiplier > 1;
    static constexpr int scale_bytes = kPanel * 2;  // of a block
    static constexpr int header_bytes = scale_bytes + (multiplied ? kBlockGroups * kPanel : 0);
    static constexpr int unit_bytes = Codes::words * kPanel * 4, group_bytes = kGroupUnits * unit_bytes;
    static constexpr long block_bytes = header_bytes + static_cast<long>(kBlockGroups) * group_bytes;
};

inline int count_groups(int in_features) { return (in_features + kGroup - 1) / kGroup; }
inline int count_blocks(int groups) { return (groups + kBlockGroups - 1) / kBlockGroups; }

template <class Codes> inline long panel_bytes(int groups) {
    return static_cast<long>(count_blocks(groups)) * Layout<Codes>::header_bytes +
           static_cast<long>(groups) * Layout<Codes>::group_bytes;
}

struct Quantized {
    const unsigned char *packed;  // (panels, panel_bytes)
    Outputs outputs;
    int bits, in_features, groups;
    long panel_bytes;
};

}  // namespace penstock
