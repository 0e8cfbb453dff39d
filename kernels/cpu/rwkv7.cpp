// What RWKV-7 does to one head of one token before and after the recurrence (kernels/rwkv7.py has the equations).
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "dtypes.h"
#include "parallel.h"
#include "simd.h"

namespace ostinato {
namespace {

using Optional = const std::optional<at::Tensor>&;

constexpr float kDecayScale = 0.6065306597126334f;  // e^-0.5
constexpr float kSmallestNorm = 1e-12f;

struct Inputs {
  const float *key, *value, *decay, *rate, *first_value, *value_gate;  // [T,C]; the last two may be null
  const float *key_norm, *key_gate;                                     // [C]
  float *log_decay, *key_out, *a, *b, *value_out;                       // [T,C]

  // The elements [at, at + width) of the batch are channels [c, c + width) of a token: one head.
  void head(int64_t at, int64_t c, int64_t width) const {
    const auto unnormalised = [&](int64_t i, int64_t n) { return load(key + at + i, n) * load(key_norm + c + i, n); };
    const float squares = sum_row(width, [&](int64_t i, int64_t n) {
      const Vec x = unnormalised(i, n);
      return x * x;
    });
    const Vec norm(std::max(std::sqrt(squares), kSmallestNorm));
    map_row(width, [&](int64_t i, int64_t n) {
      const Vec removed = unnormalised(i, n) / norm, rates = sigmoid(load(rate + at + i, n)), k = load(key + at + i, n);
      store(log_decay + at + i, sigmoid(load(decay + at + i, n)) * Vec(-kDecayScale), n);
      store(key_out + at + i, k * at::vec::fmadd(rates - Vec(1.f), load(key_gate + c + i, n), Vec(1.f)), n);
      store(a + at + i, removed.neg(), n);
      store(b + at + i, removed * rates, n);
      Vec v = load(value + at + i, n);
      if (value_gate) v = at::vec::fmadd(load(first_value + at + i, n) - v, sigmoid(load(value_gate + at + i, n)), v);
      store(value_out + at + i, v, n);
    });
  }
};

using FiveTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

const float* data_or_null(Optional x) { return x ? x->const_data_ptr<float>() : nullptr; }

FiveTensors rwkv7_inputs(const at::Tensor& key, const at::Tensor& value, const at::Tensor& decay,
                         const at::Tensor& rate, Optional first_value, Optional value_gate, const at::Tensor& key_norm,
                         const at::Tensor& key_gate, int64_t heads) {
  const int64_t channels = key.size(1), width = channels / heads;
  FiveTensors out{at::empty_like(key), at::empty_like(key), at::empty_like(key), at::empty_like(key),
                  at::empty_like(key)};
  const auto data = [](const at::Tensor& x) { return x.mutable_data_ptr<float>(); };
  const Inputs inputs{key.const_data_ptr<float>(), value.const_data_ptr<float>(), decay.const_data_ptr<float>(),
                      rate.const_data_ptr<float>(), data_or_null(first_value), data_or_null(value_gate),
                      key_norm.const_data_ptr<float>(), key_gate.const_data_ptr<float>(), data(std::get<0>(out)),
                      data(std::get<1>(out)), data(std::get<2>(out)), data(std::get<3>(out)), data(std::get<4>(out))};
  at::parallel_for(0, key.size(0) * heads, rows_per_task(8 * width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) inputs.head(i * width, i % heads * width, width);
  });
  return out;
}

struct Output {
  const float *y, *r, *k, *v, *gate;                 // [T,C]
  const float *bonus, *norm_weight, *norm_bias;      // [C]
  float eps;

  template <typename T>
  void head(int64_t at, int64_t c, int64_t width, T* out) const {
    const float recalled = sum_row(width, [&](int64_t i, int64_t n) {
      return load(r + at + i, n) * load(bonus + c + i, n) * load(k + at + i, n);
    });
    const RowMoments m = row_moments(y + at, width, eps);
    map_row(width, [&](int64_t i, int64_t n) {
      const Vec normal = (load(y + at + i, n) - Vec(m.mean)) * Vec(m.scale);
      const Vec x = normal * load(norm_weight + c + i, n) + load(norm_bias + c + i, n);
      store(out + at + i, at::vec::fmadd(Vec(recalled), load(v + at + i, n), x) * load(gate + at + i, n), n);
    });
  }
};

at::Tensor rwkv7_output(const at::Tensor& y, const at::Tensor& r, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& gate, const at::Tensor& bonus, const at::Tensor& norm_weight,
                        const at::Tensor& norm_bias, double eps, at::ScalarType dtype) {
  const int64_t heads = bonus.size(0), width = bonus.size(1);
  at::Tensor out = at::empty_like(gate, gate.options().dtype(dtype));
  const Output output{y.const_data_ptr<float>(), r.const_data_ptr<float>(), k.const_data_ptr<float>(),
                      v.const_data_ptr<float>(), gate.const_data_ptr<float>(), bonus.const_data_ptr<float>(),
                      norm_weight.const_data_ptr<float>(), norm_bias.const_data_ptr<float>(), static_cast<float>(eps)};
  with_dtype(dtype, [&](auto type) {
    auto* data = out.mutable_data_ptr<decltype(type)>();
    at::parallel_for(0, gate.size(0) * heads, rows_per_task(4 * width), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) output.head(i * width, i % heads * width, width, data);
    });
  });
  return out;
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) {
  m.impl("rwkv7_inputs", rwkv7_inputs);
  m.impl("rwkv7_output", rwkv7_output);
}

}  // namespace
}  // namespace ostinato
