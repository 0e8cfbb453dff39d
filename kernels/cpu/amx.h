// A matrix product on the AMX tiles of x86-64 processors, y = x W^T in bf16 with fp32 sums.
//
// Every element of y is one chain of TDPBF16PS instructions over K, in blocks of 32, whatever the other rows are and
// whoever computes them: that is what oneDNN, which uses the same instructions, does not promise.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "activation.h"
#include "amx_tiles.h"
#include "dtypes.h"
#include "finish.h"
#include "parallel.h"

namespace ostinato {

#if OSTINATO_AMX

constexpr int64_t kFarElements = 16384;      // of weights, between their use and what is fetched from memory
constexpr int64_t kFirstLevelBytes = 32768;  // of x, besides weights
constexpr int64_t kBlockBytes = 1 << 20;     // of x that meets every panel before the next rows do
constexpr int64_t kFewPanels = 8;

// Rows that are multiplied one after the other, and the 32 of them, or what is left, that are now.
struct Rows {
  int64_t first, last, now;

  int64_t stop() const { return std::min(now + 2 * kTileRows, last); }
};

using Sums = float[2 * kTileRows * kPanel];

template <bool kPacked, bool kFar>
void multiply_rows(const TilesOfX& tiles, bool two, const c10::BFloat16* w, int64_t depth, float* sums, int64_t far) {
  (two ? multiply_two<kPacked, kFar> : multiply_one<kPacked, kFar>)(tiles, w, depth, sums, far);
}

struct Product {
  at::Tensor packed;  // what `x` points to
  TilesOfX x;
  const c10::BFloat16* weight;  // [N / 32, depth, 2, 16, 32], see kernels/linear.py
  int64_t rows, depth;

  void multiply(int64_t panel, const Rows& at, Sums& sums) const {
    const c10::BFloat16* w = weight + panel * depth * 2 * kTileElements;
    TilesOfX tiles = x;
    tiles.data += at.now / kTileRows * x.next_rows;
    const bool two = at.last - at.now > kTileRows;
    const int64_t far = fetched(at);
    if (x.packed())
      (far ? multiply_rows<true, true> : multiply_rows<true, false>)(tiles, two, w, depth, sums, far);
    else
      (far ? multiply_rows<false, true> : multiply_rows<false, false>)(tiles, two, w, depth, sums, far);
  }

  // How far on weights are fetched from memory: the first rows of a panel wait for its own, the second ones fetch those
  // of the next panel, and the others nothing.
  int64_t fetched(const Rows& at) const {
    if (at.now == at.first) return kFarElements;
    return at.now == at.first + 2 * kTileRows ? depth * 2 * kTileElements : 0;
  }

  // task(panel, rows) for all rows and the first of the panels, in parallel.
  template <typename Task>
  void for_panels(int64_t panels, Task task) const {
    const int64_t fitting = kBlockBytes / (depth * kTileDepth * 2) / (2 * kTileRows) * (2 * kTileRows);
    const int64_t block = std::max<int64_t>(2 * kTileRows, fitting);
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (depth * kTileElements));
    at::parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) {
      configure_tiles(std::min(rows, 2 * kTileRows));
      for (int64_t first = 0; first < rows; first += block)
        for (int64_t panel = begin; panel < end; ++panel)
          for (Rows at{first, std::min(first + block, rows), first}; at.now < at.last; at.now += 2 * kTileRows)
            task(panel, at);
      release_tiles();
    });
  }
};

inline at::Tensor pack_rows(const at::Tensor& x, int64_t depth) {
  const int64_t rows = x.size(0), width = x.size(1);
  at::Tensor packed = at::empty({blocks_of(rows, kTileRows), depth, 16, 32}, x.options().dtype(at::kBFloat16));
  auto* to = packed.mutable_data_ptr<c10::BFloat16>();
  // Rows that are not there are not cleared: a row of the product depends on its own row of x only.
  with_dtype(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* from = x.const_data_ptr<T>();
    at::parallel_for(0, rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) pack_row(from + row * x.stride(0), row, width, depth, to);
    });
  });
  return packed;
}

