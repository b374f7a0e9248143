// The loop over time of jaxnet/ops/lstm.py, whose names these are: forwards from x, backwards to da.

#include <cstdint>
#include <utility>

#include "native/recurrent.h"
#include "native/registration.h"

namespace jaxnet {
namespace {

namespace ffi = xla::ffi;
using recurrent::kGate;
using recurrent::Rows;
using recurrent::Sequence;
using recurrent::Units;

constexpr int64_t kGates = 4;  // i, f, g, o

template <typename T>
struct Forward {
  Sequence of;
  recurrent::Input<T> input;
  recurrent::Weights<T> weights;
  const T *first_h, *first_c;
  T *y, *last_h, *last_c, *kept, *before_h, *before_c;  // the last three null if no backward pass will come

  int64_t stride() const { return recurrent::stride_of<T>(of.hidden); }
  int64_t elements() const { return 3 * stride() + input.elements(); }  // h, twice, c and a
  int64_t phases() const { return of.steps; }

  void begin(Rows rows, T* state) const {
    recurrent::copy_in(first_h, rows, of.hidden, state, stride());
    recurrent::copy_in(first_c, rows, of.hidden, state + 2 * rows.count * stride(), stride());
  }

  void end(Rows rows, const T* state) const {
    recurrent::copy_out(state + of.steps % 2 * rows.count * stride(), stride(), rows, of.hidden, last_h);
    recurrent::copy_out(state + 2 * rows.count * stride(), stride(), rows, of.hidden, last_c);
  }

  void phase(Rows rows, T* state, int64_t step, Units units) const {
    const int64_t t = of.time(step), hidden = of.hidden, size = rows.count * stride();
    const T* const now = state + step % 2 * size;
    T *const next = state + (step + 1) % 2 * size, *const c_state = state + 2 * size, *const a = state + 3 * size;
    input.compute(rows, step, units, a);
    weights.multiply(now, stride(), rows.count, units, [&](int64_t i, int64_t unit, int64_t n, const T* sums) {
      const int64_t row = rows.first + i, at = (t * of.batch + row) * hidden, gates = kGates * at + unit;
      const int64_t own = i * stride() + unit;
      const bool within = of.within(t, row);
      const Vector<T> h_before = load(now + own), c_before = load(c_state + own);
      Vector<T> gate[kGates] = {}, h = h_before, c = c_before;
      if (within) {
        const auto z = [&](int64_t g) {
          const T* const from = a + input.at(rows, step, i) + g * stride() + unit;
          __builtin_prefetch(from + input.ahead(rows));
          return load(from) + load(sums + g * kGate<T>);
        };
        gate[0] = math::sigmoid<T>(z(0)), gate[1] = math::sigmoid<T>(z(1));
        gate[2] = math::tanh<T>(z(2)), gate[3] = math::sigmoid<T>(z(3));
        c = gate[1] * c_before + gate[0] * gate[2];
        h = gate[3] * math::tanh<T>(c);
      }
      store(next + own, h);
      store(c_state + own, c);
      store(y + (row * of.steps + t) * hidden + unit, within ? h : Vector<T>{}, n);
      if (!kept) return;
      for (int64_t g = 0; g < kGates; ++g) store(kept + gates + g * hidden, gate[g], n);
      store(before_h + at + unit, h_before, n);
      store(before_c + at + unit, c_before, n);
    });
  }
};

template <typename T>
struct Backward {
  Sequence of;
  recurrent::Weights<T> weights;  // transposed
  const T *before_c, *kept, *dy, *last_dh, *last_dc;
  T *da, *first_dh, *first_dc;

  int64_t stride() const { return recurrent::stride_of<T>(of.hidden); }
  int64_t gates_stride() const { return recurrent::stride_of<T>(kGates * of.hidden); }
  int64_t elements() const { return 2 * stride() + 2 * gates_stride(); }  // dh, dc and dz, twice
  int64_t phases() const { return of.steps + 1; }

  void begin(Rows rows, T* state) const {
    recurrent::copy_in(last_dh, rows, of.hidden, state, stride());
    recurrent::copy_in(last_dc, rows, of.hidden, state + rows.count * stride(), stride());
  }

  void end(Rows rows, const T* state) const {
    recurrent::copy_out(state, stride(), rows, of.hidden, first_dh);
    recurrent::copy_out(state + rows.count * stride(), stride(), rows, of.hidden, first_dc);
  }

