// Tiles of AMX, the matrix unit of x86-64 processors: sums of products in bf16, and x in the order in which it is read.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include <c10/util/BFloat16.h>

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
constexpr int64_t kPanel = 32;  // outputs that are computed together, two tiles

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

// Tiles of x, where they lie: packed (see pack_row), or rows side by side.
struct TilesOfX {
  const c10::BFloat16* data;
  int64_t next_depth, next_rows, row_bytes;  // elements to the next tile in depth and in rows; bytes between its rows

  bool packed() const { return next_depth == kTileElements; }
};

// A tile that is not in the first-level cache is waited for: the processor looks too few instructions ahead, fewer
// still where two threads share a core, to load the next tiles while it multiplies these. So the loops below fetch x and
// weights one step ahead, a few lines at a time as the caches' buffers are few, and load tiles while they multiply
// others; weights that lie in memory are fetched into the second-level cache before. Without the fetches of x and those
// far ahead, and with every tile loaded just before its use, on two cores that others used too, products of 1 and 32
// rows read weights at 20.9 and 15.2 instead of 23.6 and 16.7 GB/s, and those of 512 rows reached 0.67 instead of 0.90
// TFLOP/s; on idle cores there was little difference.
template <int64_t kFirst, int64_t kLast>
INLINE void fetch_lines(const c10::BFloat16* from) {
#pragma GCC unroll 8
  for (int64_t line = kFirst; line < kLast; ++line)
    _mm_prefetch(reinterpret_cast<const char*>(from) + line * 64, _MM_HINT_T0);
}

// Of x, where it is packed: rows that are read as they lie stay in the first-level cache.
template <bool kPacked, int64_t kFirst, int64_t kLast>
INLINE void fetch_x(const c10::BFloat16* from) {
  if constexpr (kPacked) fetch_lines<kFirst, kLast>(from);
}

// Of the weights of the next step, and where there are such of those `far` elements on.
template <bool kFar, int64_t kFirst, int64_t kLast>
INLINE void fetch_weights(const c10::BFloat16* w, int64_t far) {
  fetch_lines<kFirst, kLast>(w + 2 * kTileElements);
  if constexpr (!kFar) return;
#pragma GCC unroll 8
  for (int64_t line = kFirst; line < kLast; ++line)
    _mm_prefetch(reinterpret_cast<const char*>(w + far) + line * 64, _MM_HINT_T1);
}

// One step of 32 in depth: tiles 4 and 6 are loaded, and those of the next step if there is one.
template <bool kPacked, bool kFar, bool kMore>
AMX_FUNCTION INLINE void step_two(const c10::BFloat16* x, const c10::BFloat16* second, int64_t next, int64_t stride,
                                  const c10::BFloat16* w, int64_t far) {
  fetch_weights<kFar, 0, 8>(w, far);
  _tile_loadd(5, second, stride);
  fetch_weights<kFar, 8, 16>(w, far);
  _tile_dpbf16ps(0, 4, 6);
  fetch_weights<kFar, 16, 24>(w, far);
  _tile_loadd(7, w + kTileElements, 64);
  fetch_weights<kFar, 24, 32>(w, far);
  _tile_dpbf16ps(2, 5, 6);
  fetch_x<kPacked, 0, 8>(x + next);
  if constexpr (kMore) _tile_loadd(6, w + 2 * kTileElements, 64);
  fetch_x<kPacked, 8, 16>(x + next);
  _tile_dpbf16ps(1, 4, 7);
  fetch_x<kPacked, 0, 8>(second + next);
  if constexpr (kMore) _tile_loadd(4, x + next, stride);
  fetch_x<kPacked, 8, 16>(second + next);
  _tile_dpbf16ps(3, 5, 7);
}

// 32 rows by 32 outputs; w alternates the panel's two tiles.
template <bool kPacked, bool kFar>
AMX_FUNCTION void multiply_two(const TilesOfX& tiles, const c10::BFloat16* w, int64_t depth, float* sums, int64_t far) {
  const c10::BFloat16 *x = tiles.data, *second = x + tiles.next_rows;
  const int64_t next = tiles.next_depth, stride = tiles.row_bytes;
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  _tile_loadd(4, x, stride);
  _tile_loadd(6, w, 64);
  for (int64_t k = 1; k < depth; ++k, x += next, second += next, w += 2 * kTileElements)
    step_two<kPacked, kFar, true>(x, second, next, stride, w, far);
  step_two<kPacked, kFar, false>(x, second, next, stride, w, far);
  _tile_stored(0, sums, kPanel * 4);
  _tile_stored(1, sums + 16, kPanel * 4);
  _tile_stored(2, sums + 16 * kPanel, kPanel * 4);
  _tile_stored(3, sums + 16 * kPanel + 16, kPanel * 4);
}

// 16 rows by 32 outputs.
template <bool kPacked, bool kFar>
AMX_FUNCTION void multiply_one(const TilesOfX& tiles, const c10::BFloat16* w, int64_t depth, float* sums, int64_t far) {
  const c10::BFloat16* x = tiles.data;
  const int64_t next = tiles.next_depth, stride = tiles.row_bytes;
  _tile_zero(0); _tile_zero(1);
  for (int64_t k = 0; k < depth; ++k, x += next, w += 2 * kTileElements) {
    fetch_weights<kFar, 0, 8>(w, far);
    _tile_loadd(4, x, stride);
    fetch_weights<kFar, 8, 16>(w, far);
    _tile_loadd(6, w, 64);
    fetch_x<kPacked, 0, 8>(x + next);
    _tile_dpbf16ps(0, 4, 6);
    fetch_weights<kFar, 16, 24>(w, far);
    _tile_loadd(7, w + kTileElements, 64);
    fetch_weights<kFar, 24, 32>(w, far);
    fetch_x<kPacked, 8, 16>(x + next);
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

#endif

}  // namespace ostinato
