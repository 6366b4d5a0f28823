// How a kernel becomes a call that can be recorded: its arguments as 64-bit words, each read back as the type it has.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace penstock {

constexpr int kMaxArguments = 23;

// One recorded call; 192 bytes, laid out as the recorder (graph.py) writes it.
struct RecordedCall {
    void (*invoke)(const int64_t *arguments);
    int64_t arguments[kMaxArguments];
};

template <class T> inline T argument(const int64_t &word) {
    if constexpr (std::is_pointer_v<T>) {
        return reinterpret_cast<T>(word);
    } else if constexpr (std::is_floating_point_v<T>) {
        static_assert(sizeof(T) == 4, "a float lies in the low half of its word");
        T value;
        std::memcpy(&value, &word, sizeof value);
        return value;
    } else {
        return static_cast<T>(word);
    }
}

template <class... A, size_t... I>
inline void call_with(void (*kernel)(A...), const int64_t *arguments, std::index_sequence<I...>) {
    static_assert(sizeof...(A) <= kMaxArguments);
    kernel(argument<A>(arguments[I])...);
}

template <class... A> inline void call_with(void (*kernel)(A...), const int64_t *arguments) {
    call_with(kernel, arguments, std::index_sequence_for<A...>{});
}

}  // namespace penstock

// Exports penstock_invoke_NAME beside penstock_NAME.
#define PENSTOCK_RECORDABLE(NAME)                                       \
    extern "C" void penstock_invoke_##NAME(const int64_t *arguments) {  \
        penstock::call_with(&penstock_##NAME, arguments);               \
    }
