// The sLSTM cell of kernels/slstm.py over packed sequences, in place by slot.
//
// A task is one head of a few sequences. The recurrent matrices stream by, a few rows at a time, and are added to the
// gates of all of them: a gate is one sum in one fixed order, whoever is beside it.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "channels.h"

namespace ostinato {
namespace {

constexpr int64_t kTogether = 4;  // sequences that meet a row of the matrices while it is in registers
constexpr int64_t kRows = 4;      // of the matrices, that meet a gate while it is in a register
constexpr int64_t kMemory = 8;    // rows of D floats for each sequence of a task: h, c, n, m, and the gates i, f, z, o

struct Cell {
  const float* x;  // [T,4,H,D] with tokens x_stride apart
  int64_t x_stride;
  const float *recurrent, *bias;  // [H,4,D,D], [4,H,D]
  float *state, *y;               // [slots,4,H,D], [T,H,D]
  Packed batch;
  int64_t heads, width;

  float* state_row(int64_t slot, int64_t r, int64_t head) const {
    return state + ((slot * 4 + r) * heads + head) * width;
  }

  // The sequences [first, last), token by token beside each other; memory: [last - first, kMemory, D].
  void run(int64_t head, int64_t first, int64_t last, float* memory) const {
    const auto row = [&](int64_t i, int64_t r) { return memory + ((i - first) * kMemory + r) * width; };
    int64_t longest = 0;
    for (int64_t i = first; i < last; ++i) {
      const int64_t src = batch.src[i];
      for (int64_t r = 0; r < 4; ++r)
        src < 0 ? std::fill_n(row(i, r), width, 0.f) : std::copy_n(state_row(src, r, head), width, row(i, r));
      longest = std::max(longest, batch.length(i));
    }
    for (int64_t t = 0; t < longest; ++t) {
      std::array<int64_t, kTogether> tokens;
      std::array<float*, kTogether> members;
      int64_t count = 0;
      for (int64_t i = first; i < last; ++i)
        if (t < batch.length(i)) tokens[count] = batch.starts[i] + t, members[count++] = row(i, 0);
      for (int64_t i = 0; i < count; ++i) begin_gates(head, tokens[i], members[i]);
      if (count == kTogether) {
        mix<kTogether>(head, members.data());
      } else {
        for (int64_t i = 0; i < count; ++i) mix<1>(head, &members[i]);
      }
      for (int64_t i = 0; i < count; ++i) open_gates(head, tokens[i], members[i]);
    }
    for (int64_t i = first; i < last; ++i)
      for (int64_t r = 0; r < 4 && batch.dst[i] >= 0; ++r)
        std::copy_n(row(i, r), width, state_row(batch.dst[i], r, head));
  }

  void begin_gates(int64_t head, int64_t token, float* memory) const {
    for (int64_t g = 0; g < 4; ++g)
      map_row(width, [&](int64_t d, int64_t n) {
        const int64_t at = (g * heads + head) * width + d;
        store(memory + (4 + g) * width + d, load(x + token * x_stride + at, n) + load(bias + at, n), n);
      });
  }

  template <int64_t kMembers>
  void mix(int64_t head, float* const* members) const {
    int64_t j = 0;
    for (; j + kRows <= width; j += kRows) mix_rows<kMembers, kRows>(head, j, members);
    for (; j < width; ++j) mix_rows<kMembers, 1>(head, j, members);
  }

  template <int64_t kMembers, int64_t kCount>
  void mix_rows(int64_t head, int64_t first, float* const* members) const {
    Vec h[kMembers][kCount], weights[kCount];
    for (int64_t i = 0; i < kMembers; ++i)
      for (int64_t j = 0; j < kCount; ++j) h[i][j] = Vec(members[i][first + j]);
    for (int64_t g = 0; g < 4; ++g) {
      const float* matrix = recurrent + ((head * 4 + g) * width + first) * width;
      map_row(width, [&](int64_t d, int64_t n) {
        for (int64_t j = 0; j < kCount; ++j) weights[j] = load(matrix + j * width + d, n);
        for (int64_t i = 0; i < kMembers; ++i) {
          float* gate = members[i] + (4 + g) * width + d;
          Vec sum = load(gate, n);
          for (int64_t j = 0; j < kCount; ++j) sum = at::vec::fmadd(h[i][j], weights[j], sum);
          store(gate, sum, n);
        }
      });
    }
  }

  void open_gates(int64_t head, int64_t token, float* memory) const {
    map_row(width, [&](int64_t d, int64_t lanes) {
      const auto row = [&](int64_t r) { return memory + r * width + d; };
      const Vec c = load(row(1), lanes), n = load(row(2), lanes), m = load(row(3), lanes);
      const Vec i = load(row(4), lanes), f = load(row(5), lanes), z = load(row(6), lanes), o = load(row(7), lanes);
      const Vec known = Vec::blendv(Vec(-std::numeric_limits<float>::infinity()), m, n > Vec(0.f));
      const Vec carried = known - softplus(f.neg()), top = at::vec::maximum(carried, i);
      const Vec past = exp(carried - top), now = exp(i - top);
      const Vec sum = at::vec::fmadd(past, c, now * z.tanh()), weight = at::vec::fmadd(past, n, now);
      const Vec h = sigmoid(o) * (sum / weight);
      store(row(0), h, lanes);
      store(row(1), sum, lanes);
      store(row(2), weight, lanes);
      store(row(3), top, lanes);
      store(y + (token * heads + head) * width + d, h, lanes);
    });
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
  const int64_t groups = (sequences + kTogether - 1) / kTogether;
  const int64_t grain = rows_per_task(4 * kTogether * width * width * length);
  // Head by head, so that a head's matrices are still in the cache for the next group.
  at::parallel_for(0, heads * groups, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> memory(kTogether * kMemory * width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % groups * kTogether;
      cell.run(task / groups, first, std::min(first + kTogether, sequences), memory.data());
    }
  });
  return y;
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) { m.impl("slstm", slstm); }

}  // namespace
}  // namespace ostinato
