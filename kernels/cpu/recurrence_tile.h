// The recurrence of kernels/recurrence.py over packed sequences, in place by slot.
//
// Every row v of S [V,K] evolves by itself, so rows are the vector lanes: a task takes a few rows of one head of one
// sequence, keeps them transposed, as [K, lanes], in its first-level cache and walks all tokens ("head outside, token
// inside"). Sums over K need no sum over lanes that way, and have one fixed order: kChains partial sums, k by k. What
// depends on the token but not on the row (exp of decays, normalised keys) is prepared once for a block of tokens.
#pragma once

#include <array>
#include <type_traits>

#include "packed.h"
#include "simd.h"

namespace ostinato {

enum class Decay { kNone, kScalar, kVector, kMatrix };
enum class Delta { kNone, kBeta, kGeneral };

constexpr int64_t kTokens = 16;       // tokens that are prepared at a time
// Of these, tokens that meet a vector of S while it is in a register, and tiles that share what is read of a token: as
// many as there are registers for, of which exponentials need some too.
constexpr bool kManyRegisters = kLanes == 16;
constexpr int64_t tokens_together(Decay decay) { return decay == Decay::kMatrix || !kManyRegisters ? 2 : 4; }
constexpr int64_t tiles_together(Decay decay) { return decay == Decay::kMatrix || !kManyRegisters ? 1 : 2; }
constexpr int64_t kChains = 2;        // partial sums of a sum over K
constexpr int64_t kTileBytes = 16384; // of S, kept in the first-level cache
constexpr int64_t kLineBytes = kLanes * sizeof(float);
constexpr float kNormalizeEps = 1e-6f, kLog2E = 1.44269504f;

struct Recurrence {
  Operand q, k, v, decay, step, beta, a, b, gate;  // decay: factors, per head or per element of K
  const float *rate, *step_bias, *bonus, *skip;    // parameters, or null; rate and its step_bias: of a matrix decay
  bool skip_per_row, normalize;
  float scale;
  Packed batch;
  int64_t heads, rows, width;  // rows = V, width = K
  void* state;                 // [slots,H,V,K]
  float* y;                    // [T,H,V]
};

// Everything that a block of tokens shares over the rows of one head: [kTokens, K], or [kTokens].
struct Block {
  explicit Block(int64_t width)
      : k_stride(width), memory(5 * kTokens * width), q(memory.get()), k(q + kTokens * width), d(k + kTokens * width),
        a(d + kTokens * width), b(a + kTokens * width) {}
  int64_t k_stride;
  Floats memory;
  float *q, *k, *d, *a, *b;
  std::array<float, kTokens> scalar_decay, scalar_step, beta, bonus;
};

inline void scale_row(const float* from, float* to, int64_t width, bool normalize, float scale) {
  if (normalize) {
    const float squares = sum_row(width, [&](int64_t i, int64_t n) { return load(from + i, n) * load(from + i, n); });
    scale /= std::sqrt(squares + kNormalizeEps);
  }
  map_row(width, [&](int64_t i, int64_t n) { store(to + i, load(from + i, n) * Vec(scale), n); });
}

template <Decay kDecay, Delta kDelta>
void prepare(const Recurrence& p, int64_t head, int64_t first, int64_t count, Block& block) {
  const int64_t width = p.width;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t t = first + i, at = i * width;
    scale_row(p.q.at(t, head), &block.q[at], width, p.normalize, p.scale);
    scale_row(p.k.at(t, head), &block.k[at], width, p.normalize, 1.f);
    if constexpr (kDecay == Decay::kVector) std::copy_n(p.decay.at(t, head), width, &block.d[at]);
    if constexpr (kDecay == Decay::kScalar) {
      block.scalar_decay[i] = *p.decay.at(t, head);
      block.scalar_step[i] = p.step.data ? *p.step.at(t, head) : 1.f;
    }
    if constexpr (kDelta == Delta::kGeneral) {
      std::copy_n(p.a.at(t, head), width, &block.a[at]);
      std::copy_n(p.b.at(t, head), width, &block.b[at]);
    }
    if constexpr (kDelta == Delta::kBeta) {
      block.beta[i] = *p.beta.at(t, head);
      // What the decayed state recalls for k is what the state recalls for D k.
      map_row(width, [&](int64_t j, int64_t n) {
        Vec x = load(&block.k[at + j], n);
        if constexpr (kDecay == Decay::kVector) x = x * load(&block.d[at + j], n);
        if constexpr (kDecay == Decay::kScalar) x = x * Vec(block.scalar_decay[i]);
        store(&block.a[at + j], x, n);
      });
    }
    if (p.bonus)
      block.bonus[i] = sum_row(width, [&](int64_t j, int64_t n) {
        return load(p.bonus + head * width + j, n) * load(&block.k[at + j], n) * load(&block.q[at + j], n);
      });
  }
}

