// Operators on rows: elementwise functions, dot products and norms. Each row is computed by itself.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <string_view>

#include "simd.h"

namespace ostinato {

constexpr int64_t kElementsPerTask = 16384;

inline int64_t rows_per_task(int64_t width) { return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, width)); }

// Rows over the last dimension; none where rows have no elements.
inline int64_t num_rows(const at::Tensor& x) { return x.numel() ? x.numel() / x.size(-1) : 0; }

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

inline at::Tensor sigmoid_op(const at::Tensor& x) { return map_elements(x, [](Vec v) { return sigmoid(v); }); }
inline at::Tensor silu_op(const at::Tensor& x) { return map_elements(x, [](Vec v) { return silu(v); }); }
inline at::Tensor tanh_op(const at::Tensor& x) { return map_elements(x, [](Vec v) { return v.tanh(); }); }
inline at::Tensor exp_op(const at::Tensor& x) { return map_elements(x, [](Vec v) { return v.exp(); }); }
inline at::Tensor softplus_op(const at::Tensor& x) { return map_elements(x, [](Vec v) { return softplus(v); }); }

inline at::Tensor row_dot_op(const at::Tensor& x, const at::Tensor& y) {
  const int64_t width = x.size(-1), rows = num_rows(x);
  at::Tensor out = at::empty({rows}, x.options());
  const float *px = x.const_data_ptr<float>(), *py = y.const_data_ptr<float>();
  float* po = out.mutable_data_ptr<float>();
  at::parallel_for(0, rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      po[r] = sum_row(width, [&](int64_t i, int64_t n) { return load(px + r * width + i, n) * load(py + r * width + i, n); });
  });
  return out;
}

inline at::Tensor row_norm_op(const at::Tensor& x) {
  at::Tensor norms = row_dot_op(x, x);
  float* p = norms.mutable_data_ptr<float>();
  for (int64_t r = 0; r < norms.numel(); ++r) p[r] = std::sqrt(p[r]);
  return norms;
}

// y = x / sqrt(mean(x^2) + eps) * weight; weight has `width` elements, rows of x are `width` long.
template <typename T>
void rms_norm_rows(const float* x, const float* weight, T* y, int64_t rows, int64_t width, double eps) {
  at::parallel_for(0, rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = x + r * width;
      const float squares = sum_row(width, [&](int64_t i, int64_t n) { return load(row + i, n) * load(row + i, n); });
      const Vec scale(1.f / std::sqrt(squares / static_cast<float>(width) + static_cast<float>(eps)));
      map_row(width, [&](int64_t i, int64_t n) {
        store(y + r * width + i, load(row + i, n) * scale * load(weight + i, n), n);
      });
    }
  });
}

// LayerNorm over groups of `width`: weight and bias have groups * width elements, row r belongs to group r % groups.
template <typename T>
void layer_norm_rows(const float* x, const float* weight, const float* bias, T* y, int64_t rows, int64_t groups,
                     int64_t width, double eps) {
  at::parallel_for(0, rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = x + r * width;
      const int64_t offset = (r % groups) * width;
      const Vec mean(sum_row(width, [&](int64_t i, int64_t n) { return load(row + i, n); }) / static_cast<float>(width));
      const float squares = sum_row(width, [&](int64_t i, int64_t n) {
        const Vec d = Vec::set(Vec(0.f), load(row + i, n) - mean, n);
        return d * d;
      });
      const Vec scale(1.f / std::sqrt(squares / static_cast<float>(width) + static_cast<float>(eps)));
      map_row(width, [&](int64_t i, int64_t n) {
        const Vec normal = (load(row + i, n) - mean) * scale;
        store(y + r * width + i, normal * load(weight + offset + i, n) + load(bias + offset + i, n), n);
      });
    }
  });
}

template <typename F>
void with_dtype(at::ScalarType dtype, F f) {
  switch (dtype) {
    case at::kFloat: return f(float{});
    case at::kBFloat16: return f(c10::BFloat16{});
    case at::kHalf: return f(c10::Half{});
    default: TORCH_CHECK(false, "expected float32, bfloat16 or float16, got ", dtype);
  }
}

inline at::Tensor rms_norm_op(const at::Tensor& x, const at::Tensor& weight, double eps, at::ScalarType dtype) {
  at::Tensor y = at::empty(x.sizes(), x.options().dtype(dtype));
  with_dtype(dtype, [&](auto type) {
    rms_norm_rows(x.const_data_ptr<float>(), weight.const_data_ptr<float>(), y.mutable_data_ptr<decltype(type)>(),
                  num_rows(x), x.size(-1), eps);
  });
  return y;
}

inline at::Tensor layer_norm_op(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps,
                                at::ScalarType dtype) {
  at::Tensor y = at::empty(x.sizes(), x.options().dtype(dtype));
  with_dtype(dtype, [&](auto type) {
    layer_norm_rows(x.const_data_ptr<float>(), weight.const_data_ptr<float>(), bias.const_data_ptr<float>(),
                    y.mutable_data_ptr<decltype(type)>(), num_rows(x), std::max<int64_t>(1, num_rows(weight)), x.size(-1),
                    eps);
  });
  return y;
}

}  // namespace ostinato
