// Calls each kernel with every option, at sizes around those of its tiles, panels, vectors and blocks, for a sanitizer
// to watch; with the argument `faults`, in wrong ways that it must report.

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <ctime>
#include <functional>

#include "native/registration.h"
#include "xla.h"

extern "C" const jaxnet::Target* jaxnet_targets(int64_t* count);

constexpr int kReported = 99;  // the exit status after a report
constexpr bool kThread = THREAD;

// Allocations begin as NaN, and are far from each other.
extern "C" const char* __asan_default_options() {
  return "exitcode=99:redzone=2048:quarantine_size_mb=16:max_malloc_fill_size=1073741824:malloc_fill_byte=255";
}
extern "C" const char* __ubsan_default_options() { return "exitcode=99:print_stacktrace=1"; }
extern "C" const char* __tsan_default_options() { return "exitcode=99:halt_on_error=1"; }

#if defined(__GLIBCXX__)
// In place of the library's. A helper asks for the time between its last work and the lock by which it leaves. There
// the caller may now run first, which then sees that work by what parallel_for itself orders, and not by that lock.
std::chrono::steady_clock::time_point std::chrono::steady_clock::now() noexcept {
  std::this_thread::yield();
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return time_point(std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec));
}
#endif

namespace {

using namespace xla_like;
using Type = XLA_FFI_DataType;
using Dims = std::vector<int64_t>;

constexpr Type kTypes[] = {XLA_FFI_DataType_F32, XLA_FFI_DataType_F64};
constexpr bool kBoth[] = {false, true};

Argument of(Type type, Dims dims, const std::function<double(size_t)>& value) {
  Argument a{{type, std::move(dims)}, {}};
  const size_t count = a.shape.count();
  a.values.resize(count * a.shape.width());
  for (size_t i = 0; i < count; ++i) {
    const double v = value(i);
    const auto write = [&](auto x) { std::memcpy(a.values.data() + i * sizeof x, &x, sizeof x); };
    type == XLA_FFI_DataType_F64 ? write(v) : type == XLA_FFI_DataType_F32 ? write(float(v)) : write(int32_t(v));
  }
  return a;
}

// Between −size and size, all different.
Argument spread(Type type, Dims dims, double size = 1) {
  return of(type, std::move(dims), [size](size_t i) { return size * std::sin(1 + 0.7 * i); });
}

// ---------------------------------------------------------------------------------------------------------- linear

Dims matrix(const Dims& batch, int64_t rows, int64_t columns) {
  Dims dims = batch;
  dims.insert(dims.end(), {rows, columns});
  return dims;
}

Dims row_of(Dims batch, int64_t columns) {
  batch.push_back(columns);
  return batch;
}

struct Product {
  Dims batch;
  int64_t rows, depth, columns;
};

const std::string kIdentity = "identity";
const std::string kActivations[] = {"relu", "tanh", "sigmoid", "silu", "gelu", "gelu exact"};

Call product(const Product& p, Type type, bool transpose_b, const std::string& activation, const std::string& slope,
             bool bias, bool keep) {
  Call call{"jaxnet_product"};
  call.args = {spread(type, matrix(p.batch, p.rows, p.depth)),
               transpose_b ? spread(type, matrix(p.batch, p.columns, p.depth))
                           : spread(type, matrix(p.batch, p.depth, p.columns))};
  if (slope != kIdentity) call.args.push_back(spread(type, matrix(p.batch, p.rows, p.depth)));
  if (bias) call.args.push_back(spread(type, row_of(p.batch, p.columns)));
  call.results.assign(keep ? 2 : 1, {type, matrix(p.batch, p.rows, p.columns)});
  call.options = {{"transpose_b", transpose_b}};
  call.names = {{"activation", activation}, {"slope", slope}};
  return call;
}

// dW is rows × columns, the sum over `depth` examples.
Call linear_gradients(const Product& p, Type type, const std::string& slope) {
  Call call{"jaxnet_linear_gradients"};
  call.args = {spread(type, matrix(p.batch, p.depth, p.rows)), spread(type, matrix(p.batch, p.depth, p.columns))};
  if (slope != kIdentity) call.args.push_back(spread(type, matrix(p.batch, p.depth, p.columns)));
  call.results = {{type, matrix(p.batch, p.rows, p.columns)}, {type, row_of(p.batch, p.columns)}};
  call.names = {{"slope", slope}};
  return call;
}

// Around a tile's rows (6 or 14), vectors (2 to 16) and panels (4 to 32) of columns, panels' depths (176, 320), the
// rows packed at once (512), the columns from which A is packed, also for its lines' distance; empty; enough work for
// three threads, with A as it lies and packed; few rows of a great depth.
std::vector<Product> products() {
  std::vector<Product> list;
  for (const int64_t m : {0, 1, 2, 3, 5, 6, 7, 12, 13, 14, 15, 28, 29}) list.push_back({{}, m, 5, 7});
  for (const int64_t n : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65}) list.push_back({{}, 7, 3, n});
  for (const int64_t k : {0, 1, 2, 7, 15, 16, 17, 63, 64, 65, 175, 176, 177, 319, 320, 321, 641}) {
    list.push_back({{}, 3, k, 37});
  }
  for (const int64_t m : {511, 512, 513}) list.push_back({{}, m, 3, 5});
  for (const int64_t n : {511, 512, 513, 545}) list.push_back({{}, 5, 19, n});
  for (const int64_t n : {32, 33, 67}) list.push_back({{}, 15, 1024, n});
  for (const int64_t m : {8, 9, 15, 16, 17, 25, 31, 32, 33}) list.push_back({{}, m, 257, 5});
  for (const int64_t n : {1, 13, 14, 15, 29}) list.push_back({{}, 12, 256, n});
  for (const Dims& batch : {Dims{0}, Dims{3}, Dims{2, 2}}) list.push_back({batch, 5, 9, 17});
  if (kThread) list.clear();  // alone on its thread, a call races with nobody
  list.push_back({{}, 131, 127, 257});
  list.push_back({{}, 61, 113, 613});
  list.push_back({{}, 31, 259, 613});
  list.push_back({{}, 16, 259, 1201});
  return list;
}

