// Causal depthwise convolution over packed sequences, with the last W-1 inputs of every sequence kept by slot.
#pragma once

#include "packed.h"
#include "rows.h"

namespace ostinato {

// x [T,C], weight [W,C], bias [C] or none, tail [slots,W-1,C] (oldest first), y [T,C] fp32 with SiLU when `activate`.
// tail and x have the same dtype, so a value read from the tail is the value that was read from x.
template <typename T>
void conv_rows(const T* x, const float* weight, const float* bias, T* tail, const int32_t* slots,
               const int32_t* starts, float* y, int64_t sequences, int64_t channels, int64_t width, bool activate) {
  const int64_t blocks = (channels + kLanes - 1) / kLanes;
  at::parallel_for(0, sequences * blocks, 16, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sequence = task / blocks, c = task % blocks * kLanes, n = lanes_left(c, channels);
      const int64_t first = starts[sequence], length = starts[sequence + 1] - first, slot = slots[sequence];
      T* kept = slot < 0 ? nullptr : tail + slot * (width - 1) * channels + c;
      const auto input = [&](int64_t t) {
        if (t >= 0) return load(x + (first + t) * channels + c, n);
        return kept ? load(kept + (width - 1 + t) * channels, n) : Vec(0.f);
      };
      for (int64_t t = 0; t < length; ++t) {
        Vec sum = bias ? load(bias + c, n) : Vec(0.f);
        for (int64_t j = 0; j < width; ++j)
          sum = at::vec::fmadd(load(weight + j * channels + c, n), input(t - width + 1 + j), sum);
        store(y + (first + t) * channels + c, activate ? silu(sum) : sum, n);
      }
      // Oldest first, so that a short chunk shifts the tail without overwriting what is still to be moved.
      if (kept)
        for (int64_t j = 0; j < width - 1; ++j) store(kept + j * channels, input(length - width + 1 + j), n);
    }
  });
}

inline at::Tensor causal_conv_op(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                                 const at::Tensor& tail, const at::Tensor& slots, const at::Tensor& starts,
                                 bool activate) {
  check_packed(slots, starts, tail.size(0), x.size(0));
  at::Tensor y = at::empty(x.sizes(), x.options().dtype(at::kFloat));
  with_dtype(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    conv_rows(x.const_data_ptr<T>(), weight.const_data_ptr<float>(), bias ? bias->const_data_ptr<float>() : nullptr,
              tail.mutable_data_ptr<T>(), slots.const_data_ptr<int32_t>(), starts.const_data_ptr<int32_t>(),
              y.mutable_data_ptr<float>(), slots.numel(), x.size(1), weight.size(0), activate);
  });
  return y;
}

}  // namespace ostinato
