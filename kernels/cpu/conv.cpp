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
constexpr int64_t kVectors = 4;  // of channels, side by side, so that whole cache lines in a row are read and written
constexpr int64_t kActivation = 8;  // what SiLU costs, in taps

// A task is a few vectors of channels of one sequence. Inputs are rounded to the tail's dtype before they are used, so
// that one read from the tail is the one that was read from x.
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

  void run(int64_t sequence, int64_t first) const {
    const bool whole = first + kVectors * kLanes <= channels;
    switch (width) {
      case 2: return whole ? walk<2, kVectors>(sequence, first) : walk_rest<2>(sequence, first);
      case 3: return whole ? walk<3, kVectors>(sequence, first) : walk_rest<3>(sequence, first);
      case 4: return whole ? walk<4, kVectors>(sequence, first) : walk_rest<4>(sequence, first);
      default: return walk_rest<kMaxWidth>(sequence, first);
    }
  }

  template <int64_t kTaps>
  void walk_rest(int64_t sequence, int64_t first) const {
    for (int64_t c = first; c < std::min(first + kVectors * kLanes, channels); c += kLanes)
      walk<kTaps, 1>(sequence, c);
  }

  // Vectors of channels, full but for a single one. kTaps: the width, or more. The window of the last inputs, oldest
  // first, stays in registers.
  template <int64_t kTaps, int64_t kCount>
  void walk(int64_t sequence, int64_t first) const {
    const int64_t src = batch.src[sequence], dst = batch.dst[sequence];
    const int64_t taps = kTaps == kMaxWidth ? width : kTaps, newest = taps - 1;
    std::array<std::array<Vec, kTaps>, kCount> windows;
    const auto each_vector = [&](auto f) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kCount; ++i)
        f(first + i * kLanes, kCount > 1 ? kLanes : lanes_left(first, channels), windows[i]);
    };
    each_vector([&](int64_t c, int64_t n, auto& window) __attribute__((always_inline)) {
      for (int64_t j = 0; j < newest; ++j) window[j] = src < 0 ? Vec(0.f) : load(row_of(src, c) + j * channels, n);
    });
    for (int64_t t = batch.starts[sequence]; t < batch.starts[sequence + 1]; ++t) {
      const float* now = x + t * x_stride;
      each_vector([&](int64_t c, int64_t n, auto& window) __attribute__((always_inline)) {
        __builtin_prefetch(now + kAhead * x_stride + c);
        window[newest] = rounded<T>(load(now + c, n));
        Vec sum = bias ? load(bias + c, n) : Vec(0.f);
#pragma GCC unroll 4
        for (int64_t j = 0; j < taps; ++j) sum = at::vec::fmadd(load(weight + j * channels + c, n), window[j], sum);
        store(y + t * channels + c, activate ? silu(sum) : sum, n);
#pragma GCC unroll 4
        for (int64_t j = 0; j < newest; ++j) window[j] = window[j + 1];
      });
    }
    if (dst < 0) return;
    each_vector([&](int64_t c, int64_t n, auto& window) __attribute__((always_inline)) {
      for (int64_t j = 0; j < newest; ++j) store(row_of(dst, c) + j * channels, window[j], n);
    });
  }

  static constexpr int64_t kAhead = 4;  // tokens whose rows are fetched; they lie too far apart for the processor

  T* row_of(int64_t slot, int64_t c) const { return tail + slot * (width - 1) * channels + c; }
};

at::Tensor causal_conv(const at::Tensor& x_, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       const at::Tensor& tail, const at::Tensor& src, const at::Tensor& dst, const at::Tensor& starts,
                       int64_t /*longest*/, bool activate) {
  TORCH_CHECK(weight.size(0) <= kMaxWidth, "causal_conv: at most ", kMaxWidth, " taps, got ", weight.size(0));
  const at::Tensor floats = x_.to(at::kFloat), x = floats.stride(1) == 1 ? floats : floats.contiguous();
  const Packed batch = packed(src, dst, starts, tail.size(0), x.size(0));
  const int64_t channels = x.size(1), step = kVectors * kLanes, blocks = (channels + step - 1) / step;
  const int64_t tokens = 1 + (batch.sequences ? x.size(0) / batch.sequences : 0);
  at::Tensor y = at::empty(x.sizes(), x.options());
  with_dtype(tail.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Convolution<T> conv{x.const_data_ptr<float>(), x.stride(0), weight.const_data_ptr<float>(),
                              bias ? bias->const_data_ptr<float>() : nullptr, tail.mutable_data_ptr<T>(),
                              y.mutable_data_ptr<float>(), batch, channels, weight.size(0), activate};
    at::parallel_for(0, batch.sequences * blocks, rows_per_task(step * tokens * (conv.width + activate * kActivation)),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t task = begin; task < end; ++task) conv.run(task / blocks, task % blocks * step);
                     });
  });
  return y;
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) { m.impl("causal_conv", causal_conv); }

}  // namespace
}  // namespace ostinato