// ------------------------------------------------------------------------------------------------------- recurrent

struct Cell {
  std::string name;
  int64_t gates;
  size_t states;  // that it carries from step to step
  size_t kept;    // results for the backward pass, beside the gates
  size_t read;    // of those by the kernel of the backward pass
  bool option;    // relu, reset_after
};

const Cell kCells[] = {
    {"rnn", 1, 1, 1, 0, false}, {"rnn", 1, 1, 1, 0, true}, {"lstm", 4, 2, 2, 1, false},
    {"gru", 3, 1, 2, 2, false}, {"gru", 3, 1, 2, 2, true},
};

struct Sequence {
  int64_t batch, steps, hidden, inputs = 2;
};

Argument weights(const Cell& cell, const Sequence& s, Type type) {
  return spread(type, {s.hidden, cell.gates * s.hidden}, 1.0 / std::max<int64_t>(s.hidden, 1));
}

void append(std::vector<Argument>& args, size_t count, Type type, const Dims& dims) {
  for (size_t i = 0; i < count; ++i) args.push_back(spread(type, dims));
}

// From none to all steps, those of the last row.
void append_lengths(std::vector<Argument>& args, const Sequence& s) {
  const auto length = [&s](size_t i) { return s.steps - (s.batch - 1 - int64_t(i)) % (s.steps + 1); };
  args.push_back(of(XLA_FFI_DataType_S32, {s.batch}, length));
}

Call forward(const Cell& cell, const Sequence& s, Type type, bool reverse, bool lengths, bool keep) {
  const Dims state{s.batch, s.hidden}, each{s.steps, s.batch, s.hidden}, y{s.batch, s.steps, s.hidden};
  const Dims gates{s.steps, s.batch, cell.gates * s.hidden};
  Call call{"jaxnet_" + cell.name};
  call.args = {spread(type, {s.batch, s.steps, s.inputs}), spread(type, {s.inputs, cell.gates * s.hidden}),
               spread(type, {cell.gates * s.hidden}), weights(cell, s, type)};
  if (cell.name == "gru") call.args.push_back(spread(type, {s.hidden}));
  append(call.args, cell.states, type, state);
  if (lengths) append_lengths(call.args, s);
  call.results = {{type, y}};
  call.results.insert(call.results.end(), cell.states, {type, state});
  if (keep) {
    call.results.push_back({type, gates});
    call.results.insert(call.results.end(), cell.kept, {type, each});
  }
  call.options = {{"reverse", reverse}};
  if (cell.name != "lstm") call.options[cell.name == "rnn" ? "relu" : "reset_after"] = cell.option;
  return call;
}

Call backward(const Cell& cell, const Sequence& s, Type type, bool reverse, bool lengths, bool in_place) {
  const Dims state{s.batch, s.hidden}, each{s.steps, s.batch, s.hidden}, dy{s.batch, s.steps, s.hidden};
  const Dims gates{s.steps, s.batch, cell.gates * s.hidden};
  Call call{"jaxnet_" + cell.name + "_backward"};
  call.args = {spread(type, gates), weights(cell, s, type)};
  append(call.args, cell.read, type, each);
  append(call.args, 1, type, dy);
  append(call.args, cell.states, type, state);
  if (lengths) append_lengths(call.args, s);
  call.results = {{type, gates}};
  call.results.insert(call.results.end(), cell.states, {type, state});
  if (cell.name == "gru" && cell.option) call.results.push_back({type, gates});
  if (in_place) call.aliases = {{0, 0}};
  call.options = {{"reverse", reverse}};
  if (cell.name == "rnn") call.options["relu"] = cell.option;
  return call;
}

