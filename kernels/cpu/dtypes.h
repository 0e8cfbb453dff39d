// Operators that take several dtypes.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

namespace ostinato {

// Calls f with a value of the C++ type of `dtype`.
template <typename F>
void with_dtype(at::ScalarType dtype, F f) {
  switch (dtype) {
    case at::kFloat: return f(float{});
    case at::kBFloat16: return f(c10::BFloat16{});
    case at::kHalf: return f(c10::Half{});
    default: TORCH_CHECK(false, "expected float32, bfloat16 or float16, got ", dtype);
  }
}

}  // namespace ostinato
