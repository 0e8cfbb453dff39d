// RWKV-4's attention of kernels/wkv4.py over packed sequences, in place by slot.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <limits>

#include "channels.h"

namespace ostinato {
namespace {

struct Weights {
  Vec past, now;
};

// e^past and e^now, divided by the larger of them, which leaves one exponential to compute.
Weights weigh(Vec past, Vec now) {
  const Vec smaller = exp((past - now).abs().neg()), older = past >= now;
  return {Vec::blendv(smaller, Vec(1.f), older), Vec::blendv(Vec(1.f), smaller, older)};
}

struct Attention {
  const float *k, *v;  // [T,C] with rows k_stride and v_stride apart
  int64_t k_stride, v_stride;
  const float *decay, *bonus;  // [C]
  float* y;                    // [T,C]
  int64_t channels;

  void operator()(int64_t t, int64_t c, int64_t n, std::array<Vec, 3>& state) const {
    auto& [a, b, p] = state;
    const Vec key = load(k + t * k_stride + c, n), value = load(v + t * v_stride + c, n);
    p = Vec::blendv(Vec(-std::numeric_limits<float>::infinity()), p, b > Vec(0.f));
    const Vec boosted = load(bonus + c, n) + key, faded = p + load(decay + c, n);
    const Weights read = weigh(p, boosted), written = weigh(faded, key);
    store(y + t * channels + c, at::vec::fmadd(read.past, a, read.now * value) / at::vec::fmadd(read.past, b, read.now),
          n);
    a = at::vec::fmadd(written.past, a, written.now * value);
    b = at::vec::fmadd(written.past, b, written.now);
    p = at::vec::maximum(faded, key);
  }
};

at::Tensor wkv4(const at::Tensor& k_, const at::Tensor& v_, const at::Tensor& decay, const at::Tensor& bonus,
                const at::Tensor& state, const at::Tensor& src, const at::Tensor& dst, const at::Tensor& starts,
                int64_t /*longest*/) {
  const at::Tensor k = channels_of(k_), v = channels_of(v_);
  const int64_t tokens = k.size(0), channels = k.size(1);
  at::Tensor y = at::empty({tokens, channels}, k.options());
  const Attention attention{k.const_data_ptr<float>(),     v.const_data_ptr<float>(),     k.stride(0), v.stride(0),
                            decay.const_data_ptr<float>(), bonus.const_data_ptr<float>(), y.mutable_data_ptr<float>(),
                            channels};
  walk_channels<3>(packed(src, dst, starts, state.size(0), tokens), state.mutable_data_ptr<float>(), channels, tokens,
                   attention);
  return y;
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) { m.impl("wkv4", wkv4); }

}  // namespace
}  // namespace ostinato