  // dh = dz Uᵀ of the step that was computed last, and dz of the next one.
  void phase(Rows rows, T* state, int64_t phase, Units units) const {
    const int64_t hidden = of.hidden, size = rows.count * stride(), t = of.time(of.steps - 1 - phase);
    T *const dh_state = state, *const dc_state = state + size, *const dz_state = state + 2 * size;
    const T* const dz_before = dz_state + phase % 2 * rows.count * gates_stride();
    T* const dz_after = dz_state + (phase + 1) % 2 * rows.count * gates_stride();
    if (phase > 0) {
      const int64_t last = of.time(of.steps - phase);
      weights.multiply(dz_before, gates_stride(), rows.count, units, [&](int64_t i, int64_t unit, int64_t, const T* sums) {
        if (of.within(last, rows.first + i)) store(dh_state + i * stride() + unit, load(sums));
      });
    }
    if (phase == of.steps) return;
    recurrent::for_units<T>(rows.count, units, [&](int64_t i, int64_t unit, int64_t n) {
      const int64_t row = rows.first + i, own = i * stride() + unit, at = (t * of.batch + row) * hidden;
      Vector<T> dz[kGates] = {};
      if (of.within(t, row)) {
        const T* const gates = kept + kGates * at + unit;
        for (int64_t g = 0; g < kGates; ++g) __builtin_prefetch(gates + g * hidden - of.ahead(kGates));
        __builtin_prefetch(before_c + at + unit - of.ahead(1));
        const Vector<T> in = load(gates, n), f = load(gates + hidden, n), g = load(gates + 2 * hidden, n),
                        o = load(gates + 3 * hidden, n), c = load(before_c + at + unit, n);
        const Vector<T> tanh_c = math::tanh<T>(f * c + in * g);
        const Vector<T> dh = load(dh_state + own) + load(dy + (row * of.steps + t) * hidden + unit, n);
        const Vector<T> dc = load(dc_state + own) + dh * o * ((1 - tanh_c) * (1 + tanh_c));
        dz[0] = dc * g * in * (1 - in), dz[1] = dc * c * f * (1 - f);
        dz[2] = dc * in * ((1 - g) * (1 + g)), dz[3] = dh * tanh_c * o * (1 - o);
        store(dc_state + own, dc * f);
      }
      for (int64_t g = 0; g < kGates; ++g) {
        store(dz_after + i * gates_stride() + g * hidden + unit, dz[g], n);
        store(da + kGates * at + g * hidden + unit, dz[g], n);
      }
    });
  }
};

// Arguments: x [B, T, I], W [I, 4H], b [4H], U [H, 4H], h and c [B, H] and, if there are any, the lengths [B]. Results:
// y [B, T, H]; h and c after the last step; if a backward pass will come, the gates [T, B, 4H], and h and c before each
// step [T, B, H].
ffi::Error forward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer b, ffi::AnyBuffer u,
                   ffi::AnyBuffer h, ffi::AnyBuffer c, ffi::RemainingArgs lengths, ffi::Result<ffi::AnyBuffer> y,
                   ffi::Result<ffi::AnyBuffer> last_h, ffi::Result<ffi::AnyBuffer> last_c, ffi::RemainingRets kept,
                   bool reverse) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Sequence of = recurrent::sequence_of(x, u.dimensions()[0], lengths, reverse);
    Forward<T> pass{of,
                    {of, x, w, b, kGates},
                    {{u.typed_data<T>(), kGates * of.hidden, false}, of.hidden, of.hidden, kGates},
                    h.typed_data<T>(),
                    c.typed_data<T>(),
                    y->typed_data<T>(),
                    last_h->typed_data<T>(),
                    last_c->typed_data<T>(),
                    recurrent::optional<T>(kept, 0),
                    recurrent::optional<T>(kept, 1),
                    recurrent::optional<T>(kept, 2)};
    recurrent::run<T>(pool, pass, {&pass.input.weights, &pass.weights});
  };
  x.element_type() == ffi::F64 ? run(0.0) : run(0.0f);
  return ffi::Error::Success();
}

JAXNET_TARGET(jaxnet_lstm, forward,
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
                  .Ret<ffi::AnyBuffer>()
                  .RemainingRets()
                  .Attr<bool>("reverse"));

// Arguments: the gates [T, B, 4H], U [H, 4H], c before each step [T, B, H], dy [B, T, H], dh and dc [B, H] and, if
// there are any, the lengths [B]. Results: da [T, B, 4H], which may overwrite the gates; dh and dc [B, H].
ffi::Error backward(ffi::ThreadPool pool, ffi::AnyBuffer kept, ffi::AnyBuffer u, ffi::AnyBuffer before_c,
                    ffi::AnyBuffer dy, ffi::AnyBuffer dh, ffi::AnyBuffer dc, ffi::RemainingArgs lengths,
                    ffi::Result<ffi::AnyBuffer> da, ffi::Result<ffi::AnyBuffer> first_dh,
                    ffi::Result<ffi::AnyBuffer> first_dc, bool reverse) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Sequence of = recurrent::sequence_of(dy, dy.dimensions()[2], lengths, reverse);
    const gemm::Operand<T> weights{u.typed_data<T>(), kGates * of.hidden, true};
    Backward<T> pass{of,
                     {weights, kGates * of.hidden, of.hidden, 1},
                     before_c.typed_data<T>(),
                     kept.typed_data<T>(),
                     dy.typed_data<T>(),
                     dh.typed_data<T>(),
                     dc.typed_data<T>(),
                     da->typed_data<T>(),
                     first_dh->typed_data<T>(),
                     first_dc->typed_data<T>()};
    recurrent::run<T>(pool, pass, {&pass.weights});
  };
  kept.element_type() == ffi::F64 ? run(0.0) : run(0.0f);
  return ffi::Error::Success();
}

JAXNET_TARGET(jaxnet_lstm_backward, backward,
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
                  .Ret<ffi::AnyBuffer>()
                  .Attr<bool>("reverse"));

}  // namespace
}  // namespace jaxnet
