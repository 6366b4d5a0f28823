// How the kernels use more than one core: a pool of threads that claim chunks of a loop.
//
// Not OpenMP, for three reasons: the process already holds torch's OpenMP runtime and must not hold a second; a
// chunk is claimed only by a thread that is running, so a preempted worker delays nothing but the chunk it holds;
// and idle workers sleep in the kernel after a bounded wait instead of spinning.
#pragma once

namespace penstock {

using Body = void (*)(void *context, int index);

// Calls body(context, i) once for every i in [0, count), in rising order of claiming, and returns when all are done.
void parallel_run(int count, Body body, void *context);

int parallel_threads();

template <class F> void parallel_for(int count, const F &f) {
    if (count <= 1) {
        if (count == 1) f(0);
        return;
    }
    parallel_run(count, [](void *context, int i) { (*static_cast<const F *>(context))(i); },
                 const_cast<F *>(&f));
}

// A buffer that belongs to the calling thread and lives until it asks for more; `use` keeps buffers apart.
enum class Scratch { kAttention, kRow, kPack, kSplit, kSampling, kCount };
void *scratch(Scratch use, unsigned long bytes);

}  // namespace penstock
