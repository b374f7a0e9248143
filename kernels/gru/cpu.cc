// The loop over time of jaxnet/ops/gru.py, whose names these are: forwards from x, backwards to da.

#include <cstdint>

#include "native/recurrent.h"
#include "native/registration.h"

namespace jaxnet {
namespace {

namespace ffi = xla::ffi;
using recurrent::kGate;
using recurrent::Rows;
using recurrent::Sequence;
using recurrent::Units;
using recurrent::Weights;

constexpr int64_t kGates = 3;  // r, z, n

// If the reset comes before the product, a step has two phases: r, z and s = r ⊙ h, then n and h.
template <typename T>
struct Forward {
  Sequence of;
  bool reset_after;
  recurrent::Input<T> input;
  Weights<T> gates, candidate;  // of all three if the reset comes after the product; if before, of r and z, and of n
  const T *bias, *first;
  T *y, *last, *kept, *more, *before;  // the last three null if no backward pass will come

  int64_t stride() const { return recurrent::stride_of<T>(of.hidden); }
  int64_t elements() const { return 4 * stride() + input.elements(); }  // h, twice, z, s and a
  int64_t phases() const { return reset_after ? of.steps : 2 * of.steps; }
  void begin(Rows rows, T* state) const { recurrent::copy_in(first, rows, of.hidden, state, stride()); }
  void end(Rows rows, const T* state) const {
    recurrent::copy_out(state + of.steps % 2 * rows.count * stride(), stride(), rows, of.hidden, last);
  }

  void phase(Rows rows, T* state, int64_t phase, Units units) const {
    const int64_t step = reset_after ? phase : phase / 2, t = of.time(step), size = rows.count * stride();
    const T* const now = state + step % 2 * size;
    T *const next = state + (step + 1) % 2 * size, *const z_state = state + 2 * size, *const s_state = state + 3 * size;
    T* const a = state + 4 * size;
    if (reset_after || phase % 2 == 0) input.compute(rows, step, units, a);
    // Of a vector of units: its place in what is kept, its part of a, what a gate's sum of products becomes.
    const auto place = [&](int64_t i, int64_t unit) { return (t * of.batch + rows.first + i) * kGates * of.hidden + unit; };
    const auto summand = [&](int64_t i, int64_t unit, int64_t g) {
      const T* const from = a + input.at(rows, step, i) + g * stride() + unit;
      __builtin_prefetch(from + input.ahead(rows));
      return load(from);
    };
    const auto gate = [&](int64_t i, int64_t unit, int64_t n, int64_t g, Vector<T> sum) {
      const Vector<T> value = math::sigmoid<T>(summand(i, unit, g) + sum);
      if (kept) store(kept + place(i, unit) + g * of.hidden, value, n);
      return value;
    };
    const auto keep = [&](int64_t i, int64_t unit, int64_t n, Vector<T> value) {
      if (more) store(more + (t * of.batch + rows.first + i) * of.hidden + unit, value, n);
    };
    const auto finish = [&](int64_t i, int64_t unit, int64_t n, Vector<T> z, Vector<T> sum) {
      const int64_t row = rows.first + i, own = i * stride() + unit;
      const bool within = of.within(t, row);
      const Vector<T> h_before = load(now + own);
      Vector<T> value{}, h = h_before;
      if (within) {
        value = math::tanh<T>(summand(i, unit, 2) + sum);
        h = (1 - z) * value + z * h_before;
      }
      store(next + own, h);
      store(y + (row * of.steps + t) * of.hidden + unit, within ? h : Vector<T>{}, n);
      if (!kept) return;
      if (!within) {
        for (int64_t g = 0; g < 2; ++g) store(kept + place(i, unit) + g * of.hidden, Vector<T>{}, n);
        keep(i, unit, n, Vector<T>{});
      }
      store(kept + place(i, unit) + 2 * of.hidden, value, n);
      store(before + (t * of.batch + row) * of.hidden + unit, h_before, n);
    };
    if (reset_after) {
      gates.multiply(now, stride(), rows.count, units, [&](int64_t i, int64_t unit, int64_t n, const T* sums) {
        const Vector<T> r = gate(i, unit, n, 0, load(sums)), z = gate(i, unit, n, 1, load(sums + kGate<T>));
        const Vector<T> v = load(sums + 2 * kGate<T>) + load(bias + unit, n);
        keep(i, unit, n, v);
        finish(i, unit, n, z, r * v);
      });
    } else if (phase % 2 == 0) {
      gates.multiply(now, stride(), rows.count, units, [&](int64_t i, int64_t unit, int64_t n, const T* sums) {
        const int64_t own = i * stride() + unit;
        const Vector<T> r = gate(i, unit, n, 0, load(sums)), z = gate(i, unit, n, 1, load(sums + kGate<T>));
        const Vector<T> s = r * load(now + own);
        keep(i, unit, n, s);
        store(z_state + own, z);
        store(s_state + own, s);
      });
    } else {
      candidate.multiply(s_state, stride(), rows.count, units, [&](int64_t i, int64_t unit, int64_t n, const T* sums) {
        finish(i, unit, n, load(z_state + i * stride() + unit), load(sums));
      });
    }
  }
};

// If the reset comes before the product, a step has two phases: daz and dan, then ds and dar.
template <typename T>
struct Backward {
  Sequence of;
  bool reset_after;
  Weights<T> gates, candidate;  // transposed, as forwards
  const T *kept, *before, *more, *dy, *last;
  T *da, *first, *dv;  // dv null if the reset comes before the product

