// The matrix products of jaxnet/ops/linear.py; how they are computed is in native/gemm.h.

#include <cstdint>

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
const T* member(const T* data, int64_t offset) {
  return data ? data + offset : nullptr;
}

template <typename T>
void run_product(ffi::ThreadPool& pool, const ffi::AnyBuffer& a, const ffi::AnyBuffer& b, const T* y, const T* bias,
                 ffi::AnyBuffer& c, bool transpose_b, bool relu) {
  const int64_t rows = axis(c, 2), columns = axis(c, 1), depth = axis(a, 1), batch = batch_of(c);
  for (int64_t i = 0; i < batch; ++i) {
    const gemm::Operand<T> left{a.typed_data<T>() + i * rows * depth, depth, true, member(y, i * rows * depth)};
    const gemm::Operand<T> right{b.typed_data<T>() + i * depth * columns, transpose_b ? depth : columns, transpose_b};
    T* const to = c.typed_data<T>() + i * rows * columns;
    gemm::product<T>(pool, rows, columns, depth, left, right, member(bias, i * columns), to, relu, nullptr);
  }
}

// Arguments: a [..., rows, depth], b [..., depth, columns] or its transpose; if `masked`, y [..., rows, depth]; if
// there is one, the bias [..., columns]. Result: c [..., rows, columns]. All have the same leading batch axes.
ffi::Error product(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::RemainingArgs rest,
                   ffi::Result<ffi::AnyBuffer> c, bool transpose_b, bool relu, bool masked) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const T* y = masked ? optional<T>(rest, 0) : nullptr;
    run_product(pool, a, b, y, optional<T>(rest, masked ? 1 : 0), *c, transpose_b, relu);
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
                  .Attr<bool>("transpose_b")
                  .Attr<bool>("relu")
                  .Attr<bool>("masked"));

template <typename T>
void run_gradients(ffi::ThreadPool& pool, const ffi::AnyBuffer& x, const ffi::AnyBuffer& dy, const T* y,
                   ffi::AnyBuffer& dweight, ffi::AnyBuffer& dbias) {
  const int64_t rows = axis(dweight, 2), columns = axis(dweight, 1), depth = axis(x, 2), batch = batch_of(dweight);
  for (int64_t i = 0; i < batch; ++i) {
    const gemm::Operand<T> left{x.typed_data<T>() + i * rows * depth, rows, false};
    const int64_t at = i * depth * columns;
    const gemm::Operand<T> right{dy.typed_data<T>() + at, columns, false, member(y, at)};
    gemm::product<T>(pool, rows, columns, depth, left, right, nullptr, dweight.typed_data<T>() + i * rows * columns,
                     false, dbias.typed_data<T>() + i * columns);
  }
}

// Arguments: x [..., examples, in], dy [..., examples, out] and, for relu, y [..., examples, out]. Results: dW
// [..., in, out], db [..., out]. All have the same leading batch axes.
ffi::Error gradients(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer dy, ffi::RemainingArgs rest,
                     ffi::Result<ffi::AnyBuffer> dweight, ffi::Result<ffi::AnyBuffer> dbias) {
  const auto run = [&](auto zero) {
    run_gradients(pool, x, dy, optional<decltype(zero)>(rest, 0), *dweight, *dbias);
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
                  .Ret<ffi::AnyBuffer>());

}  // namespace
}  // namespace jaxnet
