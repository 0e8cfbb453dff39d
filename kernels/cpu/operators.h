// Operators that other operators call.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "activation.h"

namespace ostinato {

// x [N,K] times a weight that is packed as kernels/linear.py says, bias [M], residual [N,M]. Returns [N,M] fp32, each
// row computed as if it were alone.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  const std::optional<at::Tensor>& residual, int64_t outputs);

// The activation of such a product without a residual, in `dtype`.
at::Tensor activated_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                            int64_t outputs, Activation activation, at::ScalarType dtype);

// Of every row of x fp32, in `dtype`: half as many elements where the activation is gated.
at::Tensor activated(const at::Tensor& x, Activation activation, at::ScalarType dtype);

}  // namespace ostinato
