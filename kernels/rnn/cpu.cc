// The loop over time of jaxnet/ops/rnn.py, whose names these are: forwards from x, backwards to da.

#include <cstdint>

#include "native/recurrent.h"
#include "native/registration.h"

namespace jaxnet {
namespace {

namespace ffi = xla::ffi;
using recurrent::Rows;
using recurrent::Sequence;
using recurrent::Units;

template <typename T>
struct Forward {
  Sequence of;
  recurrent::Input<T> input;
  recurrent::Weights<T> weights;
  bool relu;
  const T* first;
  T *y, *last, *kept, *before;  // the last two null if no backward pass will come

  int64_t stride() const { return recurrent::stride_of<T>(of.hidden); }
  int64_t elements() const { return 2 * stride() + input.elements(); }  // h, twice, and a
  int64_t phases() const { return of.steps; }
  void begin(Rows rows, T* state) const { recurrent::copy_in(first, rows, of.hidden, state, stride()); }
  void end(Rows rows, const T* state) const {
    recurrent::copy_out(state + of.steps % 2 * rows.count * stride(), stride(), rows, of.hidden, last);
  }

  void phase(Rows rows, T* state, int64_t step, Units units) const {
    const int64_t t = of.time(step), size = rows.count * stride();
    const T* const now = state + step % 2 * size;
    T *const next = state + (step + 1) % 2 * size, *const a = state + 2 * size;
    input.compute(rows, step, units, a);
    weights.multiply(now, stride(), rows.count, units, [&](int64_t i, int64_t unit, int64_t n, const T* sums) {
      const int64_t row = rows.first + i, at = (t * of.batch + row) * of.hidden + unit, own = i * stride() + unit;
      const bool within = of.within(t, row);
      const Vector<T> h_before = load(now + own);
      Vector<T> h = h_before;
      if (within) {
        const T* const from = a + input.at(rows, step, i) + unit;
        __builtin_prefetch(from + input.ahead(rows));
        const Vector<T> z = load(from) + load(sums);
        h = !relu ? math::tanh<T>(z) : z < 0 ? Vector<T>{} : z;  // NaN stays
      }
      store(next + own, h);
      store(y + (row * of.steps + t) * of.hidden + unit, within ? h : Vector<T>{}, n);
      if (!kept) return;
      store(kept + at, h, n);
      store(before + at, h_before, n);
    });
  }
};

template <typename T>
struct Backward {
  Sequence of;
  recurrent::Weights<T> weights;  // transposed
  bool relu;
  const T *kept, *dy, *last;
  T *da, *first;

  int64_t stride() const { return recurrent::stride_of<T>(of.hidden); }
  int64_t elements() const { return 3 * stride(); }  // dh, and dz, twice
  int64_t phases() const { return of.steps + 1; }
  void begin(Rows rows, T* state) const { recurrent::copy_in(last, rows, of.hidden, state, stride()); }
  void end(Rows rows, const T* state) const { recurrent::copy_out(state, stride(), rows, of.hidden, first); }

