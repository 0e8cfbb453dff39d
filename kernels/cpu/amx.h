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

constexpr int64_t kFirstLevelBytes = 32768;  // of x, besides weights
constexpr int64_t kBlockBytes = 1 << 20;     // of x that meets every panel before the next rows do
constexpr int64_t kFewPanels = 8;

// Rows that are multiplied one after the other, and the 32 of them, or what is left, that are now.
struct Rows {
  int64_t first, last, now;

  int64_t stop() const { return std::min(now + 2 * kTileRows, last); }
  bool few() const { return last - first <= 2 * kTileRows; }
};

using Sums = float[2 * kTileRows * kPanel];

// Memory of one thread for decoded weights, of a panel or of two that are multiplied together.
struct DecodedPanels {
  DecodedPanels(int64_t panels, int64_t steps) : each(steps * kStepWeights), memory(panels * each / 2) {}
  int64_t each;
  Floats memory;

  c10::BFloat16* panel(int64_t i) const { return reinterpret_cast<c10::BFloat16*>(memory.get()) + i * each; }
};

struct Product {
  at::Tensor packed;  // what `x` points to
  TilesOfX x;
  CodedWeight weight;
  int64_t rows, depth;

  // The first rows of a panel decode its weights into `decoded`, for the others too if there are such.
  void multiply(int64_t panel, const Rows& at, c10::BFloat16* decoded, Sums& sums) const {
    const CodedPanel coded = weight.panel(panel);
    if (coded.plain()) return multiply_by(Decoded{reinterpret_cast<const c10::BFloat16*>(coded.codes)}, at, sums);
    if (at.now > at.first) return multiply_by(Decoded{decoded}, at, sums);
    multiply_by(Decoding(coded, decoded, !at.few()), at, sums);
  }

  template <typename Weights>
  void multiply_by(Weights weights, const Rows& at, Sums& sums) const {
    TilesOfX tiles = x;
    tiles.data += at.now / kTileRows * x.next_rows;
    const bool two = at.last - at.now > kTileRows;
    if (x.packed())
      (two ? multiply_two<true, Weights> : multiply_one<true, Weights>)(tiles, weights, depth, sums);
    else
      (two ? multiply_two<false, Weights> : multiply_one<false, Weights>)(tiles, weights, depth, sums);
  }

  // task(panel, rows, decoded) for all rows and the first `panels` panels, in parallel; together: how many a task
  // multiplies.
  template <typename Task>
  void for_panels(int64_t panels, int64_t together, Task task) const {
    const int64_t fitting = kBlockBytes / (depth * kTileDepth * 2) / (2 * kTileRows) * (2 * kTileRows);
    const int64_t block = std::max<int64_t>(2 * kTileRows, fitting);
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (depth * kTileElements));
    in_parts(blocks_of(rows, block) * panels, grain, [&](auto take) {
      const DecodedPanels decoded(together, Rows{0, rows, 0}.few() ? 2 : depth);
      configure_tiles(std::min(rows, 2 * kTileRows));
      take([&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t first = i / panels * block;
          for (Rows at{first, std::min(first + block, rows), first}; at.now < at.last; at.now += 2 * kTileRows)
            task(i % panels, at, decoded);
        }
      });
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
  const CodedWeight coded(weight);
  const int64_t depth = coded.size.depth(), panels = coded.size.panels(), rows = x.size(0);
  TORCH_CHECK_VALUE(x.size(1) == coded.size.inputs && outputs == coded.size.outputs, "linear: x ", x.sizes(), " and ",
                    outputs, " outputs do not fit a weight [", coded.size.outputs, ", ", coded.size.inputs, "]");
  // Few rows can be read as they lie, since tiles have as many rows as there are: which is worth it where they are not
  // read often, or stay in the first-level cache.
  const bool fits = x.scalar_type() == at::kBFloat16 && rows <= 2 * kTileRows && x.size(1) % kTileDepth == 0;
  const bool as_it_lies = fits && (panels <= kFewPanels || rows * x.size(1) * 2 <= kFirstLevelBytes);
  const at::Tensor packed = as_it_lies ? x : pack_rows(x, depth);
  const auto* data = packed.const_data_ptr<c10::BFloat16>();
  const TilesOfX tiles = as_it_lies ? TilesOfX{data, kTileDepth, kTileRows * x.stride(0), 2 * x.stride(0)}
                                    : TilesOfX{data, kTileElements, depth * kTileElements, 64};
  return {packed, tiles, coded, rows, depth};
}

// y [M,N] fp32; bias [N] and residual [M,N], or null.
inline void amx_product(const at::Tensor& x, const at::Tensor& weight, const float* bias, const float* residual,
                        at::Tensor& y) {
  const int64_t outputs = y.size(1);
  const Product product = product_of(x, weight, outputs);
  float* to = y.mutable_data_ptr<float>();
  product.for_panels(product.weight.size.panels(), 1, [&](int64_t panel, const Rows& at, const DecodedPanels& decoded) {
    alignas(64) Sums sums;
    product.multiply(panel, at, decoded.panel(0), sums);
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
  const auto multiply = [&](int64_t panel, const Rows& at, c10::BFloat16* decoded, Sums& sums) {
    product.multiply(panel, at, decoded, sums);
    const int64_t count = std::min(kPanel, outputs - panel * kPanel);
    for (int64_t i = 0; bias && i < at.stop() - at.now; ++i)
      finish_row(sums + i * kPanel, bias + panel * kPanel, nullptr, sums + i * kPanel, count);
  };
  constexpr int64_t kTogether = is_gated(kActivation) ? 2 : 1;
  product.for_panels(panels, kTogether, [&](int64_t panel, const Rows& at, const DecodedPanels& decoded) {
    alignas(64) Sums sums, gated;
    multiply(panel, at, decoded.panel(0), sums);
    if constexpr (is_gated(kActivation)) multiply(panels + panel, at, decoded.panel(1), gated);
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
