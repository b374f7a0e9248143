// Work shared among the threads of XLA's own pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#endif
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

// The right of a thread to work: there are as many as XLA's pool has threads, and so cores. XLA runs
// independent operations side by side, and the thread that dispatches them is not of the pool; were each of
// them to call for helpers, more threads than cores would wait for each other's pieces of work.
class Turn {
 public:
  // Waits until fewer than `limit` threads are at work. They wait for nobody who waits here.
  explicit Turn(int64_t limit) : taken_(true) {
    std::unique_lock<std::mutex> lock(mutex_);
    freed_.wait(lock, [limit] { return working_ < limit; });
    ++working_;
  }
  // Takes a turn if there is one at once.
  Turn(int64_t limit, std::try_to_lock_t) {
    const std::lock_guard<std::mutex> lock(mutex_);
    taken_ = working_ < limit;
    if (taken_) ++working_;
  }
  ~Turn() {
    if (!taken_) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    --working_;
    freed_.notify_one();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  explicit operator bool() const { return taken_; }

 private:
  static inline std::mutex mutex_;
  static inline std::condition_variable freed_;
  static inline int64_t working_ = 0;
  bool taken_;
};

// When a thread last was at work here. One of the pool looks for more before it sleeps: while it does, calling it costs
// 1 us. Waking it costs some 40 us, which calls that follow each other closely soon regain.
inline std::atomic<std::chrono::steady_clock::time_point> last_work{};

inline bool pool_awake() {
  return std::chrono::steady_clock::now() - last_work.load(std::memory_order_relaxed) < std::chrono::microseconds(20);
}

// Waits a little for another thread, which runs: without the system, unless it takes long.
class Pause {
 public:
  void operator()() {
#if defined(__SSE2__)
    if (++count_ < 1000) return _mm_pause();
#endif
    std::this_thread::yield();
  }

 private:
  int count_ = 0;
};

// The number of the core that this thread runs on; -1 where the system doesn't tell.
inline int this_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Calls body(i) once for each i in [0, count), on the calling thread and on those of the pool that are
// free, together at most `max_threads`: waking a thread takes time, worth it only for more work. Which
// thread takes which i varies; what body(i) computes must depend on i alone, so that the bits are the same
// for any number of threads: cut the work by its size, not by the threads.
//
// The caller works too and waits only for calls that another thread has begun, so a busy pool can't block it.
// A task that comes late finds no work left; it shares the state, and touches nothing else. A body must not
// call parallel_for.
template <typename Body>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t count, int64_t max_threads, Body body) {
  struct State {
    State(int64_t count, Body body) : count(count), body(std::move(body)) {}
    const int64_t count;
    const Body body;
    std::atomic<int64_t> next{0}, done{0}, helpers{0};
    std::atomic<int> core{-1};  // that the caller runs on

    bool work() {
      const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) return false;
      body(i);
      done.fetch_add(1, std::memory_order_release);
      return true;
    }

    // A thread woken while every core was taken stands behind its caller, and stays there when another core
    // falls idle: then it alone works or the caller alone. After a short sleep it is woken on the idle core.
    void help(int64_t limit) {
      const auto behind = [this] { return next < count && core >= 0 && core == this_core(); };
      for (int tries = 0; tries < 4 && behind(); ++tries) {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
      const Turn turn(limit, std::try_to_lock);
      if (!turn) return;
      helpers.fetch_add(1, std::memory_order_relaxed);
      const FlushSubnormals flush;
      while (work()) {
      }
      last_work.store(std::chrono::steady_clock::now(), std::memory_order_relaxed);
    }
  };
  const auto state = std::make_shared<State>(count, std::move(body));
  const int64_t limit = pool.num_threads();
  const int64_t helpers = std::min({limit, count, max_threads}) - 1;
  std::optional<Turn> turn;
  if (helpers > 0) turn.emplace(limit);  // what is short isn't worth the wait
  const FlushSubnormals flush;
  int64_t calls = 0;
  do {
    state->core = this_core();
    // As long as helpers are missing, others are called after each piece of work; one too many finds no turn.
    for (int64_t missing = helpers - state->helpers; missing > 0 && calls < 2 * limit; --missing, ++calls) {
      pool.Schedule([state, limit] { state->help(limit); });
    }
  } while (state->work());
  while (state->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
  last_work.store(std::chrono::steady_clock::now(), std::memory_order_relaxed);
}

}  // namespace jaxnet
