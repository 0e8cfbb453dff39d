// Operators that other operators call.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace ostinato {

// x [N,K] times a weight that is packed as kernels/linear.py says, bias [M], residual [N,M]. Returns [N,M] fp32, each
// row computed as if it were alone.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  const std::optional<at::Tensor>& residual, int64_t outputs);

// silu of the first half of every row of x [N,2D] fp32 times the second: [N,D] in `dtype`.
at::Tensor swiglu(const at::Tensor& x, at::ScalarType dtype);

}  // namespace ostinato
