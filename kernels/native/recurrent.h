// What the loops over time of rnn, lstm and gru share; their formulas are in jaxnet/ops.
//
// The batch is cut into blocks of rows. A block goes through the whole sequence on one thread, which waits for no
// other; its state h stays in that core's caches. The weights are packed once for all. Each number is computed in the
// same way whatever is computed beside it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>

#include "native/gemm.h"
#include "native/math.h"
#include "native/parallel.h"

namespace jaxnet::recurrent {

using gemm::ceil_div;
using gemm::kColumns;
using gemm::kRows;

constexpr int64_t kBlockRows = 4 * kRows;  // at most, so that h stays in the second-level cache
constexpr int64_t kBlockRowsLeast = 4;     // fewer aren't worth reading all weights once more
constexpr int64_t kFewRows = 3;
constexpr int64_t kSeldom = 8;             // rows, of all steps, that aren't worth packing the weights
constexpr int64_t kPartWork = 1 << 15;     // multiply-adds of a step that are worth waiting for another thread

struct Rows {
  int64_t first, count;
};

struct Sequence {
  int64_t steps, batch, hidden;
  bool reverse;
  const int32_t* lengths;  // or null

  int64_t time(int64_t step) const { return reverse ? steps - 1 - step : step; }
  int64_t step(int64_t time) const { return this->time(time); }  // its inverse
  // From an element of [T, B, width · H] to that of the next step; one that isn't there is only fetched ahead.
  int64_t ahead(int64_t width) const { return (reverse ? -1 : 1) * width * batch * hidden; }
  bool within(int64_t time, int64_t row) const { return !lengths || time < lengths[row]; }
};

// Of an array [B, T, …] and lengths [B] that may be missing.
inline Sequence sequence_of(const xla::ffi::AnyBuffer& array, int64_t hidden, const xla::ffi::RemainingArgs& lengths,
                            bool reverse) {
  const auto d = array.dimensions();
  return {d[1], d[0], hidden, reverse,
          lengths.size() ? lengths.get<xla::ffi::AnyBuffer>(0)->typed_data<int32_t>() : nullptr};
}

// The memory of the i-th of the results that may be missing; null if it is.
template <typename T>
T* optional(const xla::ffi::RemainingRets& results, size_t i) {
  return i < results.size() ? (*results.get<xla::ffi::AnyBuffer>(i))->typed_data<T>() : nullptr;
}

// Rows of [batch, hidden] into state, and back.
template <typename T>
inline void copy_in(const T* from, Rows rows, int64_t hidden, T* state, int64_t stride) {
  for (int64_t i = 0; i < rows.count; ++i) std::copy_n(from + (rows.first + i) * hidden, hidden, state + i * stride);
}
template <typename T>
inline void copy_out(const T* state, int64_t stride, Rows rows, int64_t hidden, T* to) {
  for (int64_t i = 0; i < rows.count; ++i) std::copy_n(state + i * stride, hidden, to + (rows.first + i) * hidden);
}

// The distance of rows of state, in elements: not a power of two, which would map them all to the same sets of a cache.
template <typename T>
inline int64_t stride_of(int64_t width) {
  return (ceil_div(width, kLanes<T>) + 1) * kLanes<T>;
}

template <typename T>
constexpr int64_t kGate = kRows * kColumns<T>;  // elements of a tile of sums

// Of few rows a tile has too few sums for the adders to be busy: here several tiles side by side, `distance` apart in b,
// kGate<T> in the sums.
template <typename T, int rows, int vectors, int tiles>
void few_rows(int64_t depth, const T* a, int64_t a_stride, const T* b, int64_t distance, int64_t b_stride, T* sums) {
  constexpr int64_t n = kLanes<T>;
  Vector<T> sum[tiles][rows][vectors] = {};
  for (int64_t k = 0; k < depth; ++k, b += b_stride) {
#pragma GCC unroll 4
    for (int t = 0; t < tiles; ++t) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        const Vector<T> column = load(b + t * distance + v * n);
#pragma GCC unroll 3
        for (int i = 0; i < rows; ++i) sum[t][i][v] += a[i * a_stride + k] * column;
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < tiles; ++t) {
#pragma GCC unroll 3
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) store(sums + t * kGate<T> + i * kColumns<T> + v * n, sum[t][i][v]);
    }
  }
}

