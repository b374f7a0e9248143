// Vectorised exponentials: at most 2 units in the last place from the exact values; NaN and infinity as they should.
//
//     exp x = 2ⁿ (1 + p),  n = round(x / ln 2),  r = x − n ln 2,  p = r + r²/2! + r³/3! + …,  |r| ≤ ln 2 / 2
#pragma once

#include <cstdint>

#include "native/vector.h"

namespace jaxnet::math {

constexpr double kDensity = 0.39894228040143267793994605993438;  // 1/√(2π)

template <typename T>
struct Format;

template <>
struct Format<float> {
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr int kTerms = 7;                                             // |r|⁸ / 8! < 2⁻²⁷; 2⁻²⁵ with the largest low
  static constexpr float kLn2[] = {0.693359375f, -2.12194440054690583e-4f};  // n times the first is exact
  static constexpr float kRound = 0x1.8p23f;  // what is added to it is rounded to a whole number
  static constexpr float kSmallest = 87.3f;   // exp −x is a normal number up to here
  static constexpr uint32_t kUpper = 0xfffff000;  // half of the bits
  static constexpr float kGrain = 0x1p9f;         // c₁ in multiples of 1/kGrain: times 2t − 1 it is exact
  // Φ(−a) exp(a²/2) (1 + a/2) in powers of u = (2 − a)/(2 + a), to 4e-9 of it for 0 ≤ a ≤ 14.
  static constexpr double kNormal[] = {
      0.3362040023,     0.1657022368,     0.01439869887,   -0.01835968554,  -0.000235045136, 0.003367205543,
      -0.0009749969561, -0.0004118797223, 0.0004167731218, -6.590934143e-5, -7.356125991e-5, 3.21623986e-5};
};

template <>
struct Format<double> {
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr int kTerms = 13;  // |r|¹⁴ / 14! < 2⁻⁵⁷
  static constexpr double kLn2[] = {6.93147180369123816490e-01, 1.90821492927058770002e-10};
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kSmallest = 708.3;
  static constexpr uint64_t kUpper = 0xfffffffff8000000;
  static constexpr double kGrain = 0x1p20;
  // … to 8e-18 for 0 ≤ a ≤ 39.
  static constexpr double kNormal[] = {
      0.33620400244634121, 0.165702221194390514, 0.0143986801726817792, -0.0183591804844602974,
      -0.000234798417219976756, 0.00336245353903722357, -0.00097556207971519079, -0.000392559077393398555,
      0.000413599460177160617, -0.000103495874878543663, -0.0000578461971758206198, 0.0000642760007136421146,
      -0.0000230295432490163241, -4.84085990546797084e-6, 0.0000108625684279425256, -6.2859216778163527e-6,
      9.82034263424578133e-7, 1.42950428106351375e-6, -1.41437687302242005e-6, 6.70946190774603171e-7,
      -1.80749439247161464e-7, -1.38480121562321917e-7, 3.56729948140747053e-7, -2.27900871452281368e-7,
      -6.68459137728789258e-8, 1.29508075873760276e-7, -2.30658133241600943e-8, -2.21939158099711762e-8,
      7.96409497276291984e-9};
};

template <typename T>
using Bits = typename Format<T>::Bits;

// 2ⁿ and p of exp(x + low) = 2ⁿ + 2ⁿ p, for −kSmallest ≤ x ≤ kSmallest and |low| ≤ 0.05.
template <typename T>
inline void exponential(Vector<T> x, Vector<T>& power, Vector<T>& p, Vector<T> low = Vector<T>{}) {
  using F = Format<T>;
  const Vector<T> rounded = x * T(1.44269504088896340736) + F::kRound;
  const Vector<T> n = rounded - F::kRound;
  const Vector<T> r = (x - n * F::kLn2[0]) + (low - n * F::kLn2[1]);
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

// exp −size for size ≥ 0.
template <typename T>
inline Vector<T> decayed(Vector<T> size) {
  Vector<T> power, p;
  exponential<T>(-size, power, p);
  return size > Format<T>::kSmallest ? Vector<T>{} : power * p + power;
}

// σ(x) = 1 / (1 + exp −x) and σ(−x), from exp −|x| ≤ 1.
template <typename T>
inline Vector<T> sigmoid(Vector<T> x, Vector<T>* other = nullptr) {
  const Vector<T> e = decayed<T>(magnitude<T>(x)), one = Vector<T>{} + 1;
  if (other) *other = (x < 0 ? one : e) / (one + e);
  return (x < 0 ? e : one) / (one + e);
}

// The first bits of x, so few that a product of two such numbers is exact.
template <typename T>
inline Vector<T> upper(Vector<T> x) {
  return reinterpret_cast<Vector<T>>(reinterpret_cast<Bits<T>>(x) & Format<T>::kUpper);
}

// The normal distribution function Φ(x), and e = exp(−x²/2) of its density.
//
//     Φ(−a) = e t Q(u),  a = |x|,  t = 2/(2 + a),  u = 2t − 1,  Q = c₀ + c₁ u + u² (c₂ + c₃ u + …)
//
// What counts most is held in two parts, of which products and sums of the upper ones are exact: a²/2, t, the line
// c₀ + c₁ u, and the product t Q.
template <typename T>
inline Vector<T> normal(Vector<T> x, Vector<T>& e) {
  using F = Format<T>;
  const Vector<T> size = magnitude<T>(x), top = Vector<T>{} + 64;  // where e has long been 0
  const Vector<T> a = size > top ? top : size, b = upper<T>(a);
  const auto far = a * a > 2 * F::kSmallest;
  Vector<T> power, p;
  exponential<T>(b * b * T(-0.5), power, p, (b - a) * (a + b) * T(0.5));
  e = far ? Vector<T>{} : power * p + power;

  const Vector<T> s = a + 2, rounded = 2 / s, s_upper = upper<T>(s), t = upper<T>(rounded);
  const Vector<T> s_rest = (s - s_upper) + (a - (s - 2));
  const Vector<T> t_rest = ((2 - t * s_upper) - t * s_rest) * (rounded * T(0.5));

  constexpr int terms = sizeof F::kNormal / sizeof(double);
  constexpr T c0 = T(F::kNormal[0]), c0_rest = T(F::kNormal[0] - c0);
  constexpr T c1 = T(int64_t(F::kNormal[1] * F::kGrain)) / F::kGrain, c1_rest = T(F::kNormal[1] - c1);
  const Vector<T> u_rest = 2 * t_rest, u = (2 * t - 1) + u_rest;
  Vector<T> q = Vector<T>{} + T(F::kNormal[terms - 1]);
#pragma GCC unroll 32
  for (int i = terms - 2; i >= 2; --i) q = q * u + T(F::kNormal[i]);
  const Vector<T> line = c1 * (2 * t - 1), sum = c0 + line, sum_upper = upper<T>(sum);
  const Vector<T> rest = (line - (sum - c0)) + (c0_rest + c1 * u_rest + c1_rest * u + u * u * q);

  const Vector<T> product = t * sum_upper, product_rest = t * (sum - sum_upper + rest) + t_rest * (sum + rest);
  const Vector<T> whole = power * (product + (product_rest + (product + product_rest) * p));
  const Vector<T> tail = far ? Vector<T>{} : whole;
  return x < 0 ? tail : 1 - tail;
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
