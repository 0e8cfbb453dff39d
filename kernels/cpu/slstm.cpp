// The sLSTM cell of kernels/slstm.py over packed sequences, in place by slot.
//
// A task is one head of one sequence. Channels are the vector lanes and the four gates of a channel stay in registers
// while the recurrent matrices stream by, row after row: every gate is one sum in one fixed order.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "channels.h"

namespace ostinato {
namespace {

struct Cell {
  const float* x;  // [T,4,H,D] with tokens x_stride apart
  int64_t x_stride;
  const float *recurrent, *bias;  // [H,4,D,D], [4,H,D]
  float *state, *y;               // [slots,4,H,D], [T,H,D]
  Packed batch;
  int64_t heads, width;

  int64_t row() const { return heads * width; }
  float* state_of(int64_t slot, int64_t head) const { return state + slot * 4 * row() + head * width; }

  // memory: h, c, n, m of a head, each [D].
  void run(int64_t head, int64_t sequence, float* memory) const {
    const int64_t src = batch.src[sequence], dst = batch.dst[sequence];
    std::fill_n(memory, 4 * width, 0.f);
    for (int64_t r = 0; src >= 0 && r < 4; ++r)
      std::copy_n(state_of(src, head) + r * row(), width, memory + r * width);
    for (int64_t t = batch.starts[sequence]; t < batch.starts[sequence + 1]; ++t) advance(head, t, memory);
    for (int64_t r = 0; dst >= 0 && r < 4; ++r)
      std::copy_n(memory + r * width, width, state_of(dst, head) + r * row());
  }

  // The new h goes to y first: all of the old one is needed until the last channel is done.
  void advance(int64_t head, int64_t t, float* memory) const {
    int64_t d = 0;
    for (; d + 2 * kLanes <= width; d += 2 * kLanes) advance_channels<2>(head, t, d, memory);
    for (; d < width; d += kLanes) advance_channels<1>(head, t, d, memory);
    std::copy_n(y + t * row() + head * width, width, memory);
  }

  template <int64_t kVectors>
  void advance_channels(int64_t head, int64_t t, int64_t d, float* memory) const {
    using Gate = std::array<Vec, kVectors>;
    const int64_t lanes = kVectors > 1 ? kLanes : lanes_left(d, width), channel = head * width + d;
    std::array<Gate, 4> gates;
    for (int64_t g = 0; g < 4; ++g)
      for (int64_t v = 0; v < kVectors; ++v)
        gates[g][v] = load(x + t * x_stride + g * row() + channel + v * kLanes, lanes) +
                      load(bias + g * row() + channel + v * kLanes, lanes);
    const float* weights = recurrent + head * 4 * width * width + d;
    for (int64_t j = 0; j < width; ++j) {
      const Vec h(memory[j]);
      for (int64_t g = 0; g < 4; ++g)
        for (int64_t v = 0; v < kVectors; ++v)
          gates[g][v] =
              at::vec::fmadd(h, load(weights + (g * width + j) * width + v * kLanes, lanes), gates[g][v]);
    }
    for (int64_t v = 0; v < kVectors; ++v)
      open_gates(gates[0][v], gates[1][v], gates[2][v], gates[3][v], memory + d + v * kLanes,
                 y + t * row() + channel + v * kLanes, lanes);
  }

  void open_gates(Vec i, Vec f, Vec z, Vec o, float* memory, float* h, int64_t lanes) const {
    float *c_ = memory + width, *n_ = c_ + width, *m_ = n_ + width;
    const Vec c = load(c_, lanes), n = load(n_, lanes), m = load(m_, lanes);
    const Vec known = Vec::blendv(Vec(-std::numeric_limits<float>::infinity()), m, n > Vec(0.f));
    const Vec carried = known - softplus(f.neg()), top = at::vec::maximum(carried, i);
    const Vec past = exp(carried - top), now = exp(i - top);
    const Vec sum = at::vec::fmadd(past, c, now * z.tanh()), weight = at::vec::fmadd(past, n, now);
    store(c_, sum, lanes);
    store(n_, weight, lanes);
    store(m_, top, lanes);
    store(h, sigmoid(o) * (sum / weight), lanes);
  }
};

at::Tensor slstm(const at::Tensor& x_, const at::Tensor& recurrent, const at::Tensor& bias, const at::Tensor& state,
                 const at::Tensor& src, const at::Tensor& dst, const at::Tensor& starts, int64_t /*longest*/) {
  const at::Tensor x = channels_of(x_);
  const int64_t tokens = x.size(0), heads = state.size(2), width = state.size(3);
  at::Tensor y = at::empty({tokens, heads, width}, x.options());
  const Cell cell{x.const_data_ptr<float>(),         x.stride(0),
                  recurrent.const_data_ptr<float>(), bias.const_data_ptr<float>(),
                  state.mutable_data_ptr<float>(),   y.mutable_data_ptr<float>(),
                  packed(src, dst, starts, state.size(0), tokens), heads, width};
  const int64_t sequences = cell.batch.sequences, length = 1 + (sequences ? tokens / sequences : 0);
  // Head by head, so that a head's matrices are still in the cache for the next sequence.
  at::parallel_for(0, heads * sequences, rows_per_task(4 * width * width * length), [&](int64_t begin, int64_t end) {
    std::vector<float> memory(4 * width);
    for (int64_t task = begin; task < end; ++task) cell.run(task / sequences, task % sequences, memory.data());
  });
  return y;
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) { m.impl("slstm", slstm); }

}  // namespace
}  // namespace ostinato
