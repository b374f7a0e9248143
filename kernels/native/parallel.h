// Work shared among the threads of XLA's own pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

// Before a loop: no iteration reads what another one writes. Outputs may be the inputs' own buffers.
#if defined(__clang__)
#define JAXNET_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define JAXNET_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace jaxnet {

// While it lives, this thread takes subnormal numbers for zero, as XLA's own threads do: the result
// must not depend on the thread, and subnormals (an idle unit's moments decay to them) are slow.
class FlushSubnormals {
 public:
#if defined(__SSE2__)
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }  // FTZ and DAZ
  ~FlushSubnormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FlushSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ | (uint64_t{1} << 24)));  // FZ
  }
  ~FlushSubnormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

// Calls body(i) once for each i in [0, count), on the calling thread and on those of the pool that are
// free, together at most `max_threads`: waking a thread costs some 10 us, worth it only for more work. Which thread takes which i varies; what body(i) computes must depend on i alone, so that
// the bits are the same for any number of threads: cut the work by its size, not by the threads.
//
// The caller works too and waits only for calls that another thread has begun, so a busy pool, or a
// pool whose every thread is itself inside a parallel_for, can't block it. A task that comes late
// finds no work left; it shares the state, and touches nothing else.
template <typename Body>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t count, int64_t max_threads, Body body) {
  struct State {
    State(int64_t count, Body body) : count(count), body(std::move(body)) {}
    const int64_t count;
    const Body body;
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};

    void work() {
      const FlushSubnormals flush;
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        body(i);
        done.fetch_add(1, std::memory_order_release);
      }
    }
  };
  const auto state = std::make_shared<State>(count, std::move(body));
  const int64_t threads = std::min({pool.num_threads(), count, max_threads});
  for (int64_t helper = 1; helper < threads; ++helper) {
    pool.Schedule([state] { state->work(); });
  }
  state->work();
  while (state->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

}  // namespace jaxnet
