#include "native/registration.h"

#include <cstdint>
#include <cstring>
#include <vector>

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