inline Product product_of(const at::Tensor& x, const at::Tensor& weight, int64_t outputs) {
  const int64_t depth = weight.size(1), panels = weight.size(0), rows = x.size(0);
  TORCH_CHECK_VALUE(blocks_of(x.size(1), kTileDepth) == depth && blocks_of(outputs, kPanel) == panels,
                    "linear: x ", x.sizes(), " and ", outputs, " outputs do not fit the weight");
  // Few rows can be read as they lie, since tiles have as many rows as there are: which is worth it where they are not
  // read often, or stay in the first-level cache.
  const bool fits = x.scalar_type() == at::kBFloat16 && rows <= 2 * kTileRows && x.size(1) % kTileDepth == 0;
  const bool as_it_lies = fits && (panels <= kFewPanels || rows * x.size(1) * 2 <= kFirstLevelBytes);
  const at::Tensor packed = as_it_lies ? x : pack_rows(x, depth);
  const auto* data = packed.const_data_ptr<c10::BFloat16>();
  const TilesOfX tiles = as_it_lies ? TilesOfX{data, kTileDepth, kTileRows * x.stride(0), 2 * x.stride(0)}
                                    : TilesOfX{data, kTileElements, depth * kTileElements, 64};
  return {packed, tiles, weight.const_data_ptr<c10::BFloat16>(), rows, depth};
}

// y [M,N] fp32; bias [N] and residual [M,N], or null.
inline void amx_product(const at::Tensor& x, const at::Tensor& weight, const float* bias, const float* residual,
                        at::Tensor& y) {
  const int64_t outputs = y.size(1);
  const Product product = product_of(x, weight, outputs);
  float* to = y.mutable_data_ptr<float>();
  product.for_panels(weight.size(0), [&](int64_t panel, const Rows& at) {
    alignas(64) Sums sums;
    product.multiply(panel, at, sums);
    const int64_t column = panel * kPanel, count = std::min(kPanel, outputs - column);
    for (int64_t i = at.now; i < at.stop(); ++i)
      finish_row(sums + (i - at.now) * kPanel, bias ? bias + column : nullptr,
                 residual ? residual + i * outputs + column : nullptr, to + i * outputs + column, count);
  });
}

// Whether panels of gates and panels of what they multiply are the same outputs apart.
inline bool can_activate(int64_t outputs, Activation activation) {
  return !is_gated(activation) || outputs % (2 * kPanel) == 0;
}

// y [M,N], or [M,N / 2] where the activation is gated: the sums go into it from the first-level cache, which for a
// prompt is several times less to write and to read.
template <Activation kActivation, typename T>
void amx_activated_product(const at::Tensor& x, const at::Tensor& weight, const float* bias, int64_t outputs, T* y) {
  const Product product = product_of(x, weight, outputs);
  const int64_t width = is_gated(kActivation) ? outputs / 2 : outputs, panels = blocks_of(width, kPanel);
  const auto multiply = [&](int64_t panel, const Rows& at, Sums& sums) {
    product.multiply(panel, at, sums);
    const int64_t count = std::min(kPanel, outputs - panel * kPanel);
    for (int64_t i = 0; bias && i < at.stop() - at.now; ++i)
      finish_row(sums + i * kPanel, bias + panel * kPanel, nullptr, sums + i * kPanel, count);
  };
  product.for_panels(panels, [&](int64_t panel, const Rows& at) {
    alignas(64) Sums sums, gated;
    multiply(panel, at, sums);
    if constexpr (is_gated(kActivation)) multiply(panels + panel, at, gated);
    const int64_t column = panel * kPanel, count = std::min(kPanel, width - column);
    for (int64_t i = 0; i < at.stop() - at.now; ++i)
      map_row(count, [&](int64_t j, int64_t n) {
        const float* other = (is_gated(kActivation) ? gated : sums) + i * kPanel;
        store(y + (at.now + i) * width + column + j,
              activate<kActivation>(load(sums + i * kPanel + j, n), load(other + j, n)), n);
      });
  });
}

#else

inline void amx_product(const at::Tensor&, const at::Tensor&, const float*, const float*, at::Tensor&) {
  TORCH_CHECK(false, "AMX needs an x86-64 processor");
}

inline bool can_activate(int64_t, Activation) { return false; }

template <Activation kActivation, typename T>
void amx_activated_product(const at::Tensor&, const at::Tensor&, const float*, int64_t, T*) {
  TORCH_CHECK(false, "AMX needs an x86-64 processor");
}

#endif

}  // namespace ostinato
