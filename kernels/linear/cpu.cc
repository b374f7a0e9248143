// The matrix product of jaxnet/ops/linear.py; how it is computed is in native/gemm.h.

#include <cstdint>

#include "native/gemm.h"
#include "native/registration.h"

namespace jaxnet {
namespace {

namespace ffi = xla::ffi;

template <typename T>
void run(ffi::ThreadPool& pool, int64_t batch, int64_t rows, int64_t columns, int64_t depth,
         const ffi::AnyBuffer& a, bool transpose_a, const ffi::AnyBuffer& b, bool transpose_b, const T* bias,
         ffi::AnyBuffer& c) {
  for (int64_t i = 0; i < batch; ++i) {
    gemm::product(pool, rows, columns, depth, a.typed_data<T>() + i * rows * depth, transpose_a,
                  b.typed_data<T>() + i * depth * columns, transpose_b, bias ? bias + i * columns : nullptr,
                  c.typed_data<T>() + i * rows * columns);
  }
}

// Arguments: a [..., rows, depth] or its transpose, b [..., depth, columns] or its transpose and, if there is
// one, the bias [..., columns]. Result: c [..., rows, columns]. All have the same leading batch axes.
ffi::Error product(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::RemainingArgs rest,
                   ffi::Result<ffi::AnyBuffer> c, bool transpose_a, bool transpose_b) {
  const auto shape = c->dimensions(), a_shape = a.dimensions();
  const size_t n = shape.size();
  int64_t batch = 1;
  for (size_t i = 0; i + 2 < n; ++i) batch *= shape[i];
  const int64_t depth = a_shape[transpose_a ? n - 2 : n - 1];
  const void* bias = rest.size() > 0 ? rest.get<ffi::AnyBuffer>(0)->untyped_data() : nullptr;
  if (c->element_type() == ffi::F64) {
    run(pool, batch, shape[n - 2], shape[n - 1], depth, a, transpose_a, b, transpose_b,
        static_cast<const double*>(bias), *c);
  } else {
    run(pool, batch, shape[n - 2], shape[n - 1], depth, a, transpose_a, b, transpose_b,
        static_cast<const float*>(bias), *c);
  }
  return ffi::Error::Success();
}

JAXNET_TARGET(jaxnet_product, product,
              ffi::Ffi::Bind()
                  .Ctx<ffi::ThreadPool>()
                  .Arg<ffi::AnyBuffer>()
                  .Arg<ffi::AnyBuffer>()
                  .RemainingArgs()
                  .Ret<ffi::AnyBuffer>()
                  .Attr<bool>("transpose_a")
                  .Attr<bool>("transpose_b"));

}  // namespace
}  // namespace jaxnet
