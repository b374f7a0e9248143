// The matrix product C = f(op(A) op(B) + bias), row-major, op the identity or the transpose, f an activation.
//
// C is computed in tiles that stay in registers: rows × vectors of accumulators, to each of which one step of the
// depth adds (an element of A) · (a vector of B). An operand that is used often enough is packed into panels, so that
// it is read in the order of memory: A first, all at once, by all threads; of B each piece of work packs the panel it
// needs, which then stays in the first-level cache, and if B's rows are contiguous the first tile packs it as it
// computes. The depth is cut at fixed places and never shared among threads: each element of C is summed in an order
// that depends on the sizes alone. Few rows times a B whose columns lie contiguous are `product_of_few`.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "native/activation.h"
#include "native/parallel.h"
#include "native/vector.h"

namespace jaxnet::gemm {

// The tile: its accumulators, the vectors of B and one element of A just fit into the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t kRows = 14;  // 32 registers
#else
constexpr int64_t kRows = 6;  // 16 registers
#endif
constexpr int64_t kVectors = 2;

constexpr int64_t kDepth = 320;            // of panels: one of B (at most 40 KB) stays in the first-level cache
constexpr int64_t kDirectDepth = 176;      // ... beside the lines of an A that isn't packed
constexpr int64_t kRegionRows = 512;       // of A, packed at once; B is packed anew for each
constexpr int64_t kRegionBytes = 3 << 19;  // of A, packed at once: stays in the second-level cache
constexpr int64_t kAhead = 8;              // steps of the depth by which is fetched ahead into the first-level cache
constexpr int64_t kItems = 16;             // pieces of work at least: one is the time lost at the end
// Packing A costs as much as reading some tens of columns more, and threads wait for it. To so many columns it is
// used as it lies, if its lines don't all fall into the same sets of the cache.
constexpr int64_t kDirectColumns = 512, kDirectColumnsAliased = 32, kAliasing = 4096;
// Few rows are computed as columns from this depth on, while all of them fit the second-level cache, and if they leave
// less than this of a vector empty.
constexpr int64_t kFewDepth = 256, kFewBytes = 1 << 17, kPackedRows = 8;
constexpr int64_t kThreadWork = 1 << 21;       // multiply-adds that are worth waking a thread
constexpr int64_t kAwakeThreadWork = 1 << 19;  // ... that are worth calling one that is awake

template <typename T>
constexpr int64_t kColumns = kVectors * kLanes<T>;  // of a panel of B
template <typename T>
constexpr int64_t kWidth = (kRows + kLanes<T> - 1) / kLanes<T> * kLanes<T>;  // of a panel of A, whole vectors

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// An operand as lines (rows of op(A), columns of op(B)) along the depth.
template <typename T>
struct Operand {
  const T* data;
  int64_t stride;
  bool along;            // whether a line lies contiguous in memory
  const T* saved = nullptr;  // if given, laid out as data: the operand is f′(saved) ⊙ data
  Activation f = Activation::kIdentity;

