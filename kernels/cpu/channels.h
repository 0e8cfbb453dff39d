// Operators whose channels are all independent: walks packed sequences with the state of a few vectors of channels.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>

#include "packed.h"
#include "parallel.h"
#include "simd.h"

namespace ostinato {

// An operand [T, ...] as [T, C] fp32 with its channels side by side: the given memory, or a copy of another form.
inline at::Tensor channels_of(const at::Tensor& x) {
  const at::Tensor rows = x.to(at::kFloat).flatten(1);
  return rows.stride(1) == 1 ? rows : rows.contiguous();
}

// Calls step(token, c, n, s) for every token in its order, where s holds the kRows state vectors of the channels
// [c, c + n), read from and at last written to `state` [slots,kRows,C].
template <int64_t kRows, typename Step>
void walk_channels(const Packed& batch, float* state, int64_t channels, int64_t tokens, const Step& step) {
  constexpr int64_t kBlock = 4 * kLanes;  // whole cache lines of an operand, which a task reads token after token
  const int64_t blocks = (channels + kBlock - 1) / kBlock;
  const int64_t length = 1 + (batch.sequences ? tokens / batch.sequences : 0);
  const auto each_vector = [&](int64_t first, const auto& f) {
    for (int64_t v = 0, c = first; v < 4 && c < channels; ++v, c += kLanes) f(v, c, lanes_left(c, channels));
  };
  const auto run = [&](int64_t sequence, int64_t first) {
    const int64_t src = batch.src[sequence], dst = batch.dst[sequence];
    std::array<std::array<Vec, kRows>, 4> s;
    each_vector(first, [&](int64_t v, int64_t c, int64_t n) {
      for (int64_t r = 0; r < kRows; ++r)
        s[v][r] = src < 0 ? Vec(0.f) : load(state + (src * kRows + r) * channels + c, n);
    });
    for (int64_t t = batch.starts[sequence]; t < batch.starts[sequence + 1]; ++t)
      each_vector(first, [&](int64_t v, int64_t c, int64_t n) { step(t, c, n, s[v]); });
    if (dst < 0) return;
    each_vector(first, [&](int64_t v, int64_t c, int64_t n) {
      for (int64_t r = 0; r < kRows; ++r) store(state + (dst * kRows + r) * channels + c, s[v][r], n);
    });
  };
  const int64_t grain = rows_per_task(kBlock * kRows * length);
  at::parallel_for(0, batch.sequences * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) run(task / blocks, task % blocks * kBlock);
  });
}

}  // namespace ostinato
