// The diagonal recurrence of kernels/diagonal.py over packed sequences, in place by slot.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "channels.h"

namespace ostinato {
namespace {

at::Tensor diagonal(const at::Tensor& x_, const at::Tensor& log_decay_, const at::Tensor& state, const at::Tensor& src,
                    const at::Tensor& dst, const at::Tensor& starts, int64_t /*longest*/) {
  const at::Tensor x = channels_of(x_), log_decay = channels_of(log_decay_);
  const int64_t tokens = x.size(0), channels = x.size(1);
  at::Tensor y = at::empty({tokens, channels}, x.options());
  const float *in = x.const_data_ptr<float>(), *rate = log_decay.const_data_ptr<float>();
  float* out = y.mutable_data_ptr<float>();
  walk_channels<1>(packed(src, dst, starts, state.size(0), tokens), state.mutable_data_ptr<float>(), channels, tokens,
                   [=, in_stride = x.stride(0), rate_stride = log_decay.stride(0)](
                       int64_t t, int64_t c, int64_t n, std::array<Vec, 1>& h) {
                     const Vec decay = exp(load(rate + t * rate_stride + c, n));
                     h[0] = at::vec::fmadd(decay, h[0], load(in + t * in_stride + c, n));
                     store(out + t * channels + c, h[0], n);
                   });
  return y;
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) { m.impl("diagonal", diagonal); }

}  // namespace
}  // namespace ostinato
