// Packed sequences (kernels/packed.py): operands as the kernels see them, and the checks that the Python wrappers leave
// out because reading values would stall an accelerator. Here they are in memory, and a wrong one would read or write
// out of bounds.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace ostinato {

struct Packed {
  const int32_t *src, *dst, *starts;
  int64_t sequences;

  int64_t length(int64_t i) const { return starts[i + 1] - starts[i]; }
};

inline Packed packed(const at::Tensor& src, const at::Tensor& dst, const at::Tensor& starts, int64_t pool_rows,
                     int64_t tokens) {
  const Packed p{src.const_data_ptr<int32_t>(), dst.const_data_ptr<int32_t>(), starts.const_data_ptr<int32_t>(),
                 src.numel()};
  TORCH_CHECK(p.starts[0] == 0 && p.starts[p.sequences] == tokens, "starts must go from 0 to ", tokens);
  std::vector<int32_t> writer(pool_rows, -1);
  for (int64_t i = 0; i < p.sequences; ++i) {
    TORCH_CHECK(p.starts[i] <= p.starts[i + 1], "starts must not decrease");
    for (const int32_t slot : {p.src[i], p.dst[i]})
      TORCH_CHECK(slot >= -1 && slot < pool_rows, "slot ", slot, " is not in a pool of ", pool_rows);
    if (p.dst[i] < 0) continue;
    TORCH_CHECK(writer[p.dst[i]] < 0, "slot ", p.dst[i], " is the destination of two sequences");
    writer[p.dst[i]] = static_cast<int32_t>(i);
  }
  for (int64_t i = 0; i < p.sequences; ++i)
    TORCH_CHECK(p.src[i] < 0 || writer[p.src[i]] < 0 || writer[p.src[i]] == i, "slot ", p.src[i],
                " is the source of one sequence and the destination of another");
  return p;
}

// An fp32 operand [T, G, N] (or [T, G], N = 1), contiguous in its last dimension; consecutive heads share a group.
struct Operand {
  const float* data = nullptr;
  int64_t token_stride = 0, group_stride = 0, heads_per_group = 1, row_width = 0;

  const float* at(int64_t token, int64_t head) const {
    return data + token * token_stride + head / heads_per_group * group_stride;
  }
};

// Holds the tensor whose memory the operand points to: the given one, or a copy where its form is another.
struct HeldOperand {
  at::Tensor tensor;
  Operand operand;
};

inline HeldOperand held(const at::Tensor& x, int64_t heads) {
  at::Tensor y = x.to(at::kFloat);
  if (y.dim() == 2) y = y.unsqueeze(-1);
  if (y.size(2) > 1 && y.stride(2) != 1) y = y.contiguous();
  return {y, {y.const_data_ptr<float>(), y.stride(0), y.stride(1), heads / y.size(1), y.size(2)}};
}

inline HeldOperand held(const std::optional<at::Tensor>& x, int64_t heads) {
  return x ? held(*x, heads) : HeldOperand{};
}

}  // namespace ostinato
