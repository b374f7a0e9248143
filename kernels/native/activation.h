// The activations that are computed with a product: f, and its slope f′. The formulas are in jaxnet/activations.py.
#pragma once

#include <string_view>

#include "native/math.h"
#include "native/vector.h"

namespace jaxnet {

enum class Activation { kIdentity, kRelu, kTanh, kSigmoid, kSilu, kGelu, kGeluExact };

// By the names of jaxnet/kernels/linear/cpu.py.
inline Activation activation_of(std::string_view name) {
  constexpr std::string_view names[] = {"identity", "relu", "tanh", "sigmoid", "silu", "gelu", "gelu exact"};
  int i = 0;
  while (names[i] != name) ++i;
  return static_cast<Activation>(i);
}

template <typename T>
struct Identity {
  static Vector<T> value(Vector<T> z) { return z; }
  static Vector<T> slope(Vector<T>) { return Vector<T>{} + 1; }
};

template <typename T>
struct Relu {
  static Vector<T> value(Vector<T> z) { return z < 0 ? Vector<T>{} : z; }  // NaN stays
  static Vector<T> slope(Vector<T> y) { return y > 0 ? Vector<T>{} + 1 : Vector<T>{}; }
};

template <typename T>
struct Tanh {
  static Vector<T> value(Vector<T> z) { return math::tanh<T>(z); }
  static Vector<T> slope(Vector<T> y) { return (1 - y) * (1 + y); }
};

template <typename T>
struct Sigmoid {
  static Vector<T> value(Vector<T> z) { return math::sigmoid<T>(z); }
  static Vector<T> slope(Vector<T> z) {
    Vector<T> other;
    return math::sigmoid<T>(z, &other) * other;
  }
};

template <typename T>
struct Silu {
  static Vector<T> value(Vector<T> z) { return z * math::sigmoid<T>(z); }
  static Vector<T> slope(Vector<T> z) {
    Vector<T> other;
    const Vector<T> s = math::sigmoid<T>(z, &other);
    return s * (1 + z * other);
  }
};

template <typename T>
struct Gelu {
  static constexpr T a = T(1.5957691216057307117597842397376), b = T(0.044715);  // 2 √(2/π)
  static Vector<T> value(Vector<T> z) { return z * math::sigmoid<T>(a * (z + b * (z * z * z))); }
  static Vector<T> slope(Vector<T> x) {
    const Vector<T> top = Vector<T>{} + 10;  // beyond, f′ is 0 or 1
    const Vector<T> z = x > top ? top : x < -top ? -top : x;
    Vector<T> other;
    const Vector<T> s = math::sigmoid<T>(a * (z + b * (z * z * z)), &other);
    return s + z * s * other * a * (1 + 3 * b * (z * z));
  }
};

template <typename T>
struct GeluExact {
  static Vector<T> value(Vector<T> z) {
    Vector<T> e;
    return z * math::normal<T>(z, e);
  }
  static Vector<T> slope(Vector<T> z) {
    Vector<T> e;
    const Vector<T> cdf = math::normal<T>(z, e);
    return cdf + z * (e * T(math::kDensity));
  }
};

// Calls `use` with the one that f is.
template <typename T, typename Use>
void with(Activation f, const Use& use) {
  switch (f) {
    case Activation::kIdentity: return use(Identity<T>{});
    case Activation::kRelu: return use(Relu<T>{});
    case Activation::kTanh: return use(Tanh<T>{});
    case Activation::kSigmoid: return use(Sigmoid<T>{});
    case Activation::kSilu: return use(Silu<T>{});
    case Activation::kGelu: return use(Gelu<T>{});
    case Activation::kGeluExact: return use(GeluExact<T>{});
  }
}

}  // namespace jaxnet
