// Causal depthwise convolution over packed sequences, with the last W-1 inputs of every sequence kept by slot.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>

#include "dtypes.h"
#include "packed.h"
#include "parallel.h"
#include "simd.h"

namespace ostinato {
namespace {

constexpr int64_t kMaxWidth = 16;

// A task is one vector of channels of one sequence. Inputs are rounded to the tail's dtype before they are used, so that
// one read from the tail is the one that was read from x.
template <typename T>
struct Convolution {
  const float* x;  // [T,C] with rows x_stride apart
  int64_t x_stride;
  const float *weight, *bias;  // [W,C], and [C] or null
  T* tail;                     // [slots,W-1,C], oldest first
  float* y;                    // [T,C]
  Packed batch;
  int64_t channels, width;
  bool activate;

  void run(int64_t sequence, int64_t c) const {
    const int64_t n = lanes_left(c, channels), first = batch.starts[sequence], stop = batch.starts[sequence + 1];
    const int64_t newest = width - 1;
    std::array<Vec, kMaxWidth> window, taps;
    const T* kept = row_of(batch.src[sequence], c);
    for (int64_t j = 0; j < newest; ++j) window[j] = kept ? load(kept + j * channels, n) : Vec(0.f);
    for (int64_t j = 0; j < width; ++j) taps[j] = load(weight + j * channels + c, n);
    for (int64_t t = first; t < stop; ++t) {
      window[newest] = rounded<T>(load(x + t * x_stride + c, n));
      Vec sum = bias ? load(bias + c, n) : Vec(0.f);
      for (int64_t j = 0; j < width; ++j) sum = at::vec::fmadd(taps[j], window[j], sum);
      store(y + t * channels + c, activate ? silu(sum) : sum, n);
      for (int64_t j = 0; j < newest; ++j) window[j] = window[j + 1];
    }
    if (T* left = row_of(batch.dst[sequence], c))
      for (int64_t j = 0; j < newest; ++j) store(left + j * channels, window[j], n);
  }

  T* row_of(int64_t slot, int64_t c) const { return slot < 0 ? nullptr : tail + slot * (width - 1) * channels + c; }
};

at::Tensor causal_conv(const at::Tensor& x_, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       const at::Tensor& tail, const at::Tensor& src, const at::Tensor& dst, const at::Tensor& starts,
                       int64_t /*longest*/, bool activate) {
  TORCH_CHECK(weight.size(0) <= kMaxWidth, "causal_conv: at most ", kMaxWidth, " taps, got ", weight.size(0));
  const at::Tensor floats = x_.to(at::kFloat), x = floats.stride(1) == 1 ? floats : floats.contiguous();
  const Packed batch = packed(src, dst, starts, tail.size(0), x.size(0));
  const int64_t channels = x.size(1), vectors = (channels + kLanes - 1) / kLanes;
  const int64_t tokens = 1 + (batch.sequences ? x.size(0) / batch.sequences : 0);
  at::Tensor y = at::empty(x.sizes(), x.options());
  with_dtype(tail.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Convolution<T> conv{x.const_data_ptr<float>(), x.stride(0), weight.const_data_ptr<float>(),
                              bias ? bias->const_data_ptr<float>() : nullptr, tail.mutable_data_ptr<T>(),
                              y.mutable_data_ptr<float>(), batch, channels, weight.size(0), activate};
    at::parallel_for(0, batch.sequences * vectors, rows_per_task(kLanes * tokens * conv.width),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t task = begin; task < end; ++task) conv.run(task / vectors, task % vectors * kLanes);
                     });
  });
  return y;
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) { m.impl("causal_conv", causal_conv); }

}  // namespace
}  // namespace ostinato
