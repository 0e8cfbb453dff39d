// Operators on rows: elementwise functions, gates and norms. Each row is computed by itself.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "dtypes.h"
#include "operators.h"
#include "parallel.h"
#include "simd.h"

namespace ostinato {
namespace {

using Optional = const std::optional<at::Tensor>&;

// Rows over the last dimension; none where rows have no elements.
int64_t num_rows(const at::Tensor& x) { return x.numel() ? x.numel() / x.size(-1) : 0; }

template <typename F>
at::Tensor map_elements(const at::Tensor& x, F f) {
  at::Tensor y = at::empty_like(x);
  const float* in = x.const_data_ptr<float>();
  float* out = y.mutable_data_ptr<float>();
  // Tasks are cut at fixed multiples of the vector width; only the very last vector can be partial.
  const int64_t vectors = (x.numel() + kLanes - 1) / kLanes;
  at::parallel_for(0, vectors, kElementsPerTask / kLanes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kLanes; i < std::min(end * kLanes, x.numel()); i += kLanes) {
      const int64_t count = lanes_left(i, x.numel());
      store(out + i, f(load(in + i, count)), count);
    }
  });
  return y;
}

at::Tensor sigmoid_op(const at::Tensor& x) { return map_elements(x, [](Vec v) { return sigmoid(v); }); }
at::Tensor silu_op(const at::Tensor& x) { return map_elements(x, [](Vec v) { return silu(v); }); }
at::Tensor tanh_op(const at::Tensor& x) { return map_elements(x, [](Vec v) { return v.tanh(); }); }
at::Tensor exp_op(const at::Tensor& x) { return map_elements(x, [](Vec v) { return exp(v); }); }
// at::vec::maximum lets NaN through.
at::Tensor sqrt_op(const at::Tensor& x) {
  return map_elements(x, [](Vec v) { return at::vec::maximum(v, Vec(0.f)).sqrt(); });
}
at::Tensor softplus_op(const at::Tensor& x) { return map_elements(x, [](Vec v) { return softplus(v); }); }

at::Tensor log_sigmoid_op(const at::Tensor& x, double scale) {
  const Vec factor(static_cast<float>(-scale));
  return map_elements(x, [&](Vec v) { return softplus(v.neg()) * factor; });
}

// For every row of x [N,D]: f(row of x, its `outputs` of type T).
template <typename F>
at::Tensor map_rows(const at::Tensor& x, int64_t outputs, at::ScalarType dtype, F f) {
  const int64_t width = x.size(-1), rows = num_rows(x);
  auto sizes = x.sizes().vec();
  sizes.back() = outputs;
  at::Tensor y = at::empty(sizes, x.options().dtype(dtype));
  const float* in = x.const_data_ptr<float>();
  with_dtype(dtype, [&](auto type) {
    auto* out = y.mutable_data_ptr<decltype(type)>();
    at::parallel_for(0, rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) f(r, in + r * width, out + r * outputs);
    });
  });
  return y;
}

}  // namespace

at::Tensor activated(const at::Tensor& x, Activation activation, at::ScalarType dtype) {
  const int64_t width = is_gated(activation) ? x.size(-1) / 2 : x.size(-1);
  at::Tensor result;
  with_activation(activation, [&](auto chosen) {
    constexpr Activation kActivation = decltype(chosen)::value;
    result = map_rows(x, width, dtype, [&](int64_t, const float* row, auto* y) {
      const float* gated = is_gated(kActivation) ? row + width : row;
      map_row(width, [&](int64_t i, int64_t n) {
        store(y + i, activate<kActivation>(load(row + i, n), load(gated + i, n)), n);
      });
    });
  });
  return result;
}

namespace {

template <Activation kActivation>
at::Tensor activation_op(const at::Tensor& x, at::ScalarType dtype) {
  return activated(x, kActivation, dtype);
}

// y = x / sqrt(mean(x^2) + eps) * weight, with weight [D], or [G,D] where row r belongs to group r % G. The gate, a
// tensor like x, multiplies by silu(gate): x before the norm when `gate_first`, else y.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::ScalarType dtype, Optional gate_,
                    bool gate_first) {
  const int64_t width = x.size(-1), groups = std::max<int64_t>(1, num_rows(weight));
  const at::Tensor gates = gate_ ? gate_->reshape(x.sizes()) : at::Tensor();
  const float *w = weight.const_data_ptr<float>(), *gate = gate_ ? gates.const_data_ptr<float>() : nullptr;
  return map_rows(x, width, dtype, [&](int64_t r, const float* row, auto* y) {
    const auto gate_at = [&](int64_t i, int64_t n) { return silu(load(gate + r * width + i, n)); };
    const auto input = [&](int64_t i, int64_t n) {
      return gate && gate_first ? load(row + i, n) * gate_at(i, n) : load(row + i, n);
    };
    const float squares = sum_row(width, [&](int64_t i, int64_t n) {
      const Vec v = input(i, n);
      return v * v;
    });
    const Vec scale(1.f / std::sqrt(squares / static_cast<float>(width) + static_cast<float>(eps)));
    map_row(width, [&](int64_t i, int64_t n) {
      const Vec normal = input(i, n) * scale * load(w + r % groups * width + i, n);
      store(y + i, gate && !gate_first ? normal * gate_at(i, n) : normal, n);
    });
  });
}

// LayerNorm with weight and bias [D], or [G,D] where row r belongs to group r % G.
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps,
                      at::ScalarType dtype) {
  const int64_t width = x.size(-1), groups = std::max<int64_t>(1, num_rows(weight));
  const float *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
  return map_rows(x, width, dtype, [&](int64_t r, const float* row, auto* y) {
    const int64_t offset = r % groups * width;
    const RowMoments m = row_moments(row, width, static_cast<float>(eps));
    map_row(width, [&](int64_t i, int64_t n) {
      const Vec normal = (load(row + i, n) - Vec(m.mean)) * Vec(m.scale);
      store(y + i, normal * load(w + offset + i, n) + load(b + offset + i, n), n);
    });
  });
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) {
  m.impl("sigmoid", sigmoid_op);
  m.impl("silu", silu_op);
  m.impl("tanh", tanh_op);
  m.impl("exp", exp_op);
  m.impl("softplus", softplus_op);
  m.impl("sqrt", sqrt_op);
  m.impl("log_sigmoid", log_sigmoid_op);
  m.impl("swiglu", activation_op<Activation::kSwiGLU>);
  m.impl("geglu", activation_op<Activation::kGeGLU>);
  m.impl("relu_square", activation_op<Activation::kReluSquare>);
  m.impl("rms_norm", rms_norm);
  m.impl("layer_norm", layer_norm);
}

}  // namespace
}  // namespace ostinato
