// Tiles of AMX, the matrix unit of x86-64 processors: sums of products in bf16, and x in the order in which it is read.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include "coded_weight.h"
#include "simd.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define OSTINATO_AMX 1
#define AMX_FUNCTION __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vbmi")))
#else
#define OSTINATO_AMX 0
#endif

namespace ostinato {

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
// rows took a tenth longer and those of 512 rows a third; on idle cores there was little difference.
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

// A panel's weights as they are multiplied: decoded before, or never coded.
struct Decoded {
  const c10::BFloat16* now;

  INLINE void start() const {}
  // Lines of the next step's 32.
  template <int64_t kFirst, int64_t kLast>
  INLINE void prepare() const { fetch_lines<kFirst, kLast>(now + kStepWeights); }
  INLINE void finish() const {}
  INLINE const c10::BFloat16* tile(int64_t i) const { return now + i * kTileElements; }
  INLINE void advance() { now += kStepWeights; }
};

constexpr int64_t kFarBytes = 16 * kStepBytes;  // of codes, between their use and what is fetched from memory

// A panel's weights that are decoded as they are used, one step ahead: into memory for the whole panel, or for two steps.
struct Decoding {
  Decoding(const CodedPanel& panel, c10::BFloat16* memory, bool whole)
      : codes(panel.codes), high_bytes(panel.table), outlier(panel.outliers), memory(memory), mask(whole ? -1 : 1) {}

  const uint8_t *codes, *high_bytes;  // codes: of the next step
  const Outlier* outlier;             // the next one
  c10::BFloat16* memory;
  int64_t mask, step = -1;  // mask: of steps, for their places in memory
  __m512i table, shift;

  AMX_FUNCTION INLINE void start() {
    table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(high_bytes)));
    shift = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
    prepare<0, 32>();
    finish();
    advance();
  }

  c10::BFloat16* next() const { return memory + ((step + 1) & mask) * kStepWeights; }
  INLINE const c10::BFloat16* tile(int64_t i) const { return memory + (step & mask) * kStepWeights + i * kTileElements; }
  INLINE void advance() { ++step, codes += kStepBytes; }

  // Lines of the next step's 32. Places in the table are six bits, of which two do not count.
  template <int64_t kFirst, int64_t kLast>
  AMX_FUNCTION INLINE void prepare() const {
#pragma GCC unroll 16
    for (int64_t group = kFirst / 2; group < kLast / 2; ++group) {
      const uint8_t *low_at = codes + group * kGroup, *code_at = codes + kStepWeights + group * kGroup / 2;
      const __m512i low = _mm512_load_si512(low_at);
      const __m512i both = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(code_at)));
      const __m512i high = _mm512_permutexvar_epi8(_mm512_srlv_epi64(both, shift), table);
      _mm512_store_si512(next() + group * kGroup, _mm512_unpacklo_epi8(low, high));
      _mm512_store_si512(next() + group * kGroup + kGroup / 2, _mm512_unpackhi_epi8(low, high));
      _mm_prefetch(low_at + kStepBytes, _MM_HINT_T0);
      _mm_prefetch(low_at + kFarBytes, _MM_HINT_T1);
      if (group % 2) continue;
      _mm_prefetch(code_at + kStepBytes, _MM_HINT_T0);
      _mm_prefetch(code_at + kFarBytes, _MM_HINT_T1);
    }
  }

  // Of the next step, which is decoded.
  INLINE void finish() {
    for (const int64_t first = (step + 1) * kStepWeights; outlier->at < first + kStepWeights; ++outlier)
      next()[outlier->at - first].x = outlier->bits;
    // The compiler's own declaration of a tile's load does not say that it reads memory.
    __asm__ volatile("" : : "r"(memory) : "memory");
  }
};

// One step of 32 in depth: tiles 4 and 6 are loaded, and those of the next step if there is one.
template <bool kPacked, bool kMore, typename Weights>
AMX_FUNCTION INLINE void step_two(const c10::BFloat16* x, const c10::BFloat16* second, int64_t next, int64_t stride,
                                  Weights& weights) {
  if constexpr (kMore) weights.template prepare<0, 8>();
  _tile_loadd(5, second, stride);
  if constexpr (kMore) weights.template prepare<8, 16>();
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (kMore) weights.template prepare<16, 24>();
  _tile_loadd(7, weights.tile(1), 64);
  if constexpr (kMore) weights.template prepare<24, 32>(), weights.finish(), weights.advance();
  _tile_dpbf16ps(2, 5, 6);
  fetch_x<kPacked, 0, 8>(x + next);
  if constexpr (kMore) _tile_loadd(6, weights.tile(0), 64);
  fetch_x<kPacked, 8, 16>(x + next);
  _tile_dpbf16ps(1, 4, 7);
  fetch_x<kPacked, 0, 8>(second + next);
  if constexpr (kMore) _tile_loadd(4, x + next, stride);
  fetch_x<kPacked, 8, 16>(second + next);
  _tile_dpbf16ps(3, 5, 7);
}

// 32 rows by 32 outputs.
template <bool kPacked, typename Weights>
AMX_FUNCTION void multiply_two(const TilesOfX& tiles, Weights weights, int64_t depth, float* sums) {
  const c10::BFloat16 *x = tiles.data, *second = x + tiles.next_rows;
  const int64_t next = tiles.next_depth, stride = tiles.row_bytes;
  weights.start();
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  _tile_loadd(4, x, stride);
  _tile_loadd(6, weights.tile(0), 64);
  for (int64_t k = 1; k < depth; ++k, x += next, second += next)
    step_two<kPacked, true>(x, second, next, stride, weights);
  step_two<kPacked, false>(x, second, next, stride, weights);
  _tile_stored(0, sums, kPanel * 4);
  _tile_stored(1, sums + 16, kPanel * 4);
  _tile_stored(2, sums + 16 * kPanel, kPanel * 4);
  _tile_stored(3, sums + 16 * kPanel + 16, kPanel * 4);
}

template <bool kPacked, bool kMore, typename Weights>
AMX_FUNCTION INLINE void step_one(const c10::BFloat16* x, int64_t next, int64_t stride, Weights& weights) {
  if constexpr (kMore) weights.template prepare<0, 8>();
  _tile_loadd(4, x, stride);
  if constexpr (kMore) weights.template prepare<8, 16>();
  _tile_loadd(6, weights.tile(0), 64);
  fetch_x<kPacked, 0, 8>(x + next);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (kMore) weights.template prepare<16, 24>();
  _tile_loadd(7, weights.tile(1), 64);
  if constexpr (kMore) weights.template prepare<24, 32>(), weights.finish(), weights.advance();
  fetch_x<kPacked, 8, 16>(x + next);
  _tile_dpbf16ps(1, 4, 7);
}

// 16 rows by 32 outputs.
template <bool kPacked, typename Weights>
AMX_FUNCTION void multiply_one(const TilesOfX& tiles, Weights weights, int64_t depth, float* sums) {
  const c10::BFloat16* x = tiles.data;
  const int64_t next = tiles.next_depth, stride = tiles.row_bytes;
  weights.start();
  _tile_zero(0); _tile_zero(1);
  for (int64_t k = 1; k < depth; ++k, x += next) step_one<kPacked, true>(x, next, stride, weights);
  step_one<kPacked, false>(x, next, stride, weights);
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
