// Projections: y = x W^T + bias + residual in fp32, each row of y computed as if it were alone.
//
// A weight packed for AMX (amx.h) or reordered by oneDNN: kernels/linear.py chooses, and says why.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "amx.h"
#include "dtypes.h"
#include "finish.h"
#include "operators.h"
#include "parallel.h"

namespace ostinato {
namespace {

using Optional = const std::optional<at::Tensor>&;

// oneDNN compiles and keeps code for every number of rows that it meets, so these are few: 16 even numbers up to 32,
// then 8 in every doubling, at most an eighth more than there are. Never one: that is another algorithm.
int64_t padded_rows(int64_t rows) {
  int64_t unit = 2;
  while (unit * 16 < rows) unit *= 2;
  return std::max<int64_t>(2, blocks_of(rows, unit) * unit);
}

at::Tensor onednn_rows(const at::Tensor& x, at::ScalarType dtype) {
  const int64_t rows = x.size(0), padded = padded_rows(rows);
  if (padded == rows) return x.to(dtype).contiguous();
  at::Tensor input = at::zeros({padded, x.size(1)}, x.options().dtype(dtype));
  input.narrow(0, 0, rows).copy_(x);
  return input;
}

at::Tensor call_onednn(const at::Tensor& x, const at::Tensor& weight) {
  static const auto operation =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, Optional, std::string_view,
                            c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>)>();
  return operation.call(x, weight, std::nullopt, "none", c10::List<std::optional<at::Scalar>>(), "");
}

at::Tensor call_plain(const at::Tensor& x, const at::Tensor& weight) { return at::linear(x, weight); }

// The rows of y; those of x beyond them are padding.
void library_product(at::Tensor (*multiply)(const at::Tensor&, const at::Tensor&), const at::Tensor& x,
                     const at::Tensor& weight, const float* bias, const float* residual, at::Tensor& y) {
  const int64_t rows = y.size(0), outputs = y.size(1);
  const at::Tensor product = multiply(x, weight);
  TORCH_CHECK_VALUE(product.size(1) == outputs, "linear: the weight has ", product.size(1), " outputs, not ", outputs);
  with_dtype(product.scalar_type(), [&](auto type) {
    const auto* from = product.const_data_ptr<decltype(type)>();
    float* to = y.mutable_data_ptr<float>();
    at::parallel_for(0, rows, rows_per_task(outputs), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * outputs; i < end * outputs; i += outputs)
        finish_row(from + i, bias, residual ? residual + i : nullptr, to + i, outputs);
    });
  });
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, Optional bias, Optional residual, int64_t outputs) {
  TORCH_CHECK_VALUE(x.dim() == 2, "linear: x must be [N, in], got ", x.sizes());
  at::Tensor y = at::empty({x.size(0), outputs}, x.options().dtype(at::kFloat));
  TORCH_CHECK_VALUE(!bias || bias->numel() == outputs, "linear: ", outputs, " outputs need as many biases");
  TORCH_CHECK_VALUE(!residual || residual->sizes() == y.sizes(), "linear: the residual must be ", y.sizes());
  if (!x.size(0)) return y;
  const at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous();
  const at::Tensor biases = bias ? bias->contiguous() : at::Tensor();
  const at::Tensor terms = residual ? residual->contiguous() : at::Tensor();
  const float* bias_ = bias ? biases.const_data_ptr<float>() : nullptr;
  const float* residual_ = residual ? terms.const_data_ptr<float>() : nullptr;
  if (weight.is_mkldnn())
    library_product(call_onednn, onednn_rows(rows, weight.scalar_type()), weight, bias_, residual_, y);
  else if (is_coded(weight))
    amx_product(rows, weight, bias_, residual_, y);
  else
    library_product(call_plain, rows.to(weight.scalar_type()).contiguous(), weight, bias_, residual_, y);
  return y;
}

at::Tensor activated_linear(const at::Tensor& x, const at::Tensor& weight, Optional bias, int64_t outputs,
                            Activation activation, at::ScalarType dtype) {
  if (!is_coded(weight) || !can_activate(outputs, activation))
    return activated(linear(x, weight, bias, std::nullopt, outputs), activation, dtype);
  TORCH_CHECK_VALUE(x.dim() == 2, "linear: x must be [N, in], got ", x.sizes());
  TORCH_CHECK_VALUE(!bias || bias->numel() == outputs, "linear: ", outputs, " outputs need as many biases");
  const int64_t width = is_gated(activation) ? outputs / 2 : outputs;
  at::Tensor y = at::empty({x.size(0), width}, x.options().dtype(dtype));
  if (!x.size(0)) return y;
  const at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous();
  const at::Tensor biases = bias ? bias->contiguous() : at::Tensor();
  const float* bias_ = bias ? biases.const_data_ptr<float>() : nullptr;
  with_dtype(dtype, [&](auto type) {
    auto* to = y.mutable_data_ptr<decltype(type)>();
    with_activation(activation, [&](auto chosen) {
      amx_activated_product<decltype(chosen)::value>(rows, weight, bias_, outputs, to);
    });
  });
  return y;
}

namespace {

at::Tensor activated_linear_op(const at::Tensor& x, const at::Tensor& weight, Optional bias, int64_t outputs,
                               std::string_view activation, at::ScalarType dtype) {
  return activated_linear(x, weight, bias, outputs, activation_named(activation), dtype);
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) {
  m.impl("linear", linear);
  m.impl("activated_linear", activated_linear_op);
}
// A weight that oneDNN has reordered has a dispatch key of its own.
TORCH_LIBRARY_IMPL(ostinato, MkldnnCPU, m) {
  m.impl("linear", linear);
  m.impl("activated_linear", activated_linear_op);
}

}  // namespace
}  // namespace ostinato