  const T* at(int64_t line, int64_t k) const { return data + (along ? line * stride + k : k * stride + line); }
};

// Interleaves two vectors: a0 b0 a1 b1 …, in two halves.
template <typename T, size_t... i>
inline void interleave(Vector<T> a, Vector<T> b, Vector<T>& low, Vector<T>& high, std::index_sequence<i...>) {
  constexpr int n = kLanes<T>;
#ifdef __clang__
  low = __builtin_shufflevector(a, b, (i / 2 + i % 2 * n)...);
  high = __builtin_shufflevector(a, b, (i / 2 + i % 2 * n + n / 2)...);
#else
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index __attribute__((vector_size(kVectorBytes)));
  low = __builtin_shuffle(a, b, Index{(i / 2 + i % 2 * n)...});
  high = __builtin_shuffle(a, b, Index{(i / 2 + i % 2 * n + n / 2)...});
#endif
}

// v[i][j] -> v[j][i]: each round interleaves the first half of the rows with the second.
template <typename T>
inline void transpose(Vector<T>* v) {
  constexpr int64_t n = kLanes<T>;
  for (int64_t round = 1; round < n; round *= 2) {
    Vector<T> w[n];
#pragma GCC unroll 16
    for (int64_t i = 0; i < n / 2; ++i) {
      interleave<T>(v[i], v[i + n / 2], w[2 * i], w[2 * i + 1], std::make_index_sequence<n>());
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < n; ++i) v[i] = w[i];
  }
}

// Packs `lines` ≤ `width` lines of `x` to [depth][width]; what stands in the rest of each vector is never used.
template <typename T>
void pack(const Operand<T>& x, int64_t line, int64_t lines, int64_t k, int64_t depth, int64_t width, T* out) {
  constexpr int64_t n = kLanes<T>;
  if (!x.along) {
    for (int64_t d = 0; d < depth; ++d, out += width) {
      const T* from = x.at(line, k + d);
      if (line + width <= x.stride) {  // what is not of these lines is never used
        for (int64_t i = 0; i < width; i += n) store(out + i, load(from + i));
      } else {
        std::fill(std::copy(from, from + lines, out), out + width, T{0});
      }
    }
    return;
  }
  for (int64_t i = 0; i < width; i += n) {
    for (int64_t d = 0; d < depth; d += n) {
      const int64_t steps = std::min(n, depth - d);
      Vector<T> v[n];
#pragma GCC unroll 16
      for (int64_t j = 0; j < n; ++j) {
        v[j] = Vector<T>{};
        if (i + j < lines) {
          const T* from = x.at(line + i + j, k + d);
          if (steps == n) {
            v[j] = load(from);
          } else {
            std::memcpy(&v[j], from, steps * sizeof(T));
          }
        }
      }
      transpose<T>(v);
      if (steps == n) {
#pragma GCC unroll 16
        for (int64_t j = 0; j < n; ++j) store(out + (d + j) * width + i, v[j]);
      } else {
        for (int64_t j = 0; j < steps; ++j) store(out + (d + j) * width + i, v[j]);
      }
    }
  }
}

// The same, times f′.
template <typename T>
void pack_times(const Operand<T>& x, int64_t line, int64_t lines, int64_t k, int64_t depth, int64_t width, T* out) {
  constexpr int64_t block = 64;
  alignas(kVectorBytes) T saved[block * std::max(kColumns<T>, kWidth<T>)];
  pack(x, line, lines, k, depth, width, out);
  for (int64_t d = 0; x.saved && d < depth; d += block, out += block * width) {
    const int64_t steps = std::min(block, depth - d);
    pack(Operand<T>{x.saved, x.stride, x.along}, line, lines, k + d, steps, width, saved);
    with<T>(x.f, [&](auto f) {
      for (int64_t i = 0; i < steps * width; i += kLanes<T>) store(out + i, load(out + i) * f.slope(load(saved + i)));
    });
  }
}

// The compiler knows no more of p. It would else keep a pointer to each row of a tile, which are more than it has
// registers for, and fetch them from vector registers, at the cost of multiplications.
template <typename T>
inline void hide(const T*& p) {
  asm("" : "+r"(p));
}

// c = start + a b for a whole tile; `along` as in Operand a. `b` is a panel if `packed`; if not, it lies in B and is
// written to `panel`, unless that is null. Meanwhile the place of the next tile, of the same size, is fetched.
//
// No argument is a structure: read by its callee in other pieces than written, it would wait for all of the last
// tile's stores.
template <typename T, int rows, int vectors, bool along, bool packed>
void tile(int64_t depth, const T* a, int64_t a_stride, const T* b, int64_t b_stride, T* panel, const T* start,
          int64_t start_stride, T* c, int64_t c_stride, const T* next) {
  constexpr int64_t n = kLanes<T>;
  Vector<T> sum[rows][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum[i][v] = Vector<T>{};
  }
  const int64_t pace = (int64_t{rows} << 16) / std::max<int64_t>(depth, 1);
  int64_t position = 0;
  constexpr int near = 3;  // rows that are addressed from one pointer: its own, and those one and two strides away
  const T* lines[(rows + near - 1) / near];
#pragma GCC unroll 16
  for (int i = 0; along && i < rows; i += near) lines[i / near] = a + i * a_stride;
  for (int64_t k = 0; k < depth; ++k, b += packed ? vectors * n : b_stride) {
    // Spread over the depth: all at once they would hold up the operands.
    const T* line = next + (position >> 16) * c_stride;
    position += pace;
    if (!along) __builtin_prefetch(a + (k + kAhead) * a_stride);
    Vector<T> column[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      __builtin_prefetch(line + v * n, 1);
      column[v] = load(b + v * n);
      if (!packed) __builtin_prefetch(b + kAhead * b_stride + v * n);
    }
    if (!packed && panel) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) store(panel + v * n, column[v]);
      panel += vectors * n;
    }
#pragma GCC unroll 16
    for (int i = 0; along && i < rows; i += near) hide(lines[i / near]);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const T row = along ? lines[i / near][i % near * a_stride] : a[k * a_stride + i];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[i][v] += row * column[v];
    }
