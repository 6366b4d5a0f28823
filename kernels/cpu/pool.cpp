// The thread pool behind pool.h.
#include "pool.h"

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <sched.h>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace penstock {
namespace {

using Clock = std::chrono::steady_clock;

// Long enough to bridge the Python between two operations of a layer, short enough that nobody notices it.
constexpr auto kSpin = std::chrono::microseconds(50);

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

struct Pool {
    // Epoch in the high half, unclaimed chunks in the low half. A worker that arrives late finds either zero chunks
    // or another epoch, so it can never claim a chunk of a loop it has not read.
    alignas(64) std::atomic<uint64_t> state{0};
    std::atomic<Body> body{nullptr};
    std::atomic<void *> context{nullptr};
    std::atomic<int> total{0};
    alignas(64) std::atomic<int> done{0};
    alignas(64) std::atomic<uint32_t> bell{0};
    std::atomic<int> sleepers{0};
    std::mutex owner;
    int threads = 1;

    bool claim_and_run() {
        uint64_t s = state.load(std::memory_order_acquire);
        while (static_cast<uint32_t>(s) != 0) {
            if (!state.compare_exchange_weak(s, s - 1, std::memory_order_acq_rel, std::memory_order_acquire))
                continue;
            const int index = total.load(std::memory_order_relaxed) - static_cast<int>(static_cast<uint32_t>(s));
            body.load(std::memory_order_relaxed)(context.load(std::memory_order_relaxed), index);
            done.fetch_add(1, std::memory_order_release);
            return true;
        }
        return false;
    }

    bool has_work() const { return static_cast<uint32_t>(state.load(std::memory_order_seq_cst)) != 0; }

    void sleep() {
        const uint32_t heard = bell.load(std::memory_order_seq_cst);
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        if (!has_work()) {
#if defined(__linux__)
            syscall(SYS_futex, reinterpret_cast<uint32_t *>(&bell), FUTEX_WAIT_PRIVATE, heard, nullptr, nullptr, 0);
#else
            bell.wait(heard, std::memory_order_seq_cst);
#endif
        }
        sleepers.fetch_sub(1, std::memory_order_seq_cst);
    }

    void wake() {
        if (sleepers.load(std::memory_order_seq_cst) == 0) return;
#if defined(__linux__)
        syscall(SYS_futex, reinterpret_cast<uint32_t *>(&bell), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
        bell.notify_all();
#endif
    }

    void work() {
        for (;;) {
            while (claim_and_run()) {
            }
            const auto until = Clock::now() + kSpin;
            bool found = false;
            for (int round = 1; !(found = has_work()) && Clock::now() < until; ++round) {
                for (int i = 0; i < 16; ++i) relax();
                if (round % 8 == 0) sched_yield();
            }
            if (!found) sleep();
        }
    }

    void run(int count, Body b, void *c) {
        std::unique_lock<std::mutex> lock(owner, std::try_to_lock);
        if (threads == 1 || !lock.owns_lock()) {
            for (int i = 0; i < count; ++i) b(c, i);
            return;
        }
        body.store(b, std::memory_order_relaxed);
        context.store(c, std::memory_order_relaxed);
        total.store(count, std::memory_order_relaxed);
        done.store(0, std::memory_order_relaxed);
        const uint64_t epoch = bell.fetch_add(1, std::memory_order_seq_cst) + 1;
        state.store(epoch << 32 | static_cast<uint32_t>(count), std::memory_order_seq_cst);
        wake();
        while (claim_and_run()) {
        }
        for (int round = 0; done.load(std::memory_order_acquire) != count; ++round) {
            if (round < 256) relax();
            else sched_yield();  // the worker with the last chunk may be waiting for this very core
        }
    }
};

// Never destroyed: detached workers outlive the static destructors of an exiting process.
Pool *the_pool() {
    static Pool *pool = new Pool;
    return pool;
}

struct Arena {
    void *at = nullptr;
    unsigned long size = 0;
    ~Arena() { std::free(at); }
};

}  // namespace

void parallel_run(int count, Body body, void *context) { the_pool()->run(count, body, context); }

int parallel_threads() { return the_pool()->threads; }

void *scratch(Scratch use, unsigned long bytes) {
    thread_local Arena arenas[static_cast<int>(Scratch::kCount)];
    Arena &arena = arenas[static_cast<int>(use)];
    if (arena.size < bytes) {
        std::free(arena.at);
        arena.size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
        arena.at = std::aligned_alloc(4096, arena.size);
        if (arena.at == nullptr) std::abort();
    }
    return arena.at;
}

}  // namespace penstock

extern "C" {

// Grows the pool to `threads` (the caller included); it never shrinks below what an earlier caller asked for.
void penstock_set_threads(int threads) {
    penstock::Pool *pool = penstock::the_pool();
    std::lock_guard<std::mutex> lock(pool->owner);
    for (; pool->threads < threads; ++pool->threads) std::thread([pool] { pool->work(); }).detach();
}

int penstock_threads() { return penstock::parallel_threads(); }

// Large weights are read front to back every step: huge pages save most of the TLB misses. Advice only.
void penstock_advise_huge(void *at, unsigned long bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t huge = 2u << 20;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(at) + huge - 1) / huge * huge;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(at) + bytes) / huge * huge;
    if (first < last) madvise(reinterpret_cast<void *>(first), last - first, MADV_HUGEPAGE);
#else
    (void)at, (void)bytes;
#endif
}
}