template <typename T>
using FewRows = void (*)(int64_t, const T*, int64_t, const T*, int64_t, int64_t, T*);

template <typename T, int vectors, int tiles>
FewRows<T> few_rows_of(int64_t rows) {
  static constexpr FewRows<T> table[] = {few_rows<T, 1, vectors, tiles>, few_rows<T, 2, vectors, tiles>,
                                         few_rows<T, 3, vectors, tiles>};
  return table[rows - 1];
}

template <typename T, int vectors>
FewRows<T> few_rows_of(int64_t rows, int64_t tiles) {
  return tiles == 1   ? few_rows_of<T, vectors, 1>(rows)
         : tiles == 2 ? few_rows_of<T, vectors, 2>(rows)
         : tiles == 3 ? few_rows_of<T, vectors, 3>(rows)
                      : few_rows_of<T, vectors, 4>(rows);
}

// Units [first, end) of a layer; `first` is a multiple of kColumns.
struct Units {
  int64_t first, end;
};

// Groups of rows: those of a group are `stride` apart, the groups `distance`.
template <typename T>
struct Groups {
  const T* first;
  int64_t stride, rows, distance, count;
};

// Weights [depth, gates · units], beginning with column `first`: for each kColumns units the panels of the gates, one
// after the other.
template <typename T>
class Weights {
 public:
  Weights(gemm::Operand<T> weights, int64_t depth, int64_t units, int64_t gates, int64_t first = 0)
      : weights_(weights), first_(first), depth(depth), units(units), gates(gates) {}

  int64_t panels() const { return ceil_div(units, kColumns<T>) * gates; }
  int64_t size() const { return panels() * depth * kColumns<T>; }
  // The memory for panels; `direct` if weights are used too seldom to be packed: where they lie in whole vectors.
  void place(T* memory, bool direct) {
    packed_ = memory;
    direct_ = direct && !weights_.along;
  }

  void pack(int64_t panel) const {
    if (in_place(panel / gates * kColumns<T>)) return;
    const int64_t unit = panel / gates * kColumns<T>, wide = std::min(kColumns<T>, units - unit);
    gemm::pack(weights_, first_ + panel % gates * units + unit, wide, 0, depth, ceil_div(wide, kLanes<T>) * kLanes<T>,
               packed_ + panel * depth * kColumns<T>);
  }

  // left [rows, depth] times the weights of some units: for each row and each vector of units one call of
  // use(row, unit, how many units are left, sums), the sums of gate g being the vector at sums + g · kGate<T>.
  template <typename Use>
  void multiply(const T* left, int64_t stride, int64_t rows, Units of, Use use) const {
    multiply({left, stride, rows, 0, 1}, of, [&](int64_t, int64_t row, int64_t unit, int64_t n, const T* sums) {
      use(row, unit, n, sums);
    });
  }

