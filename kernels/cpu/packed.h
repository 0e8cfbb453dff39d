// Packed sequences (kernels/packed.py): values that the Python wrappers do not look at, because reading them would stall
// an accelerator. Here they are in memory, and a wrong one would read or write out of bounds.
#pragma once

#include <ATen/core/Tensor.h>

namespace ostinato {

inline void check_packed(const at::Tensor& slots, const at::Tensor& starts, int64_t pool_rows, int64_t tokens) {
  const int32_t *slot = slots.const_data_ptr<int32_t>(), *start = starts.const_data_ptr<int32_t>();
  const int64_t sequences = slots.numel();
  TORCH_CHECK(start[0] == 0 && start[sequences] == tokens, "starts must go from 0 to ", tokens);
  for (int64_t i = 0; i < sequences; ++i) {
    TORCH_CHECK(start[i] <= start[i + 1], "starts must not decrease");
    TORCH_CHECK(slot[i] >= -1 && slot[i] < pool_rows, "slot ", slot[i], " is not in a pool of ", pool_rows);
  }
}

}  // namespace ostinato
