// The table of XLA FFI handlers, which kernels/ffi.py reads when it has loaded the library.
#pragma once

#include "xla/ffi/api/ffi.h"

namespace jaxnet {

struct Target {
  const char* name;
  XLA_FFI_Handler* handler;
};

bool register_target(Target target);

}  // namespace jaxnet

// Binds `function` as the FFI target `name` (an identifier that begins with jaxnet_).
#define JAXNET_TARGET(name, function, binding)           \
  XLA_FFI_DEFINE_HANDLER(name, function, binding);       \
  [[maybe_unused]] static const bool name##_registered = \
      ::jaxnet::register_target({#name, name})
