// Rows of S and what becomes of them: tiles of S that stay in the first-level cache while tokens pass.
#pragma once

#include "recurrence_block.h"

namespace ostinato {

// kLanes rows of S during a scan: s and (for a matrix decay) rate are [K, kLanes].
struct Tile {
  float* s;
  const float* rate;
  float* values;             // [3, kTokens, kLanes], see below
  const char* ahead;         // what the next task will load, as long as this tile; a step is bound by memory
  const char* far;           // the same of a later task
  int64_t head, row, count;  // its rows of the head

  // What a token of the block brings to these rows: its value as it enters the state; with a matrix decay, its step size
  // in units of which 2 is the base; what it reads, before skip and gate.
  float* v(int64_t i) const { return values + i * kLanes; }
  float* step(int64_t i) const { return values + (kTokens + i) * kLanes; }
  float* y(int64_t i) const { return values + (2 * kTokens + i) * kLanes; }
};

constexpr int64_t kValues = 3 * kTokens * kLanes;  // of a tile

using Chains = std::array<Vec, kChains>;

// Calls visit(k, chain) for all k. The chain is a constant each time, so that the sums stay in registers.
template <typename F>
INLINE void in_chains(int64_t width, F visit) {
  int64_t k = 0;
  for (; k + kChains <= width; k += kChains) {
    visit(k, std::integral_constant<int64_t, 0>());
    visit(k + 1, std::integral_constant<int64_t, 1>());
  }
  if (k < width) visit(k, std::integral_constant<int64_t, 0>());
}

inline Chains zero_chains() { return {Vec(0.f), Vec(0.f)}; }
INLINE Vec total(const Chains& x) { return x[0] + x[1]; }

// What tokens bring to a tile, before all of them: one function of many elements, none of which waits for another.
template <Decay kDecay>
void read_values(const Recurrence& p, const Tile& tile, const Block& block, int64_t first, int64_t count) {
  const auto row = [&](const Operand& x, int64_t i) { return load(x.at(first + i, tile.head) + tile.row, tile.count); };
  const Vec bias = p.step_bias ? load(p.step_bias + tile.head * p.rows + tile.row, tile.count) : Vec(0.f);
  for (int64_t i = 0; i < count; ++i) {
    const Vec x = row(p.v, i);
    if constexpr (kDecay == Decay::kMatrix) {
      Vec step = row(p.step, i);
      if (p.step_bias) step = softplus(step + bias);
      (x * step).store(tile.v(i)), (step * Vec(kLog2E)).store(tile.step(i));
    } else {
      (kDecay == Decay::kScalar ? x * Vec(block.scalar_step[i]) : x).store(tile.v(i));
    }
  }
}

// And what they read, after all of them.
inline void write_outputs(const Recurrence& p, const Tile& tile, const Block& block, int64_t first, int64_t count) {
  const auto row = [&](const Operand& x, int64_t t) { return load(x.at(t, tile.head) + tile.row, tile.count); };
  Vec skip(0.f);
  if (p.skip) skip = p.skip_per_row ? load(p.skip + tile.head * p.rows + tile.row, tile.count) : Vec(p.skip[tile.head]);
  for (int64_t i = 0, t = first; i < count; ++i, ++t) {
    Vec y = Vec::loadu(tile.y(i));
    if (p.bonus) y = at::vec::fmadd(Vec::loadu(tile.v(i)), Vec(block.bonus[i]), y);
    if (p.skip) y = at::vec::fmadd(row(p.v, t), skip, y);
    if (p.gate.data) y = y * silu(row(p.gate, t));
    store(p.y + (t * p.heads + tile.head) * p.rows + tile.row, y, tile.count);
  }
}

// exp of a step, in units of which 2 is the base, times a rate.
INLINE Vec decay_factor(Vec step, Vec rate) { return exp2_of_product(step, rate); }

// D s for one element of K: `factor` is its decay or, of a matrix decay, `rate` the lanes' rates.
template <Decay kDecay>
INLINE Vec decayed(Vec s, const float* factor, const float* rate, Vec step) {
  if constexpr (kDecay == Decay::kMatrix) return s * decay_factor(step, Vec::loadu(rate));
  return kDecay == Decay::kNone ? s : s * Vec(*factor);
}

// What tokens of a block, from token i on, bring to every row: copies of pointers, which no store of a float can change,
// so that they stay in registers.
struct TokenRows {
  TokenRows(const Block& block, int64_t i)
      : stride(block.k_stride), q(block.q + i * stride), k(block.k + i * stride), d(block.d + i * stride),
        a(block.a + i * stride), b(block.b + i * stride) {}
  int64_t stride;
  const float *q, *k, *d, *a, *b;
};

// Tiles that lie side by side, so that what is read of a token for one serves the other.
template <int64_t kTiles>
using Tiles = std::array<Tile, kTiles>;

// kCount tokens, from token i of the block, without a delta term: they follow each other on every vector of S while it
// is in a register, which changes no bit.
template <typename State, Decay kDecay, bool kBonus, int64_t kTiles, int64_t kCount>
void advance(const Recurrence& p, const Tiles<kTiles>& tiles, const Block& block, int64_t i) {
  std::array<std::array<Vec, kTiles>, kCount> v, step;
  std::array<std::array<Chains, kTiles>, kCount> y;
  std::array<float, kCount> scalars;
  std::array<float*, kTiles> s_of;
  const TokenRows rows(block, i);
#pragma GCC unroll 2
  for (int64_t j = 0; j < kTiles; ++j) s_of[j] = tiles[j].s;
#pragma GCC unroll 4
  for (int64_t n = 0; n < kCount; ++n) {
    scalars[n] = block.scalar_decay[i + n];
#pragma GCC unroll 2
    for (int64_t j = 0; j < kTiles; ++j) {
      v[n][j] = Vec::loadu(tiles[j].v(i + n));
      if constexpr (kDecay == Decay::kMatrix) step[n][j] = Vec::loadu(tiles[j].step(i + n));
      y[n][j] = zero_chains();
    }
  }
  in_chains(p.width, [&](int64_t k, auto chain) __attribute__((always_inline)) {
    std::array<Vec, kTiles> s;
#pragma GCC unroll 2
    for (int64_t j = 0; j < kTiles; ++j) s[j] = Vec::loadu(s_of[j] + k * kLanes);
#pragma GCC unroll 4
    for (int64_t n = 0; n < kCount; ++n) {
      const int64_t at = n * rows.stride + k;
      const Vec query(rows.q[at]), key(rows.k[at]);
      const float* factor = kDecay == Decay::kVector ? rows.d + at : &scalars[n];
#pragma GCC unroll 2
      for (int64_t j = 0; j < kTiles; ++j) {
        if constexpr (kBonus) y[n][j][chain] = at::vec::fmadd(s[j], query, y[n][j][chain]);
        s[j] = decayed<kDecay>(s[j], factor, tiles[j].rate + k * kLanes, step[n][j]);
        s[j] = rounded<State>(at::vec::fmadd(v[n][j], key, s[j]));
        if constexpr (!kBonus) y[n][j][chain] = at::vec::fmadd(s[j], query, y[n][j][chain]);
      }
    }
#pragma GCC unroll 2
    for (int64_t j = 0; j < kTiles; ++j) s[j].store(s_of[j] + k * kLanes);
  });
#pragma GCC unroll 4
  for (int64_t n = 0; n < kCount; ++n)
#pragma GCC unroll 2
    for (int64_t j = 0; j < kTiles; ++j) total(y[n][j]).store(tiles[j].y(i + n));
}

// The new S: `kept`, what is left of the old one, and what a token with a delta term adds; vectors of rows or columns.
template <typename State, Delta kDelta>
INLINE Vec updated(Vec kept, Vec recalled, Vec b, Vec v, Vec key) {
  if constexpr (kDelta == Delta::kGeneral) kept = at::vec::fmadd(recalled, b, kept);
  return rounded<State>(at::vec::fmadd(v, key, kept));
}

// One token with a delta term. `recalled` is S a of this token; becomes that of the next one if it is in the block.
template <typename State, Decay kDecay, Delta kDelta, int64_t kTiles, bool kHasNext>
void advance_delta(const Recurrence& p, const Tiles<kTiles>& tiles, const Block& block, int64_t i,
                   std::array<Vec, kTiles>& recalled) {
  std::array<Vec, kTiles> v, before = recalled;
  std::array<Chains, kTiles> y, u;
  std::array<float*, kTiles> s_of;
  const TokenRows rows(block, i);
  const float scalar = block.scalar_decay[i];
#pragma GCC unroll 2
  for (int64_t j = 0; j < kTiles; ++j) {
    s_of[j] = tiles[j].s;
    v[j] = Vec::loadu(tiles[j].v(i));
    if constexpr (kDelta == Delta::kBeta) v[j] = (v[j] - recalled[j]) * Vec(block.beta[i]);
    y[j] = u[j] = zero_chains();
  }
  in_chains(p.width, [&](int64_t k, auto chain) __attribute__((always_inline)) {
    const Vec query(rows.q[k]), key(rows.k[k]), following(rows.a[kHasNext ? k + rows.stride : k]);
    const float* factor = kDecay == Decay::kVector ? rows.d + k : &scalar;
#pragma GCC unroll 2
    for (int64_t j = 0; j < kTiles; ++j) {
      const Vec kept = decayed<kDecay>(Vec::loadu(s_of[j] + k * kLanes), factor, nullptr, Vec(0.f));
      const Vec s = updated<State, kDelta>(kept, before[j], Vec(rows.b[k]), v[j], key);
      s.store(s_of[j] + k * kLanes);
      y[j][chain] = at::vec::fmadd(s, query, y[j][chain]);
      if constexpr (kHasNext) u[j][chain] = at::vec::fmadd(s, following, u[j][chain]);
    }
  });
#pragma GCC unroll 2
  for (int64_t j = 0; j < kTiles; ++j) {
    total(y[j]).store(tiles[j].y(i));
    if constexpr (kHasNext) recalled[j] = total(u[j]);
  }
}

// S a for the first token of a block; the following ones get theirs from `advance_delta`.
inline Vec recall(const Tile& tile, const Block& block, int64_t width) {
  Chains u = zero_chains();
  for (int64_t k = 0; k < width; ++k)
    u[k % kChains] = at::vec::fmadd(Vec::loadu(tile.s + k * kLanes), Vec(block.a[k]), u[k % kChains]);
  return total(u);
}

template <typename State, Decay kDecay, bool kBonus, int64_t kTiles>
void advance_plain(const Recurrence& p, const Tiles<kTiles>& tiles, const Block& block, int64_t count) {
  constexpr int64_t kTogether = tokens_together(kDecay);
  int64_t i = 0;
  for (; i + kTogether <= count; i += kTogether) advance<State, kDecay, kBonus, kTiles, kTogether>(p, tiles, block, i);
  for (; i < count; ++i) advance<State, kDecay, kBonus, kTiles, 1>(p, tiles, block, i);
}

// A block of tokens, the first of which is token `first` of the batch.
template <typename State, Decay kDecay, Delta kDelta, int64_t kTiles>
void advance_block(const Recurrence& p, const Tiles<kTiles>& tiles, const Block& block, int64_t first, int64_t count) {
  for (const Tile& tile : tiles) read_values<kDecay>(p, tile, block, first, count);
  if constexpr (kDelta == Delta::kNone) {
    p.bonus ? advance_plain<State, kDecay, true, kTiles>(p, tiles, block, count)
            : advance_plain<State, kDecay, false, kTiles>(p, tiles, block, count);
  } else {
    std::array<Vec, kTiles> recalled;
    for (int64_t j = 0; j < kTiles; ++j) recalled[j] = recall(tiles[j], block, p.width);
    for (int64_t i = 0; i + 1 < count; ++i)
      advance_delta<State, kDecay, kDelta, kTiles, true>(p, tiles, block, i, recalled);
    advance_delta<State, kDecay, kDelta, kTiles, false>(p, tiles, block, count - 1, recalled);
  }
  for (const Tile& tile : tiles) write_outputs(p, tile, block, first, count);
}

}  // namespace ostinato