  // dh = dz Uᵀ of the step that was computed last, and dz of the next one.
  void phase(Rows rows, T* state, int64_t phase, Units units) const {
    const int64_t t = of.time(of.steps - 1 - phase), size = rows.count * stride();
    const T* const dz_before = state + (1 + phase % 2) * size;
    T* const dz_after = state + (1 + (phase + 1) % 2) * size;
    if (phase > 0) {
      const int64_t last = of.time(of.steps - phase);
      weights.multiply(dz_before, stride(), rows.count, units, [&](int64_t i, int64_t unit, int64_t, const T* sums) {
        if (of.within(last, rows.first + i)) store(state + i * stride() + unit, load(sums));
      });
    }
    if (phase == of.steps) return;
    recurrent::for_units<T>(rows.count, units, [&](int64_t i, int64_t unit, int64_t n) {
      const int64_t row = rows.first + i, at = (t * of.batch + row) * of.hidden + unit, own = i * stride() + unit;
      Vector<T> dz{};
      if (of.within(t, row)) {
        const Vector<T> h = load(kept + at, n), one = Vector<T>{} + 1;
        __builtin_prefetch(kept + at - of.ahead(1));
        const Vector<T> dh = load(state + own) + load(dy + (row * of.steps + t) * of.hidden + unit, n);
        dz = dh * (relu ? (h > 0 ? one : Vector<T>{}) : (1 - h) * (1 + h));
      }
      store(dz_after + own, dz);
      store(da + at, dz, n);
    });
  }
};

// Arguments: x [B, T, I], W [I, H], b [H], U [H, H], h [B, H] and, if there are any, the lengths [B]. Results: y
// [B, T, H]; h after the last step; if a backward pass will come, h after each step [T, B, H], and before it.
ffi::Error forward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer b, ffi::AnyBuffer u,
                   ffi::AnyBuffer h, ffi::RemainingArgs lengths, ffi::Result<ffi::AnyBuffer> y,
                   ffi::Result<ffi::AnyBuffer> last, ffi::RemainingRets kept, bool relu, bool reverse) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Sequence of = recurrent::sequence_of(x, u.dimensions()[0], lengths, reverse);
    Forward<T> pass{of,
                    {of, x, w, b, 1},
                    {{u.typed_data<T>(), of.hidden, false}, of.hidden, of.hidden, 1},
                    relu,
                    h.typed_data<T>(),
                    y->typed_data<T>(),
                    last->typed_data<T>(),
                    recurrent::optional<T>(kept, 0),
                    recurrent::optional<T>(kept, 1)};
    recurrent::run<T>(pool, pass, {&pass.input.weights, &pass.weights});
  };
  x.element_type() == ffi::F64 ? run(0.0) : run(0.0f);
  return ffi::Error::Success();
}

JAXNET_TARGET(jaxnet_rnn, forward,
              ffi::Ffi::Bind()
                  .Ctx<ffi::ThreadPool>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .RemainingArgs()
                  .Ret<ffi::AnyBuffer>()
                  .Ret<ffi::AnyBuffer>()
                  .RemainingRets()
                  .Attr<bool>("relu")
                  .Attr<bool>("reverse"));

// Arguments: h after each step [T, B, H], U [H, H], dy [B, T, H], dh [B, H] and, if there are any, the lengths [B].
// Results: da [T, B, H], which may overwrite h; dh [B, H].
ffi::Error backward(ffi::ThreadPool pool, ffi::AnyBuffer kept, ffi::AnyBuffer u, ffi::AnyBuffer dy,
                    ffi::AnyBuffer last, ffi::RemainingArgs lengths, ffi::Result<ffi::AnyBuffer> da,
                    ffi::Result<ffi::AnyBuffer> first, bool relu, bool reverse) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Sequence of = recurrent::sequence_of(dy, dy.dimensions()[2], lengths, reverse);
    const gemm::Operand<T> weights{u.typed_data<T>(), of.hidden, true};
    Backward<T> pass{of,
                     {weights, of.hidden, of.hidden, 1},
                     relu,
                     kept.typed_data<T>(),
                     dy.typed_data<T>(),
                     last.typed_data<T>(),
                     da->typed_data<T>(),
                     first->typed_data<T>()};
    recurrent::run<T>(pool, pass, {&pass.weights});
  };
  kept.element_type() == ffi::F64 ? run(0.0) : run(0.0f);
  return ffi::Error::Success();
}

JAXNET_TARGET(jaxnet_rnn_backward, backward,
              ffi::Ffi::Bind()
                  .Ctx<ffi::ThreadPool>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .RemainingArgs()
                  .Ret<ffi::AnyBuffer>()
                  .Ret<ffi::AnyBuffer>()
                  .Attr<bool>("relu")
                  .Attr<bool>("reverse"));

}  // namespace
}  // namespace jaxnet
