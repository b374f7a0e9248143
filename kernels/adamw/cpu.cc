// One step of AdamW for all leaves of a parameter tree in one call; the formulas are in jaxnet/ops/adamw.py.
//
// It is bound by memory: each element is read and written once, and the work is cut into blocks of
// equal size over all leaves, so that many small leaves cost no more than one large one.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "native/parallel.h"
#include "native/registration.h"

namespace jaxnet {
namespace {

namespace ffi = xla::ffi;

constexpr int64_t kBlock = 16384;  // elements: smaller ones lose time between blocks, larger ones at the end

// The fields of jaxnet.ops.adamw.Scalars: computed in XLA, since they may depend on the step or be traced.
template <typename T>
struct Scalars {
  T b1, one_minus_b1, b2, one_minus_b2;
  T mu_correction, next_mu_correction, nu_correction;
  T eps, eps_root, weight_decay, learning_rate;
};
constexpr int64_t kScalars = sizeof(Scalars<float>) / sizeof(float);

// Pointers to one leaf. `out` receives the update, or p plus the update. m_out may be m, and so on.
struct Leaf {
  const void *g, *m, *v, *p;
  void *out, *m_out, *v_out;
  bool is_double, apply, nesterov, decay;
};

struct Block {
  const Leaf* leaf;
  int64_t row, begin, end;  // `row`: which of the batch, whose members have scalars of their own
};

template <typename T, bool apply, bool decay>
void step(const Leaf& leaf, const Scalars<T>& s, int64_t begin, int64_t end) {
  const T *g = static_cast<const T*>(leaf.g), *m = static_cast<const T*>(leaf.m);
  const T *v = static_cast<const T*>(leaf.v), *p = static_cast<const T*>(leaf.p);
  T *out = static_cast<T*>(leaf.out), *m_out = static_cast<T*>(leaf.m_out), *v_out = static_cast<T*>(leaf.v_out);
  // mhat = from_mu m + from_g g and vhat = from_nu v: two of the four divisions for each element are saved.
  const T from_mu = leaf.nesterov ? s.b1 / s.next_mu_correction : 1 / s.mu_correction;
  const T from_g = leaf.nesterov ? s.one_minus_b1 / s.mu_correction : 0;
  const T from_nu = 1 / s.nu_correction;
  JAXNET_INDEPENDENT
  for (int64_t i = begin; i < end; ++i) {
    const T gi = g[i];
    const T mi = s.b1 * m[i] + s.one_minus_b1 * gi;
    const T vi = s.b2 * v[i] + s.one_minus_b2 * (gi * gi);
    T u = (from_mu * mi + from_g * gi) / (std::sqrt(from_nu * vi + s.eps_root) + s.eps);
    if (decay) u += s.weight_decay * p[i];
    out[i] = apply ? p[i] - s.learning_rate * u : -s.learning_rate * u;
    m_out[i] = mi;
    v_out[i] = vi;
  }
}

template <typename T>
Scalars<T> scalars_of(int64_t row, const ffi::AnyBuffer& buffer) {
  T values[kScalars];
  for (int64_t i = 0; i < kScalars; ++i) {
    const int64_t at = row * kScalars + i;
    values[i] = buffer.element_type() == ffi::F64 ? static_cast<T>(buffer.typed_data<double>()[at])
                                                  : static_cast<T>(buffer.typed_data<float>()[at]);
  }
  Scalars<T> s;
  std::memcpy(&s, values, sizeof s);
  return s;
}

template <typename T>
void run(const Block& block, const ffi::AnyBuffer& scalars) {
  const Leaf& leaf = *block.leaf;
  const auto function = leaf.apply ? (leaf.decay ? step<T, true, true> : step<T, true, false>)
                                   : (leaf.decay ? step<T, false, true> : step<T, false, false>);
  function(leaf, scalars_of<T>(block.row, scalars), block.begin, block.end);
}

// Arguments: scalars [..., 11]; then for n leaves all gradients, all first moments, all second moments and,
// if `apply` or if any leaf decays, all parameters. Results: all updates or new parameters, all first
// moments, all second moments. Leading axes of `scalars` are batch axes of every leaf.
ffi::Error adamw(ffi::ThreadPool pool, ffi::AnyBuffer scalars, ffi::RemainingArgs args, ffi::RemainingRets rets,
                 bool apply, bool nesterov, ffi::Span<const int8_t> decay) {
  const size_t n = decay.size();
  const bool has_params = args.size() == 4 * n;
  if (!has_params && args.size() != 3 * n) return ffi::Error::InvalidArgument("adamw: wrong number of arguments");
  const auto data = [&](size_t i) { return args.get<ffi::AnyBuffer>(i)->untyped_data(); };
  const auto result = [&](size_t i) { return (*rets.get<ffi::AnyBuffer>(i))->untyped_data(); };

  const int64_t rows = static_cast<int64_t>(scalars.element_count()) / kScalars;
  int64_t total = 0;
  std::vector<Leaf> leaves;
  std::vector<Block> blocks;
  leaves.reserve(n);  // blocks point into it
  for (size_t i = 0; i < n; ++i) {
    const auto g = *args.get<ffi::AnyBuffer>(i);
    const auto size = static_cast<int64_t>(g.element_count());
    total += size;
    leaves.push_back({data(i), data(n + i), data(2 * n + i), has_params ? data(3 * n + i) : nullptr,
                      result(i), result(n + i), result(2 * n + i),
                      g.element_type() == ffi::F64, apply, nesterov, decay[i] != 0});
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t row_end = size / rows * (row + 1);
      for (int64_t begin = size / rows * row; begin < row_end; begin += kBlock) {
        blocks.push_back({&leaves.back(), row, begin, std::min(begin + kBlock, row_end)});
      }
    }
  }

  parallel_for(pool, blocks.size(), 1 + total / kBlock, [&](int64_t i) {
    const auto function = blocks[i].leaf->is_double ? run<double> : run<float>;
    function(blocks[i], scalars);
  });
  return ffi::Error::Success();
}

JAXNET_TARGET(jaxnet_adamw, adamw,
              ffi::Ffi::Bind()
                  .Ctx<ffi::ThreadPool>()
                  .Arg<ffi::AnyBuffer>()
                  .RemainingArgs()
                  .RemainingRets()
                  .Attr<bool>("apply")
                  .Attr<bool>("nesterov")
                  .Attr<ffi::Span<const int8_t>>("decay"));

}  // namespace
}  // namespace jaxnet