  // … times those of groups of rows, the group being the first argument of `use`.
  template <typename Use>
  void multiply(const Groups<T>& left, Units of, Use use) const {
    const int64_t rows = left.rows, stride = left.stride;
    alignas(kVectorBytes) T sums[kTiles * kGate<T>];
    alignas(kVectorBytes) const T zero[kColumns<T>] = {};
    const int64_t high = ceil_div(rows, ceil_div(rows, kRows));
    for (int64_t unit = of.first; unit < of.end;) {
      const int64_t wide = std::min(kColumns<T>, units - unit), vectors = ceil_div(wide, kLanes<T>);
      const bool direct = in_place(unit), few = rows <= kFewRows;
      const T* const b = direct ? weights_.at(first_ + unit, 0) : packed_ + unit * gates * depth;
      const int64_t b_stride = direct ? weights_.stride : vectors * kLanes<T>;
      // Of few rows also the tiles of the units after these, if there is but one gate.
      const int64_t neighbours =
          few && gates == 1 && !direct ? std::clamp<int64_t>((of.end - unit) / kColumns<T>, 1, kTiles) : 1;
      const int64_t distance = direct ? units : depth * kColumns<T>, tiles = gates * neighbours;
      for (int64_t group = 0; group < left.count; ++group) {
        for (int64_t row = 0; row < rows; row += high) {
          const int64_t count = std::min(high, rows - row);
          const T* const a = left.first + group * left.distance + row * stride;
          if (few) {
            (vectors == 1 ? few_rows_of<T, 1>(count, tiles) : few_rows_of<T, gemm::kVectors>(count, tiles))(
                depth, a, stride, b, distance, b_stride, sums);
          } else {
            const auto tile = vectors == 1 ? gemm::tile_of<T, 1>(count, true, !direct)
                                           : gemm::tile_of<T, gemm::kVectors>(count, true, !direct);
            for (int64_t t = 0; t < tiles; ++t) {
              T* const to = sums + t * kGate<T>;
              tile(depth, a, stride, b + t * distance, b_stride, nullptr, zero, 0, to, kColumns<T>, to);
            }
          }
          for (int64_t i = 0; i < count; ++i) {
            for (int64_t neighbour = 0; neighbour < neighbours; ++neighbour) {
              for (int64_t j = 0; j < wide; j += kLanes<T>) {
                const int64_t at = unit + neighbour * kColumns<T> + j;
                use(group, row + i, at, units - at, sums + neighbour * kGate<T> + i * kColumns<T> + j);
              }
            }
          }
        }
      }
      unit += neighbours * kColumns<T>;
    }
  }

 private:
  static constexpr int64_t kTiles = 4;  // of sums at once, and gates at most
  gemm::Operand<T> weights_;
  int64_t first_;
  T* packed_ = nullptr;
  bool direct_ = false;

  bool in_place(int64_t unit) const { return direct_ && std::min(kColumns<T>, units - unit) % kLanes<T> == 0; }

 public:
  const int64_t depth, units, gates;
};

// a = x W + b of the next kRows steps, in the block's own memory: of all steps it would be new memory each time.
template <typename T>
class Input {
 public:
  // Of x [B, T, I], W [I, gates · H] and b [gates · H].
  Input(const Sequence& of, const xla::ffi::AnyBuffer& x, const xla::ffi::AnyBuffer& w, const xla::ffi::AnyBuffer& bias,
        int64_t gates)
      : weights({w.typed_data<T>(), gates * of.hidden, false}, x.dimensions()[2], of.hidden, gates),
        of_(of), x_(x.typed_data<T>()), bias_(bias.typed_data<T>()) {}

  int64_t elements() const { return std::min(of_.steps, kRows) * width(); }
  int64_t stride() const { return stride_of<T>(of_.hidden); }  // from gate to gate
  // Where a of a row is at a step, in the memory that `compute` has filled.
  int64_t at(Rows rows, int64_t step, int64_t row) const { return (step % kRows * rows.count + row) * width(); }
  int64_t ahead(Rows rows) const { return rows.count * width(); }  // to the next step

  // What this step needs, for some units.
  void compute(Rows rows, int64_t step, Units units, T* a) const {
    if (step % kRows) return;
    const int64_t steps = std::min(kRows, of_.steps - step), inputs = weights.depth;
    const int64_t first = std::min(of_.time(step), of_.time(step + steps - 1));
    const T* const x = x_ + (rows.first * of_.steps + first) * inputs;
    const bool by_step = steps < std::min(kRows, rows.count);  // a tile has rows of one step, else steps of one row
    const Groups<T> left = by_step ? Groups<T>{x, of_.steps * inputs, rows.count, inputs, steps}
                                   : Groups<T>{x, inputs, steps, of_.steps * inputs, rows.count};
    weights.multiply(left, units, [&](int64_t group, int64_t line, int64_t unit, int64_t n, const T* sums) {
      const int64_t row = by_step ? line : group, time = first + (by_step ? group : line);
      T* const to = a + at(rows, of_.step(time), row) + unit;
      for (int64_t g = 0; g < weights.gates; ++g) {
        store(to + g * stride(), load(sums + g * kGate<T>) + load(bias_ + g * of_.hidden + unit, n));
      }
    });
  }