#pragma GCC unroll 16
    for (int i = 0; along && i < rows; i += near) ++lines[i / near];
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(c + i * c_stride + v * n, load(start + i * start_stride + v * n) + sum[i][v]);
  }
}

template <typename T>
using Tile = void (*)(int64_t, const T*, int64_t, const T*, int64_t, T*, const T*, int64_t, T*, int64_t, const T*);

template <typename T, int vectors, bool along, bool packed, int... i>
Tile<T> tile_of(int64_t rows, std::integer_sequence<int, i...>) {
  static constexpr Tile<T> table[] = {tile<T, i + 1, vectors, along, packed>...};
  return table[rows - 1];
}

template <typename T, int vectors>
Tile<T> tile_of(int64_t rows, bool along, bool packed) {
  constexpr std::make_integer_sequence<int, kRows> all;
  if (packed) return along ? tile_of<T, vectors, true, true>(rows, all) : tile_of<T, vectors, false, true>(rows, all);
  return along ? tile_of<T, vectors, true, false>(rows, all) : tile_of<T, vectors, false, false>(rows, all);
}

// This thread's memory for packed panels, kept from call to call: fresh pages cost more than the packing.
inline void* scratch(int64_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t size = 0;
  if (size < bytes) {
    memory.reset();
    void* fresh = nullptr;  // of no more bytes than asked for: a sanitizer then sees its end
    size = posix_memalign(&fresh, 4096, bytes) == 0 ? bytes : 0;
    memory.reset(size ? fresh : nullptr);
  }
  return memory.get();
}

// Rows and steps of the depth whose A is packed at once, and the numbers of its pieces of work.
struct Region {
  int64_t row, rows, k, depth;
  int64_t pack, compute, end;
};

template <typename T>
class Product {
 public:
  Product(int64_t rows, int64_t columns, int64_t depth, Operand<T> a, Operand<T> b, const T* bias, Activation f, T* c,
          T* z, T* sums)
      : columns_(columns), a_(a), b_(b), bias_(bias), f_(f), c_(c), z_(z), sums_(sums) {
    const bool aliased = a.stride * static_cast<int64_t>(sizeof(T)) % kAliasing == 0;
    pack_a_ = a.saved || columns > (aliased ? kDirectColumnsAliased : kDirectColumns);
    total_depth_ = depth;
    panels_ = ceil_div(columns, kColumns<T>);
    const int64_t region_rows = pack_a_ ? kRegionRows : std::max<int64_t>(1, rows);
    const int64_t high = std::max<int64_t>(1, ceil_div(rows, std::max<int64_t>(1, ceil_div(rows, region_rows))));
    const int64_t tiles = ceil_div(high, kRows);
    height_ = ceil_div(high, tiles);
    chunks_ = std::clamp<int64_t>(ceil_div(kItems, panels_), ceil_div(tiles, 128), std::max<int64_t>(1, tiles / 4));
    const int64_t blocks = std::max<int64_t>(1, ceil_div(depth, pack_a_ ? kDepth : kDirectDepth));
    depth_ = std::max<int64_t>(1, ceil_div(depth, blocks));
    const int64_t fit = kRegionBytes / static_cast<int64_t>(sizeof(T)) / (tiles * kWidth<T>) / depth_ * depth_;
    const int64_t span = pack_a_ ? std::min(depth, std::max(depth_, fit)) : depth;
    panel_size_ = span * kWidth<T>;
    scratch_size_ = pack_a_ ? tiles * panel_size_ : 0;
    int64_t item = 0;
    int64_t row = 0;
    do {
      int64_t k = 0;
      do {
        Region r{row, std::min(high, rows - row), k, std::min(span, depth - k), item, 0, 0};
        r.compute = r.pack + (pack_a_ ? ceil_div(r.rows, height_) : 0);
        r.end = item = r.compute + chunks_ * panels_;
        regions_.push_back(r);
        k += span;
      } while (k < depth);
      row += high;
    } while (row < rows);
  }

  void run(xla::ffi::ThreadPool& pool, int64_t threads) {
    packed_ = static_cast<T*>(scratch(scratch_size_ * sizeof(T)));
    parallel_for(pool, regions_.back().end, threads, [this](int64_t i) { work(i); });
  }

