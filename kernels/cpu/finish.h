// What follows a matrix product: bias and residual connection, added in fp32 in that order.
#pragma once

#include "simd.h"

namespace ostinato {

// bias and residual: `count` elements each, or null.
template <typename T>
void finish_row(const T* product, const float* bias, const float* residual, float* y, int64_t count) {
  map_row(count, [&](int64_t i, int64_t n) {
    Vec sum = load(product + i, n);
    if (bias) sum = sum + load(bias + i, n);
    if (residual) sum = sum + load(residual + i, n);
    store(y + i, sum, n);
  });
}

}  // namespace ostinato
