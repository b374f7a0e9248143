// Vectors of the instruction set that is compiled for, as GCC and Clang have them in C++.
#pragma once

#include <cstdint>
#include <cstring>

namespace jaxnet {

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;
#endif

template <typename T>
constexpr int64_t kLanes = kVectorBytes / sizeof(T);

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <typename T>
inline void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof v);
}

// The first `count` elements, or a whole vector if there are more.
template <typename T>
inline Vector<T> load(const T* from, int64_t count) {
  if (count >= kLanes<T>) return load(from);
  Vector<T> v{};
  std::memcpy(&v, from, count * sizeof(T));
  return v;
}

template <typename T>
inline void store(T* to, Vector<T> v, int64_t count) {
  if (count >= kLanes<T>) return store(to, v);
  std::memcpy(to, &v, count * sizeof(T));
}

}  // namespace jaxnet