  Weights<T> weights;

 private:
  Sequence of_;
  const T *x_, *bias_;
  int64_t width() const { return weights.gates * stride(); }
};

// use(row, unit, how many units are left) for each row and each vector of units.
template <typename T, typename Use>
void for_units(int64_t rows, Units of, Use use) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t unit = of.first; unit < of.end; unit += kLanes<T>) use(i, unit, of.end - unit);
  }
}

// Packs the weights and computes a Pass, which has
//
//     elements()                            how many elements of memory it needs for a row
//     begin(rows, state), end(rows, state)  what comes before and after all phases
//     phases()                              how many there are
//     phase(rows, state, phase, units)      one of them, in order; of other units it reads what the phases before wrote
//
// If there are too few rows for all threads, they share the units of each phase, and wait for each other after it.
template <typename T, typename Pass>
void run(xla::ffi::ThreadPool& pool, Pass& pass, std::initializer_list<Weights<T>*> weights) {
  const Sequence& of = pass.of;
  if (of.batch == 0) return;
  int64_t packed = 0, panels = 0, work = 0;
  for (const Weights<T>* w : weights) {
    packed += w->size();
    panels += w->panels();
    work += w->depth * w->units * w->gates * of.batch;
  }
  const int64_t worth = pool_awake() ? gemm::kAwakeThreadWork : gemm::kThreadWork;
  const int64_t threads = std::clamp<int64_t>(1 + work * of.steps / worth, 1, pool.num_threads());
  const int64_t parts = std::min(threads, ceil_div(of.hidden, kColumns<T>));
  const bool share = of.batch < threads * kBlockRowsLeast && parts > 1 && work / parts > kPartWork;
  const int64_t blocks =
      share ? 1 : std::min(threads, ceil_div(of.batch, kBlockRowsLeast)) * ceil_div(of.batch, threads * kBlockRows);
  const int64_t rows = ceil_div(of.batch, blocks), count = ceil_div(of.batch, rows), slots = std::min(threads, count);
  T* memory = static_cast<T*>(gemm::scratch((packed + slots * rows * pass.elements()) * sizeof(T)));
  for (Weights<T>* w : weights) {
    w->place(memory, of.steps * of.batch <= kSeldom);
    memory += w->size();
  }
  parallel_for(pool, panels, threads, [&](int64_t i) {
    for (const Weights<T>* w : weights) {
      if (i < w->panels()) return w->pack(i);
      i -= w->panels();
    }
  });
  if (share) {
    const Rows all{0, of.batch};
    std::atomic<int64_t> done{0};
    pass.begin(all, memory);
    parallel_for(pool, pass.phases() * parts, parts, [&](int64_t i) {
      const int64_t phase = i / parts, part = i % parts, groups = ceil_div(of.hidden, kColumns<T>);
      const auto first = [&](int64_t part) { return std::min(part * groups / parts * kColumns<T>, of.hidden); };
      Pause pause;  // all that is waited for has been taken by threads that run
      while (done.load(std::memory_order_acquire) < phase * parts) pause();
      pass.phase(all, memory, phase, Units{first(part), first(part + 1)});
      done.fetch_add(1, std::memory_order_release);
    });
    return pass.end(all, memory);
  }
  std::atomic<int64_t> next{0};
  parallel_for(pool, slots, threads, [&](int64_t slot) {  // each takes blocks as long as there are some
    T* const state = memory + slot * rows * pass.elements();
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      const Rows block{i * rows, std::min(rows, of.batch - i * rows)};
      pass.begin(block, state);
      for (int64_t phase = 0; phase < pass.phases(); ++phase) pass.phase(block, state, phase, Units{0, of.hidden});
      pass.end(block, state);
    }
  });
}

}  // namespace jaxnet::recurrent
