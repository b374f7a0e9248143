// As much of XLA as a kernel sees: buffers, a pool of threads, and calls by the C interface of its FFI; stricter than
// XLA wherever a sanitizer can use it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "xla/ffi/api/c_api.h"

struct XLA_FFI_Error {
  std::string message;
};

// The pool of one call. Each task is a thread of its own: between those of a pool, its queue's lock would order what
// the kernel itself has to order.
struct XLA_FFI_ExecutionContext {
  int64_t threads;
  std::vector<std::thread> tasks{};

  ~XLA_FFI_ExecutionContext() {
    for (std::thread& task : tasks) task.join();
  }
};

namespace xla_like {

inline std::atomic<int64_t> tasks{0};  // scheduled so far

inline const XLA_FFI_Api& api() {
  static const XLA_FFI_Api table = [] {
    XLA_FFI_Api t{};
    t.struct_size = XLA_FFI_Api_STRUCT_SIZE;
    t.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
    t.XLA_FFI_Error_Create = [](XLA_FFI_Error_Create_Args* args) { return new XLA_FFI_Error{args->message}; };
    t.XLA_FFI_Error_GetMessage = [](XLA_FFI_Error_GetMessage_Args* args) {
      args->message = args->error->message.c_str();
    };
    t.XLA_FFI_Error_Destroy = [](XLA_FFI_Error_Destroy_Args* args) { delete args->error; };
    t.XLA_FFI_ThreadPool_Schedule = [](XLA_FFI_ThreadPool_Schedule_Args* args) -> XLA_FFI_Error* {
      tasks.fetch_add(1, std::memory_order_relaxed);  // which orders nothing
      args->ctx->tasks.emplace_back(args->task, args->data);
      return nullptr;
    };
    t.XLA_FFI_ThreadPool_NumThreads = [](XLA_FFI_ThreadPool_NumThreads_Args* args) -> XLA_FFI_Error* {
      *args->num_threads = args->ctx->threads;
      return nullptr;
    };
    return t;
  }();
  return table;
}

using Bytes = std::vector<char>;

struct Shape {
  XLA_FFI_DataType type;
  std::vector<int64_t> dims;

  size_t width() const { return type == XLA_FFI_DataType_F64 ? 8 : 4; }
  size_t count() const {
    size_t count = 1;
    for (const int64_t d : dims) count *= d;
    return count;
  }
};

struct Argument {
  Shape shape;
  Bytes values;
};

struct Call {
  std::string target;
  std::vector<Argument> args{};
  std::vector<Shape> results{};
  std::map<std::string, bool> options{};
  std::map<std::string, std::string> names{};  // options that are words
  std::map<size_t, size_t> aliases{};  // an argument -> the result that overwrites it
  std::vector<int8_t> decay{};         // AdamW's alone
};

// What a sanitizer must find: a buffer that ends one element too early, one that begins between two elements, one of
// which another thread writes the first 4 bytes meanwhile.
enum class Fault { kNone, kShort, kMisaligned, kRace };

// Calls the kernel on a thread of its own, so that what it keeps from call to call is as large as this call needs. All
// memory is freed while tasks that came late may still run. Results that nobody writes are NaN.
inline std::vector<Bytes> run(XLA_FFI_Handler* handler, const Call& call, int64_t threads, Fault fault = Fault::kNone,
                              size_t faulty = 0) {
  XLA_FFI_ExecutionContext pool{threads};
  std::vector<Bytes> found;
  std::thread caller([&] {
    std::vector<std::unique_ptr<char[]>> memory;
    std::vector<XLA_FFI_Buffer> buffers;  // the arguments', then the results'
    std::vector<Shape> shapes = call.results;
    for (size_t i = call.args.size(); i-- > 0;) shapes.insert(shapes.begin(), call.args[i].shape);
    void* first = nullptr;  // byte of the faulty buffer
    for (size_t i = 0; i < shapes.size(); ++i) {
      Shape& s = shapes[i];
      const bool here = fault != Fault::kNone && i == faulty;
      const size_t bytes = s.count() * s.width() - (here && fault == Fault::kShort ? s.width() : 0);
      const size_t offset = here && fault == Fault::kMisaligned ? 1 : 0;
      memory.emplace_back(new char[bytes + offset]);
      char* const data = memory.back().get() + offset;
      if (i < call.args.size()) {
        std::copy_n(call.args[i].values.data(), bytes, data);
      } else {
        std::fill_n(data, bytes, char(-1));
      }
      if (here) first = data;
      buffers.push_back({XLA_FFI_Buffer_STRUCT_SIZE, nullptr, s.type, data, int64_t(s.dims.size()), s.dims.data()});
    }
    const size_t n = call.args.size();
    for (const auto& [from, to] : call.aliases) buffers[n + to].data = buffers[from].data;

    std::vector<void*> pointers;
    for (XLA_FFI_Buffer& b : buffers) pointers.push_back(&b);
    std::vector<XLA_FFI_ArgType> arg_types(n, XLA_FFI_ArgType_BUFFER);
    std::vector<XLA_FFI_RetType> result_types(call.results.size(), XLA_FFI_RetType_BUFFER);

    // Sorted by name, as the FFI searches them.
    std::map<std::string, bool> options = call.options;
    std::map<std::string, XLA_FFI_Scalar> scalars;
    XLA_FFI_Array decay{XLA_FFI_DataType_S8, call.decay.size(), const_cast<int8_t*>(call.decay.data())};
    std::map<std::string, std::pair<XLA_FFI_AttrType, void*>> attributes;
    for (auto& [name, value] : options) {
      scalars[name] = {XLA_FFI_DataType_PRED, &value};
      attributes[name] = {XLA_FFI_AttrType_SCALAR, &scalars[name]};
    }
    std::map<std::string, XLA_FFI_ByteSpan> words;
    for (const auto& [name, value] : call.names) {
      words[name] = {value.data(), value.size()};
      attributes[name] = {XLA_FFI_AttrType_STRING, &words[name]};
    }
    if (!call.decay.empty()) attributes["decay"] = {XLA_FFI_AttrType_ARRAY, &decay};
    std::vector<XLA_FFI_AttrType> types;
    std::vector<XLA_FFI_ByteSpan> names;
    std::vector<XLA_FFI_ByteSpan*> name_pointers;
    std::vector<void*> values;
    names.reserve(attributes.size());
    for (const auto& [name, attribute] : attributes) {
      types.push_back(attribute.first);
      names.push_back({name.data(), name.size()});
      name_pointers.push_back(&names.back());
      values.push_back(attribute.second);
    }

    XLA_FFI_CallFrame frame{};
    frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
    frame.api = &api();
    frame.ctx = &pool;
    frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
    frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, int64_t(n), arg_types.data(), pointers.data()};
    frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, int64_t(call.results.size()), result_types.data(),
                  pointers.data() + n};
    frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE, nullptr, int64_t(types.size()), types.data(), name_pointers.data(),
                   values.data()};

    std::thread intruder;
    if (fault == Fault::kRace) intruder = std::thread([first] { *static_cast<int32_t*>(first) = 0; });
    const std::unique_ptr<XLA_FFI_Error> error(handler(&frame));
    if (intruder.joinable()) intruder.join();
    if (error) {
      std::fprintf(stderr, "%s: %s\n", call.target.c_str(), error->message.c_str());
      std::exit(1);
    }
    for (size_t i = n; i < buffers.size(); ++i) {
      const char* const data = static_cast<const char*>(buffers[i].data);
      found.emplace_back(data, data + shapes[i].count() * shapes[i].width());
    }
  });
  caller.join();
  return found;
}

}  // namespace xla_like
