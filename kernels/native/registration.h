// The table of XLA FFI handlers, which kernels/ffi.py reads when it has loaded the library.
#pragma once

#include "xla/ffi/api/ffi.h"

namespace jaxnet {

struct Target {
  const char* name;
  XLA_FFI_Handler* handler;
};

bool register_target(Target target);

// Asks the system to lay large results on pages of 2 MB. They are in fresh memory, of which it clears each page when
// that is first written: by pages of 4 KB this takes four times as long, and longer than many a product.
void use_large_pages(const XLA_FFI_Rets& results);

}  // namespace jaxnet

// Binds `function` as the FFI target `name` (an identifier that begins with jaxnet_).
#define JAXNET_TARGET(name, function, binding)                             \
  static constexpr XLA_FFI_Handler* name = +[](XLA_FFI_CallFrame* frame) { \
    XLA_FFI_DEFINE_HANDLER(handler, function, binding);                    \
    ::jaxnet::use_large_pages(frame->rets);                                \
    return handler(frame);                                                 \
  };                                                                       \
  [[maybe_unused]] static const bool name##_registered =                   \
      ::jaxnet::register_target({#name, name})