// kLanes rows of S during a scan: s and (for a matrix decay) rate are [K, kLanes].
struct Tile {
  float* s;
  const float* rate;
  const char* ahead;  // what the next task will load, as long as this tile; a step is bound by memory
  int64_t head, row, count;  // its rows of the head
};

using Chains = std::array<Vec, kChains>;

// Calls visit(k, chain) for all k. The chain is a constant each time, so that the sums stay in registers.
template <typename F>
__attribute__((always_inline)) void in_chains(int64_t width, F visit) {
  int64_t k = 0;
  for (; k + kChains <= width; k += kChains) {
    visit(k, std::integral_constant<int64_t, 0>());
    visit(k + 1, std::integral_constant<int64_t, 1>());
  }
  if (k < width) visit(k, std::integral_constant<int64_t, 0>());
}

inline Chains zero_chains() { return {Vec(0.f), Vec(0.f)}; }
inline Vec total(const Chains& x) { return x[0] + x[1]; }

// What a token brings to the rows of a tile: its value as read (x), as it enters the state (v), and the step size in
// units of which 2 is the base.
struct Values {
  Vec x, v, step;
};

template <Decay kDecay>
Values read_values(const Recurrence& p, const Tile& tile, const Block& block, int64_t i, int64_t t) {
  const Vec x = load(p.v.at(t, tile.head) + tile.row, tile.count);
  if constexpr (kDecay == Decay::kMatrix) {
    Vec step = load(p.step.at(t, tile.head) + tile.row, tile.count);
    if (p.step_bias) step = softplus(step + load(p.step_bias + tile.head * p.rows + tile.row, tile.count));
    return {x, x * step, step * Vec(kLog2E)};
  }
  if constexpr (kDecay == Decay::kScalar) return {x, x * Vec(block.scalar_step[i]), Vec(0.f)};
  return {x, x, Vec(0.f)};
}

inline void write_output(const Recurrence& p, const Tile& tile, const Block& block, int64_t i, int64_t t, const Values& values,
                  Vec y) {
  if (p.bonus) y = at::vec::fmadd(values.v, Vec(block.bonus[i]), y);
  if (p.skip) {
    const Vec skip = p.skip_per_row ? load(p.skip + tile.head * p.rows + tile.row, tile.count) : Vec(p.skip[tile.head]);
    y = at::vec::fmadd(values.x, skip, y);
  }
  if (p.gate.data) y = y * silu(load(p.gate.at(t, tile.head) + tile.row, tile.count));
  store(p.y + (t * p.heads + tile.head) * p.rows + tile.row, y, tile.count);
}

// D s for one element of K: `at` is its place in the block, `rate` the lanes' rates.
template <Decay kDecay>
Vec decayed(Vec s, const Block& block, int64_t i, int64_t at, const float* rate, Vec step) {
  if constexpr (kDecay == Decay::kScalar) return s * Vec(block.scalar_decay[i]);
  if constexpr (kDecay == Decay::kVector) return s * Vec(block.d[at]);
  if constexpr (kDecay == Decay::kMatrix) return s * exp2(step * Vec::loadu(rate));
  return s;
}

// Tiles that lie side by side, so that what is read of a token for one serves the other.
template <int64_t kTiles>
using Tiles = std::array<Tile, kTiles>;

