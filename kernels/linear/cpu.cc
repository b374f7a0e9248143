// The matrix products of jaxnet/ops/linear.py; how they are computed is in native/gemm.h.

#include <cstdint>
#include <string_view>

#include "native/gemm.h"
#include "native/registration.h"

namespace jaxnet {
namespace {

namespace ffi = xla::ffi;

int64_t batch_of(const ffi::AnyBuffer& c) {
  int64_t batch = 1;
  for (size_t i = 0; i + 2 < c.dimensions().size(); ++i) batch *= c.dimensions()[i];
  return batch;
}

// An axis counted from the last.
int64_t axis(const ffi::AnyBuffer& x, size_t from_last) { return x.dimensions()[x.dimensions().size() - from_last]; }

// The `i`-th of the arguments that may be missing; null if it is.
template <typename T>
const T* optional(const ffi::RemainingArgs& args, size_t i) {
  return i < args.size() ? args.get<ffi::AnyBuffer>(i)->typed_data<T>() : nullptr;
}

template <typename T>
T* member(T* data, int64_t offset) {
  return data ? data + offset : nullptr;
}

template <typename T>
void run_product(ffi::ThreadPool& pool, const ffi::AnyBuffer& a, const ffi::AnyBuffer& b, const T* saved,
                 const T* bias, ffi::AnyBuffer& c, T* z, bool transpose_b, Activation f, Activation of_a) {
  const int64_t rows = axis(c, 2), columns = axis(c, 1), depth = axis(a, 1), batch = batch_of(c);
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t at = i * rows * depth, to = i * rows * columns;
    const gemm::Operand<T> left{a.typed_data<T>() + at, depth, true, member(saved, at), of_a};
    const gemm::Operand<T> right{b.typed_data<T>() + i * depth * columns, transpose_b ? depth : columns, transpose_b};
    gemm::product<T>(pool, rows, columns, depth, left, right, member(bias, i * columns), f, c.typed_data<T>() + to,
                     member(z, to), nullptr);
  }
}

// Arguments: a [..., rows, depth], b [..., depth, columns] or its transpose; if a is multiplied by the slope of an
// activation, what that is of [..., rows, depth]; if there is one, the bias [..., columns]. Results: c [..., rows,
// columns]; if asked for, what the activation is of, likewise. All have the same leading batch axes.
ffi::Error product(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::RemainingArgs rest,
                   ffi::Result<ffi::AnyBuffer> c, ffi::RemainingRets kept, bool transpose_b,
                   std::string_view activation, std::string_view slope) {
  const Activation f = activation_of(activation), of_a = activation_of(slope);
  const bool times = of_a != Activation::kIdentity;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    T* z = kept.size() ? (*kept.get<ffi::AnyBuffer>(0))->typed_data<T>() : nullptr;
    const T* saved = times ? optional<T>(rest, 0) : nullptr;
    run_product(pool, a, b, saved, optional<T>(rest, times), *c, z, transpose_b, f, of_a);
  };
  c->element_type() == ffi::F64 ? run(0.0) : run(0.0f);
  return ffi::Error::Success();
}

JAXNET_TARGET(jaxnet_product, product,
              ffi::Ffi::Bind()
                  .Ctx<ffi::ThreadPool>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .RemainingArgs()
                  .Ret<ffi::AnyBuffer>()
                  .RemainingRets()
                  .Attr<bool>("transpose_b")
                  .Attr<std::string_view>("activation")
                  .Attr<std::string_view>("slope"));

template <typename T>
void run_gradients(ffi::ThreadPool& pool, const ffi::AnyBuffer& x, const ffi::AnyBuffer& dy, const T* saved,
                   Activation f, ffi::AnyBuffer& dweight, ffi::AnyBuffer& dbias) {
  const int64_t rows = axis(dweight, 2), columns = axis(dweight, 1), depth = axis(x, 2), batch = batch_of(dweight);
  for (int64_t i = 0; i < batch; ++i) {
    const gemm::Operand<T> left{x.typed_data<T>() + i * rows * depth, rows, false};
    const int64_t at = i * depth * columns;
    const gemm::Operand<T> right{dy.typed_data<T>() + at, columns, false, member(saved, at), f};
    gemm::product<T>(pool, rows, columns, depth, left, right, nullptr, Activation::kIdentity,
                     dweight.typed_data<T>() + i * rows * columns, nullptr, dbias.typed_data<T>() + i * columns);
  }
}

// Arguments: x [..., examples, in], dy [..., examples, out] and, if dy is multiplied by a slope, what that is of
// [..., examples, out]. Results: dW [..., in, out], db [..., out]. All have the same leading batch axes.
ffi::Error gradients(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer dy, ffi::RemainingArgs rest,
                     ffi::Result<ffi::AnyBuffer> dweight, ffi::Result<ffi::AnyBuffer> dbias, std::string_view slope) {
  const auto run = [&](auto zero) {
    run_gradients(pool, x, dy, optional<decltype(zero)>(rest, 0), activation_of(slope), *dweight, *dbias);
  };
  dweight->element_type() == ffi::F64 ? run(0.0) : run(0.0f);
  return ffi::Error::Success();
}

JAXNET_TARGET(jaxnet_linear_gradients, gradients,
              ffi::Ffi::Bind()
                  .Ctx<ffi::ThreadPool>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .RemainingArgs()
                  .Ret<ffi::AnyBuffer>()
                  .Ret<ffi::AnyBuffer>()
                  .Attr<std::string_view>("slope"));

}  // namespace
}  // namespace jaxnet
