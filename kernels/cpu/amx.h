// A matrix product on the AMX tiles of x86-64 processors, y = x W^T in bf16 with fp32 sums.
//
// Every element of y is one chain of TDPBF16PS instructions over K, in blocks of 32, whatever the other rows are and
// whoever computes them: that is what oneDNN, which uses the same instructions, does not promise.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "activation.h"
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
constexpr int64_t kFetchedBytes = 8192;  // of weights, ahead of their use
constexpr int64_t kFewPanels = 8;
constexpr int64_t kFirstLevelBytes = 32768;  // of x, besides weights
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
// them a little ahead, into the first-level cache; the second ones fetch the next panel, into the second. The caches'
// buffers are few, and the tiles of x pass through them too: so a few lines at a time, between the other instructions.
enum class Fetch { kNothing, kSoon, kNextPanel };

template <Fetch kFetch, int64_t kFirst, int64_t kLast>
inline void fetch_lines(const c10::BFloat16* w, int64_t ahead) {
  if constexpr (kFetch == Fetch::kNothing) return;
  const char* from = reinterpret_cast<const char*>(w) + ahead;
#pragma GCC unroll 8
  for (int64_t line = kFirst; line < kLast; ++line)
    _mm_prefetch(from + line * 64, kFetch == Fetch::kSoon ? _MM_HINT_T0 : _MM_HINT_T1);
}

// Tiles of x, where they lie: packed (see pack_row), or rows side by side.
struct TilesOfX {
  const c10::BFloat16* data;
  int64_t next_depth, next_rows, row_bytes;  // elements to the next tile in depth and in rows; bytes between its rows
};

// 32 rows by 32 outputs; w alternates the panel's two tiles.
template <Fetch kFetch>
AMX_FUNCTION void multiply_two(const TilesOfX& tiles, const c10::BFloat16* w, int64_t depth, float* sums, int64_t ahead) {
  const c10::BFloat16 *x = tiles.data, *second = x + tiles.next_rows;
  const int64_t next = tiles.next_depth, stride = tiles.row_bytes;
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  for (int64_t k = 0; k < depth; ++k, x += next, second += next, w += 2 * kTileElements) {
    fetch_lines<kFetch, 0, 4>(w, ahead);
    _tile_loadd(4, x, stride);
    fetch_lines<kFetch, 4, 8>(w, ahead);
    _tile_loadd(6, w, 64);
    fetch_lines<kFetch, 8, 12>(w, ahead);
    _tile_dpbf16ps(0, 4, 6);
    fetch_lines<kFetch, 12, 16>(w, ahead);
    _tile_loadd(7, w + kTileElements, 64);
    fetch_lines<kFetch, 16, 20>(w, ahead);
    _tile_dpbf16ps(1, 4, 7);
    fetch_lines<kFetch, 20, 24>(w, ahead);
    _tile_loadd(5, second, stride);
    fetch_lines<kFetch, 24, 28>(w, ahead);
    _tile_dpbf16ps(2, 5, 6);
    fetch_lines<kFetch, 28, 32>(w, ahead);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, kPanel * 4);
  _tile_stored(1, sums + 16, kPanel * 4);
  _tile_stored(2, sums + 16 * kPanel, kPanel * 4);
  _tile_stored(3, sums + 16 * kPanel + 16, kPanel * 4);
}

// 16 rows by 32 outputs.
template <Fetch kFetch>
AMX_FUNCTION void multiply_one(const TilesOfX& tiles, const c10::BFloat16* w, int64_t depth, float* sums, int64_t ahead) {
  const c10::BFloat16* x = tiles.data;
  const int64_t next = tiles.next_depth, stride = tiles.row_bytes;
  _tile_zero(0); _tile_zero(1);
  for (int64_t k = 0; k < depth; ++k, x += next, w += 2 * kTileElements) {
    fetch_lines<kFetch, 0, 6>(w, ahead);
    _tile_loadd(4, x, stride);
    fetch_lines<kFetch, 6, 12>(w, ahead);
    _tile_loadd(6, w, 64);
    fetch_lines<kFetch, 12, 18>(w, ahead);
    _tile_dpbf16ps(0, 4, 6);
    fetch_lines<kFetch, 18, 25>(w, ahead);
    _tile_loadd(7, w + kTileElements, 64);
    fetch_lines<kFetch, 25, 32>(w, ahead);
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

// Rows that are multiplied one after the other, and the 32 of them, or what is left, that are now.
struct Rows {
  int64_t first, last, now;

  int64_t stop() const { return std::min(now + 2 * kTileRows, last); }
};

using Sums = float[2 * kTileRows * kPanel];

template <Fetch kFetch>
void multiply_rows(const TilesOfX& tiles, bool two, const c10::BFloat16* w, int64_t depth, float* sums, int64_t ahead) {
  (two ? multiply_two<kFetch> : multiply_one<kFetch>)(tiles, w, depth, sums, ahead);
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
    if (at.now == at.first)
      multiply_rows<Fetch::kSoon>(tiles, two, w, depth, sums, kFetchedBytes);
    else if (at.now == at.first + 2 * kTileRows)
      multiply_rows<Fetch::kNextPanel>(tiles, two, w, depth, sums, depth * 4 * kTileElements);
    else
      multiply_rows<Fetch::kNothing>(tiles, two, w, depth, sums, 0);
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