  int64_t stride() const { return recurrent::stride_of<T>(of.hidden); }
  int64_t gates_stride() const { return recurrent::stride_of<T>(gates.depth); }
  int64_t elements() const { return 2 * stride() + 2 * gates_stride(); }  // dh, dan, and dv or (dar, daz), twice
  int64_t phases() const { return (reset_after ? 1 : 2) * of.steps + 1; }
  void begin(Rows rows, T* state) const { recurrent::copy_in(last, rows, of.hidden, state, stride()); }
  void end(Rows rows, const T* state) const { recurrent::copy_out(state, stride(), rows, of.hidden, first); }

  void phase(Rows rows, T* state, int64_t phase, Units units) const {
    const int64_t hidden = of.hidden, size = rows.count * stride(), step = reset_after ? phase : phase / 2;
    const int64_t t = of.time(of.steps - 1 - step);
    T *const dan_state = state + size, *const dv_state = state + 2 * size;
    const T* const dv_before = dv_state + step % 2 * rows.count * gates_stride();
    T* const dv_after = dv_state + (step + 1) % 2 * rows.count * gates_stride();
    if (!reset_after && phase % 2 == 1) {
      candidate.multiply(dan_state, stride(), rows.count, units, [&](int64_t i, int64_t unit, int64_t n, const T* sums) {
        const int64_t row = rows.first + i, own = i * stride() + unit, at = (t * of.batch + row) * hidden;
        Vector<T> dar{};
        if (of.within(t, row)) {
          const Vector<T> ds = load(sums), r = load(kept + kGates * at + unit, n);
          dar = ds * load(before + at + unit, n) * r * (1 - r);
          store(state + own, load(state + own) + ds * r);
        }
        store(da + kGates * at + unit, dar, n);
        store(dv_after + i * gates_stride() + unit, dar, n);
      });
      return;
    }
    if (step > 0) {
      const int64_t last = of.time(of.steps - step);
      gates.multiply(dv_before, gates_stride(), rows.count, units, [&](int64_t i, int64_t unit, int64_t, const T* sums) {
        T* const dh = state + i * stride() + unit;
        if (of.within(last, rows.first + i)) store(dh, load(dh) + load(sums));
      });
    }
    if (step == of.steps) return;
    recurrent::for_units<T>(rows.count, units, [&](int64_t i, int64_t unit, int64_t count) {
      const int64_t row = rows.first + i, own = i * stride() + unit, at = (t * of.batch + row) * hidden;
      Vector<T> dar{}, daz{}, dan{}, dvn{};
      T* const out = da + kGates * at + unit;
      T* const to = dv_after + i * gates_stride() + unit;
      if (of.within(t, row)) {
        const T* const values = kept + kGates * at + unit;
        const Vector<T> r = load(values, count), z = load(values + hidden, count), n = load(values + 2 * hidden, count);
        for (int64_t g = 0; g < kGates; ++g) __builtin_prefetch(values + g * hidden - of.ahead(kGates));
        __builtin_prefetch(before + at + unit - of.ahead(1));
        __builtin_prefetch(more + at + unit - of.ahead(1));
        const Vector<T> dh = load(state + own) + load(dy + (row * of.steps + t) * hidden + unit, count);
        dan = dh * (1 - z) * ((1 - n) * (1 + n));
        daz = dh * (load(before + at + unit, count) - n) * z * (1 - z);
        dar = dan * load(more + at + unit, count) * r * (1 - r);  // if the reset comes before, calculated later
        dvn = dan * r;
        store(state + own, dh * z);
      }
      store(out + hidden, daz, count);
      store(out + 2 * hidden, dan, count);
      store(to + hidden, daz, count);
      if (!reset_after) return store(dan_state + own, dan);
      store(out, dar, count);
      store(to, dar, count);
      store(to + 2 * hidden, dvn, count);
      T* const dv_row = dv + kGates * at + unit;
      store(dv_row, dar, count);
      store(dv_row + hidden, daz, count);
      store(dv_row + 2 * hidden, dvn, count);
    });
  }
};

// Arguments: x [B, T, I], W [I, 3H], b [3H], U [H, 3H], d [H], h [B, H] and, if there are any, the lengths [B]. Results:
// y [B, T, H]; h after the last step; if a backward pass will come, r, z and n [T, B, 3H], u or s [T, B, H], h before
// each step [T, B, H].
ffi::Error forward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer b, ffi::AnyBuffer u,
                   ffi::AnyBuffer bias, ffi::AnyBuffer h, ffi::RemainingArgs lengths, ffi::Result<ffi::AnyBuffer> y,
                   ffi::Result<ffi::AnyBuffer> last, ffi::RemainingRets kept, bool reset_after, bool reverse) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Sequence of = recurrent::sequence_of(x, u.dimensions()[0], lengths, reverse);
    const int64_t hidden = of.hidden;
    const gemm::Operand<T> weights{u.typed_data<T>(), kGates * hidden, false};
    Forward<T> pass{of,
                    reset_after,
                    {of, x, w, b, kGates},
                    {weights, hidden, hidden, reset_after ? 3 : 2},
                    {weights, hidden, hidden, 1, 2 * hidden},
                    bias.typed_data<T>(),
                    h.typed_data<T>(),
                    y->typed_data<T>(),
                    last->typed_data<T>(),
                    recurrent::optional<T>(kept, 0),
                    recurrent::optional<T>(kept, 1),
                    recurrent::optional<T>(kept, 2)};
    reset_after ? recurrent::run<T>(pool, pass, {&pass.input.weights, &pass.gates})
                : recurrent::run<T>(pool, pass, {&pass.input.weights, &pass.gates, &pass.candidate});
  };
  x.element_type() == ffi::F64 ? run(0.0) : run(0.0f);
  return ffi::Error::Success();
}

