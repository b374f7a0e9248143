#include "native/registration.h"

#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace jaxnet {
namespace {

// A function's static, because other files' static initialisers use it.
std::vector<Target>& targets() {
  static std::vector<Target> list;
  return list;
}

}  // namespace

bool register_target(Target target) {
  targets().push_back(target);
  return true;
}

void use_large_pages([[maybe_unused]] const XLA_FFI_Rets& results) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 2 << 20;
  for (int64_t i = 0; i < results.size; ++i) {
    const auto& result = *static_cast<const XLA_FFI_Buffer*>(results.rets[i]);
    uintptr_t bytes = xla::ffi::ByteWidth(static_cast<xla::ffi::DataType>(result.dtype));
    for (int64_t d = 0; d < result.rank; ++d) bytes *= result.dims[d];
    const auto data = reinterpret_cast<uintptr_t>(result.data);
    const uintptr_t begin = (data + page - 1) / page * page, end = (data + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
}

}  // namespace jaxnet

#define JAXNET_EXPORT extern "C" __attribute__((visibility("default")))

// The targets of this library; `count` receives how many.
JAXNET_EXPORT const jaxnet::Target* jaxnet_targets(int64_t* count) {
  *count = static_cast<int64_t>(jaxnet::targets().size());
  return jaxnet::targets().data();
}

// Whether this CPU, and its operating system, runs the code compiled for `isa`: what CMakeLists.txt asks of it.
JAXNET_EXPORT bool jaxnet_supports(const char* isa) {
  if (std::strcmp(isa, "baseline") == 0) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (std::strcmp(isa, "avx2") == 0) return avx2;
  if (std::strcmp(isa, "avx512") == 0) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  }
#endif
  return false;
}