 private:
  void work(int64_t i) {
    const Region& r = *std::upper_bound(regions_.begin(), regions_.end(), i,
                                        [](int64_t i, const Region& r) { return i < r.end; });
    // Pieces are taken in order, so what is waited for has been taken by threads that run.
    const int64_t before = i < r.compute ? r.pack : r.compute;
    while (done_.load(std::memory_order_acquire) < before) std::this_thread::yield();
    if (i < r.compute) {
      const int64_t line = (i - r.pack) * height_;
      pack_times(a_, r.row + line, std::min(height_, r.rows - line), r.k, r.depth, kWidth<T>,
                  packed_ + (i - r.pack) * panel_size_);
    } else {
      const int64_t chunk = (i - r.compute) / panels_, tiles = ceil_div(r.rows, height_);
      compute(r, chunk * tiles / chunks_, (chunk + 1) * tiles / chunks_, (i - r.compute) % panels_ * kColumns<T>);
    }
    done_.fetch_add(1, std::memory_order_release);
  }

  // The tiles [first, last) of the panel of columns that begins at `column`.
  void compute(const Region& r, int64_t first, int64_t last, int64_t column) {
    constexpr int64_t n = kLanes<T>;
    const int64_t wide = std::min(kColumns<T>, columns_ - column);
    const int64_t vectors = ceil_div(wide, n), width = vectors * n;
    const bool whole = wide == width, direct = whole && !b_.along && !b_.saved && first < last;
    alignas(kVectorBytes) T panel[kDepth * kColumns<T>];
    alignas(kVectorBytes) T edge[kRows * kColumns<T>];  // a tile that is wider than what is left of C
    alignas(kVectorBytes) T bias[kColumns<T>] = {};
    if (bias_) std::copy_n(bias_ + column, wide, bias);
    int64_t k = r.k;
    do {
      const int64_t depth = std::min(depth_, r.k + r.depth - k);
      if (!direct) pack_times(b_, column, wide, k, depth, width, panel);
      for (int64_t t = first; t < last; ++t) {
        const int64_t row = r.row + t * height_, rows = std::min(height_, r.row + r.rows - row);
        const bool packed = !direct || t > first, along = !pack_a_ && a_.along;
        const auto f = vectors == 1 ? tile_of<T, 1>(rows, along, packed) : tile_of<T, kVectors>(rows, along, packed);
        const T* a = pack_a_ ? packed_ + t * panel_size_ + (k - r.k) * kWidth<T> : a_.at(row, k);
        T* c = c_ + row * columns_ + column;
        if (!whole && k > 0) {
          for (int64_t i = 0; i < rows; ++i) std::copy_n(c + i * columns_, wide, edge + i * width);
        }
        T* to = whole ? c : edge;
        const int64_t stride = whole ? columns_ : width;
        f(depth, a, pack_a_ ? kWidth<T> : a_.stride, packed ? panel : b_.at(column, k), b_.stride,
          sums_ || first + 1 < last ? panel : nullptr, k > 0 ? to : bias, k > 0 ? stride : 0, to, stride,
          t + 1 < last ? to + height_ * stride : to);
        if (k + depth == total_depth_) finish(to, stride, row, rows, column, wide);
        if (!whole) {
          for (int64_t i = 0; i < rows; ++i) std::copy_n(edge + i * width, wide, c + i * columns_);
        }
      }
      if (sums_ && r.row == 0 && first == 0) add(panel, depth, wide, width, k > 0, sums_ + column);
      k += depth_;
    } while (k < r.k + r.depth);
  }

  // Of a tile that is summed up: z is kept, if asked for, and f is applied.
  void finish(T* c, int64_t stride, int64_t row, int64_t rows, int64_t column, int64_t wide) const {
    for (int64_t i = 0; z_ && i < rows; ++i) std::copy_n(c + i * stride, wide, z_ + (row + i) * columns_ + column);
    if (f_ == Activation::kIdentity) return;
    with<T>(f_, [&](auto f) {
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < wide; j += kLanes<T>) store(c + i * stride + j, f.value(load(c + i * stride + j)));
      }
    });
  }

  // The sums of a panel's columns: of one block of the depth, and then of the blocks.
  static void add(const T* panel, int64_t depth, int64_t wide, int64_t width, bool onto, T* sums) {
    alignas(kVectorBytes) T sum[kColumns<T>] = {};
    for (int64_t k = 0; k < depth; ++k, panel += width) {
      for (int64_t j = 0; j < width; j += kLanes<T>) store(sum + j, load(sum + j) + load(panel + j));
    }
    for (int64_t j = 0; j < wide; ++j) sums[j] = onto ? sums[j] + sum[j] : sum[j];
  }

  int64_t columns_;
  Operand<T> a_, b_;
  const T* bias_;
  Activation f_;
  T *c_, *z_, *sums_;
  bool pack_a_;
  int64_t total_depth_, panels_, height_, chunks_, depth_, panel_size_, scratch_size_;
  std::vector<Region> regions_;
  T* packed_ = nullptr;
  std::atomic<int64_t> done_{0};
};