JAXNET_TARGET(jaxnet_gru, forward,
              ffi::Ffi::Bind()
                  .Ctx<ffi::ThreadPool>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .RemainingArgs()
                  .Ret<ffi::AnyBuffer>()
                  .Ret<ffi::AnyBuffer>()
                  .RemainingRets()
                  .Attr<bool>("reset_after")
                  .Attr<bool>("reverse"));

// Arguments: r, z and n [T, B, 3H], U [H, 3H], h before each step [T, B, H], u or s [T, B, H], dy [B, T, H], dh [B, H]
// and, if there are any, the lengths [B]. Results: da [T, B, 3H], which may overwrite the first; dh [B, H]; if the
// reset comes after the product, dv [T, B, 3H].
ffi::Error backward(ffi::ThreadPool pool, ffi::AnyBuffer kept, ffi::AnyBuffer u, ffi::AnyBuffer before,
                    ffi::AnyBuffer more, ffi::AnyBuffer dy, ffi::AnyBuffer last, ffi::RemainingArgs lengths,
                    ffi::Result<ffi::AnyBuffer> da, ffi::Result<ffi::AnyBuffer> first, ffi::RemainingRets dv,
                    bool reverse) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Sequence of = recurrent::sequence_of(dy, dy.dimensions()[2], lengths, reverse);
    const bool reset_after = dv.size();
    const int64_t hidden = of.hidden;
    const T* const weights = u.typed_data<T>();
    Backward<T> pass{of,
                     reset_after,
                     {{weights, kGates * hidden, true}, (reset_after ? 3 : 2) * hidden, hidden, 1},
                     {{weights + 2 * hidden, kGates * hidden, true}, hidden, hidden, 1},
                     kept.typed_data<T>(),
                     before.typed_data<T>(),
                     more.typed_data<T>(),
                     dy.typed_data<T>(),
                     last.typed_data<T>(),
                     da->typed_data<T>(),
                     first->typed_data<T>(),
                     recurrent::optional<T>(dv, 0)};
    reset_after ? recurrent::run<T>(pool, pass, {&pass.gates})
                : recurrent::run<T>(pool, pass, {&pass.gates, &pass.candidate});
  };
  kept.element_type() == ffi::F64 ? run(0.0) : run(0.0f);
  return ffi::Error::Success();
}

JAXNET_TARGET(jaxnet_gru_backward, backward,
              ffi::Ffi::Bind()
                  .Ctx<ffi::ThreadPool>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .RemainingArgs()
                  .Ret<ffi::AnyBuffer>()
                  .Ret<ffi::AnyBuffer>()
                  .RemainingRets()
                  .Attr<bool>("reverse"));

}  // namespace
}  // namespace jaxnet
