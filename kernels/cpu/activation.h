// What stands between the two projections of an MLP (kernels/rows.py has the equations).
#pragma once

#include <c10/util/Exception.h>

#include <string_view>
#include <type_traits>

#include "simd.h"

namespace ostinato {

enum class Activation { kSwiGLU, kGeGLU, kReluSquare };

// Whether a row's first half is a gate for its second one.
constexpr bool is_gated(Activation activation) { return activation != Activation::kReluSquare; }

inline Activation activation_named(std::string_view name) {
  if (name == "swiglu") return Activation::kSwiGLU;
  if (name == "geglu") return Activation::kGeGLU;
  TORCH_CHECK_VALUE(name == "relu_square", "there is no activation '", name, "'");
  return Activation::kReluSquare;
}

// Calls f with the activation as a constant.
template <typename F>
void with_activation(Activation activation, F f) {
  switch (activation) {
    case Activation::kSwiGLU: return f(std::integral_constant<Activation, Activation::kSwiGLU>());
    case Activation::kGeGLU: return f(std::integral_constant<Activation, Activation::kGeGLU>());
    case Activation::kReluSquare: return f(std::integral_constant<Activation, Activation::kReluSquare>());
  }
}

// gated: what the gate multiplies, if there is one.
template <Activation kActivation>
INLINE Vec activate(Vec x, Vec gated) {
  if constexpr (kActivation == Activation::kSwiGLU) return silu(x) * gated;
  if constexpr (kActivation == Activation::kGeGLU) return gelu(x) * gated;
  const Vec positive = at::vec::maximum(x, Vec(0.f));
  return positive * positive;
}

}  // namespace ostinato
