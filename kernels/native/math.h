// Vectorised exponentials: at most 2 units in the last place from the exact values; NaN and infinity as they should.
//
//     exp x = 2ⁿ (1 + p),  n = round(x / ln 2),  r = x − n ln 2,  p = r + r²/2! + r³/3! + …,  |r| ≤ ln 2 / 2
#pragma once

#include <cstdint>

#include "native/gemm.h"

namespace jaxnet::math {

using gemm::kLanes;
using gemm::kVectorBytes;
using gemm::Vector;

template <typename T>
struct Format;

template <>
struct Format<float> {
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr int kTerms = 7;                                             // (ln 2 / 2)⁸ / 8! < 2⁻²⁷
  static constexpr float kLn2[] = {0.693359375f, -2.12194440054690583e-4f};  // n times the first is exact
  static constexpr float kRound = 0x1.8p23f;  // what is added to it is rounded to a whole number
  static constexpr float kSmallest = 87.3f;   // exp −x is a normal number up to here
};

template <>
struct Format<double> {
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr int kTerms = 13;  // (ln 2 / 2)¹⁴ / 14! < 2⁻⁵⁷
  static constexpr double kLn2[] = {6.93147180369123816490e-01, 1.90821492927058770002e-10};
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kSmallest = 708.3;
};

template <typename T>
using Bits = typename Format<T>::Bits;

// 2ⁿ and p of exp x = 2ⁿ + 2ⁿ p, for −kSmallest ≤ x ≤ kSmallest.
template <typename T>
inline void exponential(Vector<T> x, Vector<T>& power, Vector<T>& p) {
  using F = Format<T>;
  const Vector<T> rounded = x * T(1.44269504088896340736) + F::kRound;
  const Vector<T> n = rounded - F::kRound;
  const Vector<T> r = (x - n * F::kLn2[0]) - n * F::kLn2[1];
  Vector<T> q = Vector<T>{};
  T factorial[F::kTerms + 1] = {1};
  for (int i = 1; i <= F::kTerms; ++i) factorial[i] = factorial[i - 1] * i;
#pragma GCC unroll 16
  for (int i = F::kTerms; i >= 2; --i) q = q * r + 1 / factorial[i];
  p = r + r * r * q;
  power = reinterpret_cast<Vector<T>>((reinterpret_cast<Bits<T>>(rounded) + F::kBias) << F::kMantissa);
}

template <typename T>
inline Vector<T> magnitude(Vector<T> x) {
  return x < 0 ? -x : x;
}

// 1 / (1 + exp −x), from exp −|x| ≤ 1.
template <typename T>
inline Vector<T> sigmoid(Vector<T> x) {
  const Vector<T> size = magnitude<T>(x), one = Vector<T>{} + 1;
  Vector<T> power, p;
  exponential<T>(-size, power, p);
  const Vector<T> e = size > Format<T>::kSmallest ? Vector<T>{} : power * p + power;
  return (x < 0 ? e : one) / (one + e);
}

// d / (d + 2) with the sign of x, d = exp 2|x| − 1; for small d, where each rounding counts, q = d/2 − d/2 · q.
template <typename T>
inline Vector<T> tanh(Vector<T> x) {
  const Vector<T> size = magnitude<T>(x), top = Vector<T>{} + 20;  // from where it is 1
  Vector<T> power, p;
  exponential<T>(2 * (size > top ? top : size), power, p);
  const Vector<T> d = power * p + (power - 1), half = d * T(0.5), quotient = d / (d + 2);
  const Vector<T> y = d < 1 ? half - half * quotient : quotient;
  const Bits<T> sign = reinterpret_cast<Bits<T>>(-Vector<T>{});  // of −0
  return reinterpret_cast<Vector<T>>(reinterpret_cast<Bits<T>>(y) |
                                     (reinterpret_cast<Bits<T>>(x) & sign));
}

}  // namespace jaxnet::math