// Around a tile's rows, which are also the steps of which the products are computed at once, a block's (24 or 56),
// vectors and panels of units; any number of inputs; too few rows for the weights to be packed (8 in all) and for full
// tiles (3); empty; enough work for three threads, which share rows, or the units of one.
std::vector<Sequence> sequences(const Cell& cell) {
  std::vector<Sequence> list;
  for (const int64_t b : {0, 1, 2, 3, 4, 6, 7, 14, 15, 29, 57}) list.push_back({b, 3, 5});
  for (const int64_t h : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 67}) list.push_back({3, 4, h});
  for (const int64_t h : {16, 61, 64, 131}) list.push_back({1, 2, h});
  for (const int64_t t : {0, 1, 2, 6, 7, 14, 15, 29}) list.push_back({2, t, 3});
  for (const int64_t i : {0, 1, 37}) list.push_back({3, 4, 5, i});
  if (kThread) list.clear();
  list.push_back({59, 16, 67});
  list.push_back({1, std::max<int64_t>(16, 42 / cell.gates), 331});
  return list;
}

// ----------------------------------------------------------------------------------------------------------- AdamW

Call adamw(const Dims& batch, Type scalars, bool apply, bool nesterov, bool decay, bool in_place) {
  constexpr double values[] = {0.9, 0.1, 0.999, 0.001, 0.1, 0.19, 0.001, 1e-8, 0.0, 0.01, 0.5};
  Call call{"jaxnet_adamw"};
  call.args = {of(scalars, row_of(batch, 11), [&](size_t i) { return values[i % 11]; })};
  std::vector<Shape> leaves;
  for (const int64_t size : {1, 0, 7, 16383, 16384, 16385, 32771}) {  // around a block's elements
    leaves.push_back({kTypes[size % 2], row_of(batch, size)});
  }
  const size_t n = leaves.size();
  for (int part = 0; part < (apply || decay ? 4 : 3); ++part) {  // g, m, v, p
    for (const Shape& leaf : leaves) {
      call.args.push_back(spread(leaf.type, leaf.dims));
      if (part == 2) call.args.back() = of(leaf.type, leaf.dims, [](size_t i) { return 0.5 + 0.4 * std::sin(i); });
    }
  }
  for (int part = 0; part < 3; ++part) call.results.insert(call.results.end(), leaves.begin(), leaves.end());
  call.options = {{"apply", apply}, {"nesterov", nesterov}};
  for (size_t i = 0; i < n; ++i) call.decay.push_back(decay && i % 3 != 1);
  for (size_t i = 0; in_place && i < 2 * n; ++i) call.aliases[1 + n + i] = n + i;
  for (size_t i = 0; in_place && apply && i < n; ++i) call.aliases[1 + 3 * n + i] = i;
  return call;
}

// ------------------------------------------------------------------------------------------------------- the checks

XLA_FFI_Handler* handler_of(const std::string& target) {
  int64_t count;
  const jaxnet::Target* const targets = jaxnet_targets(&count);
  for (int64_t i = 0; i < count; ++i) {
    if (target == targets[i].name) return targets[i].handler;
  }
  std::fprintf(stderr, "no kernel is called %s\n", target.c_str());
  std::exit(1);
}

void fail(const Call& call, const std::string& what) {
  std::string text = call.target + " " + what + "; its arguments:";
  for (const Argument& a : call.args) {
    text += a.shape.type == XLA_FFI_DataType_F64 ? " f64[" : a.shape.type == XLA_FFI_DataType_F32 ? " f32[" : " s32[";
    for (const int64_t d : a.shape.dims) text += std::to_string(d) + " ";
    text += "]";
  }
  for (const auto& [name, value] : call.options) text += " " + name + "=" + std::to_string(value);
  for (const auto& [name, value] : call.names) text += " " + name + "=" + value;
  std::fprintf(stderr, "%s\n", text.c_str());
  std::exit(1);
}

bool finite(const Shape& shape, const Bytes& bytes) {
  for (size_t i = 0, count = shape.count(); i < count; ++i) {
    const auto at = [&](auto x) {
      std::memcpy(&x, bytes.data() + i * sizeof x, sizeof x);
      return std::isfinite(x);
    };
    if (!(shape.type == XLA_FFI_DataType_F64 ? at(0.0) : at(0.0f))) return false;
  }
  return true;
}

