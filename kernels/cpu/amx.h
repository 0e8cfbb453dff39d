// A matrix product on the AMX tiles of x86-64 processors, y = x W^T in bf16 with fp32 sums.
//
// Every element of y is one chain of TDPBF16PS instructions over K, in blocks of 32, whatever the other rows are and
// whoever computes them: that is what oneDNN, which uses the same instructions, does not promise.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "dtypes.h"
#include "finish.h"
#include "parallel.h"
#include "simd.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define OSTINATO_AMX 1
#define AMX_FUNCTION __attribute__((target("amx-tile,amx-bf16")))
#else
#define OSTINATO_AMX 0
#endif

namespace ostinato {

constexpr int64_t kTileRows = 16, kTileDepth = 32;  // of a tile of x: 16 rows of 32 bf16, which is 1 KiB
constexpr int64_t kTileElements = kTileRows * kTileDepth;
constexpr int64_t kPanel = 32;            // outputs that are computed together, two tiles
constexpr int64_t kPrefetchBytes = 16384;  // of weights, ahead of their use
constexpr int64_t kBlockBytes = 1 << 20;  // of x that meets every panel before the next rows do

inline int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

#if OSTINATO_AMX

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0-3: sums (2 x 2), 4-5: x, 6-7: weights; of 64 bytes in each of 16 rows, or as many rows as x has.
AMX_FUNCTION inline void configure_tiles(int64_t rows) {
  TileConfig config;
  const auto first = static_cast<uint8_t>(std::min(rows, kTileRows));
  const auto second = static_cast<uint8_t>(std::clamp<int64_t>(rows - kTileRows, 1, kTileRows));
  const uint8_t counts[8] = {first, first, second, second, first, second, 16, 16};
  for (int i = 0; i < 8; ++i) {
    config.bytes_per_row[i] = 64;
    config.rows[i] = counts[i];
  }
  // The compiler's own declaration of the instruction says that it reads eight bytes only.
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

AMX_FUNCTION inline void release_tiles() { _tile_release(); }

// The processor's own prefetching is too late for tiles. The first rows of a panel wait for its weights, so they fetch
// them a little ahead; the second ones fetch the next panel. Into the second-level cache: the first one's buffers are few,
// and the tiles of x pass through them too. For the same reason a few lines at a time, between the other instructions.
template <bool kPrefetch, int64_t kFirst, int64_t kLast>
inline void fetch_lines(const c10::BFloat16* w, int64_t ahead) {
  if constexpr (!kPrefetch) return;
  const char* from = reinterpret_cast<const char*>(w) + ahead;
#pragma GCC unroll 8
  for (int64_t line = kFirst; line < kLast; ++line) _mm_prefetch(from + line * 64, _MM_HINT_T1);
}

// 32 rows by 32 outputs; x and x + x_stride are two rows of tiles, w alternates the panel's two tiles.
template <bool kPrefetch>
AMX_FUNCTION void multiply_two(const c10::BFloat16* x, int64_t x_stride, const c10::BFloat16* w, int64_t depth, float* sums,
                                int64_t ahead) {
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  for (int64_t k = 0; k < depth; ++k, x += kTileElements, w += 2 * kTileElements) {
    fetch_lines<kPrefetch, 0, 4>(w, ahead);
    _tile_loadd(4, x, 64);
    fetch_lines<kPrefetch, 4, 8>(w, ahead);
    _tile_loadd(6, w, 64);
    fetch_lines<kPrefetch, 8, 12>(w, ahead);
    _tile_dpbf16ps(0, 4, 6);
    fetch_lines<kPrefetch, 12, 16>(w, ahead);
    _tile_loadd(7, w + kTileElements, 64);
    fetch_lines<kPrefetch, 16, 20>(w, ahead);
    _tile_dpbf16ps(1, 4, 7);
    fetch_lines<kPrefetch, 20, 24>(w, ahead);
    _tile_loadd(5, x + x_stride, 64);
    fetch_lines<kPrefetch, 24, 28>(w, ahead);
    _tile_dpbf16ps(2, 5, 6);
    fetch_lines<kPrefetch, 28, 32>(w, ahead);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, kPanel * 4);
  _tile_stored(1, sums + 16, kPanel * 4);
  _tile_stored(2, sums + 16 * kPanel, kPanel * 4);
  _tile_stored(3, sums + 16 * kPanel + 16, kPanel * 4);
}

// 16 rows by 32 outputs.
template <bool kPrefetch>
AMX_FUNCTION void multiply_one(const c10::BFloat16* x, const c10::BFloat16* w, int64_t depth, float* sums,
                                int64_t ahead) {
  _tile_zero(0); _tile_zero(1);
  for (int64_t k = 0; k < depth; ++k, x += kTileElements, w += 2 * kTileElements) {
    fetch_lines<kPrefetch, 0, 6>(w, ahead);
    _tile_loadd(4, x, 64);
    fetch_lines<kPrefetch, 6, 12>(w, ahead);
    _tile_loadd(6, w, 64);
    fetch_lines<kPrefetch, 12, 18>(w, ahead);
    _tile_dpbf16ps(0, 4, 6);
    fetch_lines<kPrefetch, 18, 25>(w, ahead);
    _tile_loadd(7, w + kTileElements, 64);
    fetch_lines<kPrefetch, 25, 32>(w, ahead);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, sums, kPanel * 4);
  _tile_stored(1, sums + 16, kPanel * 4);
}

// x [M,K] of any dtype -> bf16 tiles [M / 16, depth, 16, 32], zeros at the ends.
template <typename T>
void pack_row(const T* from, int64_t row, int64_t width, int64_t depth, c10::BFloat16* to) {
  c10::BFloat16* tiles = to + (row / kTileRows * depth) * kTileElements + row % kTileRows * kTileDepth;
  for (int64_t k = 0; k < depth; ++k, tiles += kTileElements) {
    const int64_t count = std::min(kTileDepth, width - k * kTileDepth);
    map_row(count, [&](int64_t i, int64_t n) { store(tiles + i, load(from + k * kTileDepth + i, n), n); });
    std::fill(tiles + count, tiles + kTileDepth, c10::BFloat16(0.f));
  }
}

struct Product {
  const c10::BFloat16* x;           // [M / 16, depth, 16, 32], see pack_rows
  const c10::BFloat16* weight;      // [N / 32, depth, 2, 16, 32], see kernels/linear.py
  const float *bias, *residual;     // [N], [M,N], or null
  float* y;                         // [M,N]
  int64_t rows, outputs, depth;

  void panel(int64_t panel, int64_t first, int64_t last) const {
    alignas(64) float sums[32 * kPanel];
    const c10::BFloat16* w = weight + panel * depth * 2 * kTileElements;
    for (int64_t row = first; row < last; row += 2 * kTileRows) {
      const c10::BFloat16* tiles = x + row / kTileRows * depth * kTileElements;
      const bool two = last - row > kTileRows, is_first = row == first, is_second = row == first + 2 * kTileRows;
      const int64_t ahead = is_first ? kPrefetchBytes : is_second ? depth * 4 * kTileElements : 0;
      if (two)
        (ahead ? multiply_two<true> : multiply_two<false>)(tiles, depth * kTileElements, w, depth, sums, ahead);
      else
        (ahead ? multiply_one<true> : multiply_one<false>)(tiles, w, depth, sums, ahead);
      const int64_t column = panel * kPanel, count = std::min(kPanel, outputs - column);
      for (int64_t i = row; i < std::min(row + 2 * kTileRows, last); ++i)
        finish_row(sums + (i - row) * kPanel, bias ? bias + column : nullptr,
                   residual ? residual + i * outputs + column : nullptr, y + i * outputs + column, count);
    }
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

inline void amx_product(const at::Tensor& x, const at::Tensor& weight, const float* bias, const float* residual,
                 at::Tensor& y) {
  const int64_t depth = weight.size(1), panels = weight.size(0), rows = x.size(0);
  TORCH_CHECK_VALUE(blocks_of(x.size(1), kTileDepth) == depth && blocks_of(y.size(1), kPanel) == panels,
                    "linear: x ", x.sizes(), " and y ", y.sizes(), " do not fit the weight");
  const at::Tensor packed = pack_rows(x, depth);
  const Product product{packed.const_data_ptr<c10::BFloat16>(), weight.const_data_ptr<c10::BFloat16>(), bias, residual,
                        y.mutable_data_ptr<float>(), rows, y.size(1), depth};
  const int64_t fitting = kBlockBytes / (depth * kTileDepth * 2) / (2 * kTileRows) * (2 * kTileRows);
  const int64_t block = std::max<int64_t>(2 * kTileRows, fitting);
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (depth * kTileElements));
  at::parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) {
    configure_tiles(std::min(rows, 2 * kTileRows));
    for (int64_t first = 0; first < rows; first += block)
      for (int64_t panel = begin; panel < end; ++panel) product.panel(panel, first, std::min(first + block, rows));
    release_tiles();
  });
}

#else

inline void amx_product(const at::Tensor&, const at::Tensor&, const float*, const float*, at::Tensor&) {
  TORCH_CHECK(false, "AMX needs an x86-64 processor");
}

#endif

}  // namespace ostinato