// Whether C of few rows is better computed as Cᵀ = Bᵀ Aᵀ. To pack columns of B that lie contiguous costs as much as the
// arithmetic of some rows; as rows they are read where they lie, if they don't all fall into the same sets of the
// cache. What A's rows lack to whole vectors is lost. Not with short vectors, for which it wasn't measured.
template <typename T>
bool is_for_few(int64_t rows, int64_t depth, const Operand<T>& b) {
  constexpr int64_t n = kLanes<T>, size = sizeof(T);
  const int64_t width = ceil_div(rows, n) * n;
  return n >= 8 && b.along && !b.saved && width <= kColumns<T> && width - rows < kPackedRows && depth >= kFewDepth &&
         depth * width * size <= kFewBytes && b.stride * size % kAliasing != 0;
}

// A is packed whole; the tiles, of Cᵀ, are transposed as they are written.
template <typename T>
void product_of_few(xla::ffi::ThreadPool& pool, int64_t threads, int64_t rows, int64_t columns, int64_t depth,
                    const Operand<T>& a, const Operand<T>& b, const T* bias, Activation f, T* c, T* z) {
  constexpr int64_t n = kLanes<T>, high = std::min(kRows, n);
  const int64_t vectors = ceil_div(rows, n), width = vectors * n;
  T* const packed = static_cast<T*>(scratch(depth * width * sizeof(T)));
  const FlushSubnormals flush;
  pack_times(a, 0, rows, 0, depth, width, packed);
  const int64_t tiles = ceil_div(columns, high), pieces = std::min(tiles, kItems);
  parallel_for(pool, pieces, threads, [&](int64_t piece) {
    for (int64_t t = piece * tiles / pieces; t < (piece + 1) * tiles / pieces; ++t) {
      alignas(kVectorBytes) T sums[n * kColumns<T>] = {};
      alignas(kVectorBytes) T start[kColumns<T>] = {};
      alignas(kVectorBytes) T shift[n] = {};
      const int64_t column = t * high, wide = std::min(high, columns - column);
      const auto tile = vectors == 1 ? tile_of<T, 1>(wide, true, true) : tile_of<T, kVectors>(wide, true, true);
      tile(depth, b.at(column, 0), b.stride, packed, 0, nullptr, start, 0, sums, width, sums);
      if (bias) std::copy_n(bias + column, wide, shift);
      for (int64_t v = 0; v < vectors; ++v) {
        Vector<T> lines[n];
        for (int64_t i = 0; i < n; ++i) lines[i] = load(sums + i * width + v * n);
        transpose<T>(lines);
        for (int64_t i = 0; i < std::min(n, rows - v * n); ++i) {
          const int64_t at = (v * n + i) * columns + column;
          const Vector<T> line = lines[i] + load(shift);
          if (z) store(z + at, line, wide);
          with<T>(f, [&](auto f) { store(c + at, f.value(line), wide); });
        }
      }
    }
  });
}

// C [rows, columns] = f(op(A) op(B) + bias). What is null is left out: `bias`; `z`, to which goes what f is of; `sums`,
// to which go the sums of B's columns.
template <typename T>
void product(xla::ffi::ThreadPool& pool, int64_t rows, int64_t columns, int64_t depth, Operand<T> a, Operand<T> b,
             const T* bias, Activation f, T* c, T* z, T* sums) {
  if (columns == 0 || (rows == 0 && !sums)) return;
  const int64_t worth = pool_awake() ? kAwakeThreadWork : kThreadWork;
  const int64_t threads = 1 + rows * columns * depth / worth;
  if (!sums && is_for_few(rows, depth, b)) {
    product_of_few(pool, threads, rows, columns, depth, a, b, bias, f, c, z);
  } else {
    Product<T>(rows, columns, depth, a, b, bias, f, c, z, sums).run(pool, threads);
  }
}

}  // namespace jaxnet::gemm