std::map<std::string, int64_t> calls, helped;  // of each target

// One thread and three give the same bits, all of them finite. For races there are two calls at the same time, as XLA
// makes them.
void check(const Call& call) {
  XLA_FFI_Handler* const handler = handler_of(call.target);
  ++calls[call.target];
  const int64_t before = tasks;
  const std::vector<Bytes> expected = run(handler, call, 1);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!finite(call.results[i], expected[i])) fail(call, "has a result that isn't finite");
  }
  std::vector<Bytes> beside = expected;
  std::thread other;
  if (kThread) other = std::thread([&] { beside = run(handler, call, 3); });
  const std::vector<Bytes> found = run(handler, call, 3);
  if (kThread) other.join();
  helped[call.target] += tasks - before;
  if (found != expected || beside != expected) fail(call, "has other bits with three threads");
}

// Whether a process with this fault ends by a report.
bool reported(const Call& call, Fault fault, size_t buffer) {
  const pid_t child = fork();
  if (child == 0) {
    if (!std::freopen("/dev/null", "w", stderr)) _exit(1);
    run(handler_of(call.target), call, 1, fault, buffer);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == kReported;
}

// The sanitizer sees what is wrong with each buffer of each kernel.
void check_faults() {
  const Type type = kTypes[0];
  const Sequence sequence{4, 2, 5};  // the first and the last row have all steps
  std::vector<Call> list = {product({{}, 5, 3, 7}, type, false, "gelu", "relu", true, true),
                            linear_gradients({{}, 5, 3, 7}, type, "relu"), adamw({}, type, true, false, true, false)};
  for (const Cell& cell : kCells) {
    if (cell.name == "gru" && !cell.option) continue;  // its bias isn't read
    list.push_back(forward(cell, sequence, type, false, true, true));
    list.push_back(backward(cell, sequence, type, false, true, false));
  }
  int count = 0;
  for (const Call& call : list) {
    for (size_t i = 0; i < call.args.size() + call.results.size(); ++i) {
      const Shape& shape = i < call.args.size() ? call.args[i].shape : call.results[i - call.args.size()];
      if (shape.count() == 0) continue;
      if (!reported(call, kThread ? Fault::kRace : Fault::kShort, i)) {
        fail(call, "may use buffer " + std::to_string(i) + " wrongly unseen");
      }
      ++count;
    }
  }
  const Call& step = list[2];  // AdamW's: its loops read number by number, not by copying vectors
  if (!kThread && !reported(step, Fault::kMisaligned, 1)) fail(step, "may be given misaligned buffers unseen");
  std::printf("%d faults found\n", count + !kThread);
}

void check_all() {
  for (const Type type : kTypes) {
    if (kThread && type != kTypes[0]) continue;  // the same work, shared in the same way
    for (const Product& p : products()) {
      for (const bool transpose_b : kBoth) check(product(p, type, transpose_b, kIdentity, kIdentity, false, false));
      check(linear_gradients(p, type, kIdentity));
      for (int i = 0; i < 6; ++i) {  // each activation, once with one that follows it
        check(product(p, type, i & 1, kActivations[i], i & 2 ? kIdentity : kActivations[(i + 1) % 6], i & 4, i & 1));
        check(linear_gradients(p, type, kActivations[i]));
      }
    }
    for (const Cell& cell : kCells) {
      for (const Sequence& s : sequences(cell)) {
        for (const bool reverse : kBoth) {
          for (const bool lengths : kBoth) {
            for (const bool option : kBoth) {
              check(forward(cell, s, type, reverse, lengths, option));
              check(backward(cell, s, type, reverse, lengths, option));
            }
          }
        }
      }
    }
    for (const Dims& batch : {Dims{}, Dims{0}, Dims{2}}) {
      for (int options = 0; options < 16; ++options) {
        check(adamw(batch, type, options & 1, options & 2, options & 4, options & 8));
      }
    }
  }
  int64_t count;
  const jaxnet::Target* const targets = jaxnet_targets(&count);
  for (int64_t i = 0; i < count; ++i) {
    const char* const name = targets[i].name;
    std::printf("%s: %ld calls, %ld tasks\n", name, long(calls[name]), long(helped[name]));
    if (calls[name] == 0 || helped[name] == 0) {
      std::fprintf(stderr, "%s is called nowhere here, or by one thread alone\n", name);
      std::exit(1);
    }
  }
}

}  // namespace

int main(int argc, char** argv) { argc == 2 && argv[1] == std::string("faults") ? check_faults() : check_all(); }