// kCount tokens, from token i of the block (token t of the batch), without a delta term: they follow each other on
// every vector of S while it is in a register, which changes no bit.
template <typename State, Decay kDecay, bool kBonus, int64_t kTiles, int64_t kCount>
void advance(const Recurrence& p, const Tiles<kTiles>& tiles, const Block& block, int64_t i, int64_t t) {
  std::array<std::array<Values, kTiles>, kCount> values;
  std::array<std::array<Chains, kTiles>, kCount> y;
#pragma GCC unroll 4
  for (int64_t n = 0; n < kCount; ++n)
#pragma GCC unroll 2
    for (int64_t j = 0; j < kTiles; ++j) {
      values[n][j] = read_values<kDecay>(p, tiles[j], block, i + n, t + n);
      y[n][j] = zero_chains();
    }
  in_chains(p.width, [&](int64_t k, auto chain) __attribute__((always_inline)) {
    std::array<Vec, kTiles> s;
#pragma GCC unroll 2
    for (int64_t j = 0; j < kTiles; ++j) s[j] = Vec::loadu(tiles[j].s + k * kLanes);
#pragma GCC unroll 4
    for (int64_t n = 0; n < kCount; ++n) {
      const int64_t at = (i + n) * block.k_stride + k;
      const Vec query(block.q[at]), key(block.k[at]);
#pragma GCC unroll 2
      for (int64_t j = 0; j < kTiles; ++j) {
        if constexpr (kBonus) y[n][j][chain] = at::vec::fmadd(s[j], query, y[n][j][chain]);
        s[j] = decayed<kDecay>(s[j], block, i + n, at, tiles[j].rate + k * kLanes, values[n][j].step);
        s[j] = rounded<State>(at::vec::fmadd(values[n][j].v, key, s[j]));
        if constexpr (!kBonus) y[n][j][chain] = at::vec::fmadd(s[j], query, y[n][j][chain]);
      }
    }
#pragma GCC unroll 2
    for (int64_t j = 0; j < kTiles; ++j) s[j].store(tiles[j].s + k * kLanes);
  });
#pragma GCC unroll 4
  for (int64_t n = 0; n < kCount; ++n)
#pragma GCC unroll 2
    for (int64_t j = 0; j < kTiles; ++j)
      write_output(p, tiles[j], block, i + n, t + n, values[n][j], total(y[n][j]));
}

// One token with a delta term. `recalled` is S a of this token; becomes that of the next one if it is in the block.
template <typename State, Decay kDecay, Delta kDelta, int64_t kTiles>
void advance_delta(const Recurrence& p, const Tiles<kTiles>& tiles, const Block& block, int64_t i, int64_t t,
                   bool has_next, std::array<Vec, kTiles>& recalled) {
  std::array<Values, kTiles> values;
  std::array<Vec, kTiles> v;
  std::array<Chains, kTiles> y, u;
#pragma GCC unroll 2
  for (int64_t j = 0; j < kTiles; ++j) {
    values[j] = read_values<kDecay>(p, tiles[j], block, i, t);
    v[j] = kDelta == Delta::kBeta ? (values[j].x - recalled[j]) * Vec(block.beta[i]) : values[j].v;
    y[j] = u[j] = zero_chains();
  }
  const int64_t next = has_next ? block.k_stride : 0;
  in_chains(p.width, [&](int64_t k, auto chain) __attribute__((always_inline)) {
    const int64_t at = i * block.k_stride + k;
    const Vec query(block.q[at]), key(block.k[at]), following(block.a[at + next]);
#pragma GCC unroll 2
    for (int64_t j = 0; j < kTiles; ++j) {
      Vec s = decayed<kDecay>(Vec::loadu(tiles[j].s + k * kLanes), block, i, at, nullptr, Vec(0.f));
      if constexpr (kDelta == Delta::kGeneral) s = at::vec::fmadd(recalled[j], Vec(block.b[at]), s);
      s = rounded<State>(at::vec::fmadd(v[j], key, s));
      s.store(tiles[j].s + k * kLanes);
      y[j][chain] = at::vec::fmadd(s, query, y[j][chain]);
      u[j][chain] = at::vec::fmadd(s, following, u[j][chain]);
    }
  });
#pragma GCC unroll 2
  for (int64_t j = 0; j < kTiles; ++j) {
    write_output(p, tiles[j], block, i, t, values[j], total(y[j]));
    recalled[j] = total(u[j]);
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
void advance_plain(const Recurrence& p, const Tiles<kTiles>& tiles, const Block& block, int64_t first, int64_t count) {
  constexpr int64_t kTogether = tokens_together(kDecay);
  int64_t i = 0;
  for (; i + kTogether <= count; i += kTogether)
    advance<State, kDecay, kBonus, kTiles, kTogether>(p, tiles, block, i, first + i);
  for (; i < count; ++i) advance<State, kDecay, kBonus, kTiles, 1>(p, tiles, block, i, first + i);
}

template <typename State, Decay kDecay, Delta kDelta, int64_t kTiles>
void advance_block(const Recurrence& p, const Tiles<kTiles>& tiles, const Block& block, int64_t first, int64_t count) {
  if constexpr (kDelta == Delta::kNone) {
    p.bonus ? advance_plain<State, kDecay, true, kTiles>(p, tiles, block, first, count)
            : advance_plain<State, kDecay, false, kTiles>(p, tiles, block, first, count);
  } else {
    std::array<Vec, kTiles> recalled;
    for (int64_t j = 0; j < kTiles; ++j) recalled[j] = recall(tiles[j], block, p.width);
    for (int64_t i = 0; i < count; ++i)
      advance_delta<State, kDecay, kDelta, kTiles>(p, tiles, block, i, first + i, i + 1 < count, recalled);
  }
}

}  // namespace ostinato
