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

template <typename T>
void run_product(ffi::ThreadPool& pool, const ffi::AnyBuffer& a, const ffi::AnyBuffer& b, const void* bias,
                 ffi::AnyBuffer& c, bool transpose_b, bool relu) {
  const int64_t rows = axis(c, 2), columns = axis(c, 1), depth = axis(a, 1), batch = batch_of(c);
  for (int64_t i = 0; i < batch; ++i) {
    gemm::product(pool, rows, columns, depth, a.typed_data<T>() + i * rows * depth, false,
                  b.typed_data<T>() + i * depth * columns, transpose_b,
                  bias ? static_cast<const T*>(bias) + i * columns : nullptr, c.typed_data<T>() + i * rows * columns,
                  {relu, nullptr, nullptr});
  }
}

// Arguments: a [..., rows, depth], b [..., depth, columns] or its transpose and, if there is
// one, the bias [..., columns]. Result: c [..., rows, columns]. All have the same leading batch axes.
ffi::Error product(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::RemainingArgs rest,
                   ffi::Result<ffi::AnyBuffer> c, bool transpose_b, bool relu) {
  const void* bias = rest.size() > 0 ? rest.get<ffi::AnyBuffer>(0)->untyped_data() : nullptr;
  const auto run = c->element_type() == ffi::F64 ? run_product<double> : run_product<float>;
  run(pool, a, b, bias, *c, transpose_b, relu);
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
                  .Attr<bool>("relu"));

template <typename T>
void run_gradients(ffi::ThreadPool& pool, const ffi::AnyBuffer& x, const ffi::AnyBuffer& dy, const void* y,
                   ffi::AnyBuffer& dweight, ffi::AnyBuffer& dbias) {
  const int64_t rows = axis(dweight, 2), columns = axis(dweight, 1), depth = axis(x, 2), batch = batch_of(dweight);
  for (int64_t i = 0; i < batch; ++i) {
    gemm::product<T>(pool, rows, columns, depth, x.typed_data<T>() + i * rows * depth, true,
                     dy.typed_data<T>() + i * depth * columns, false, nullptr,
                     dweight.typed_data<T>() + i * rows * columns,
                     {false, y ? static_cast<const T*>(y) + i * depth * columns : nullptr,
                      dbias.typed_data<T>() + i * columns});
  }
}

// Arguments: x [..., examples, in], dy [..., examples, out] and, for relu, y [..., examples, out]. Results: dW
// [..., in, out], db [..., out]. All have the same leading batch axes.
ffi::Error gradients(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer dy, ffi::RemainingArgs rest,
                     ffi::Result<ffi::AnyBuffer> dweight, ffi::Result<ffi::AnyBuffer> dbias) {
  const void* y = rest.size() > 0 ? rest.get<ffi::AnyBuffer>(0)->untyped_data() : nullptr;
  const auto run = dweight->element_type() == ffi::F64 ? run_gradients<double> : run_gradients<float>;
  run(pool, x, dy, y, *dweight, *dbias);
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
