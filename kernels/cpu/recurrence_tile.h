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
// Of these, tokens that meet a vector of S while it is in a register; exponentials need registers too.
constexpr int64_t tokens_together(Decay decay) { return decay == Decay::kMatrix ? 2 : 4; }
constexpr int64_t kChains = 4;        // partial sums of a sum over K
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
    visit(k + 2, std::integral_constant<int64_t, 2>());
    visit(k + 3, std::integral_constant<int64_t, 3>());
  }
  if (k < width) visit(k, std::integral_constant<int64_t, 0>());
  if (k + 1 < width) visit(k + 1, std::integral_constant<int64_t, 1>());
  if (k + 2 < width) visit(k + 2, std::integral_constant<int64_t, 2>());
}

inline Chains zero_chains() { return {Vec(0.f), Vec(0.f), Vec(0.f), Vec(0.f)}; }
inline Vec total(const Chains& x) { return (x[0] + x[1]) + (x[2] + x[3]); }

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

// kCount tokens, from token i of the block (token t of the batch), without a delta term: they follow each other on
// every vector of S while it is in a register, which changes no bit.
template <typename State, Decay kDecay, bool kBonus, int64_t kCount>
void advance(const Recurrence& p, const Tile& tile, const Block& block, int64_t i, int64_t t) {
  std::array<Values, kCount> values;
  std::array<Chains, kCount> y;
#pragma GCC unroll 4
  for (int64_t n = 0; n < kCount; ++n) {
    values[n] = read_values<kDecay>(p, tile, block, i + n, t + n);
    y[n] = zero_chains();
  }
  const auto visit = [&](int64_t k, auto chain) __attribute__((always_inline)) {
    Vec s = Vec::loadu(tile.s + k * kLanes);
#pragma GCC unroll 4
    for (int64_t n = 0; n < kCount; ++n) {
      const int64_t at = (i + n) * block.k_stride + k;
      if constexpr (kBonus) y[n][chain] = at::vec::fmadd(s, Vec(block.q[at]), y[n][chain]);
      s = decayed<kDecay>(s, block, i + n, at, tile.rate + k * kLanes, values[n].step);
      s = rounded<State>(at::vec::fmadd(values[n].v, Vec(block.k[at]), s));
      if constexpr (!kBonus) y[n][chain] = at::vec::fmadd(s, Vec(block.q[at]), y[n][chain]);
    }
    s.store(tile.s + k * kLanes);
  };
  in_chains(p.width, visit);
#pragma GCC unroll 4
  for (int64_t n = 0; n < kCount; ++n)
    write_output(p, tile, block, i + n, t + n, values[n], total(y[n]));
}

// One token with a delta term. `recalled` is S a of this token; returns that of the next one if it is in the block.
template <typename State, Decay kDecay, Delta kDelta>
Vec advance_delta(const Recurrence& p, const Tile& tile, const Block& block, int64_t i, int64_t t, Vec recalled,
                  bool has_next) {
  const Values values = read_values<kDecay>(p, tile, block, i, t);
  const Vec v = kDelta == Delta::kBeta ? (values.x - recalled) * Vec(block.beta[i]) : values.v;
  const int64_t next = has_next ? block.k_stride : 0;
  Chains y = zero_chains(), u = zero_chains();
  const auto visit = [&](int64_t k, auto chain) __attribute__((always_inline)) {
    const int64_t at = i * block.k_stride + k;
    Vec s = decayed<kDecay>(Vec::loadu(tile.s + k * kLanes), block, i, at, nullptr, Vec(0.f));
    if constexpr (kDelta == Delta::kGeneral) s = at::vec::fmadd(recalled, Vec(block.b[at]), s);
    s = rounded<State>(at::vec::fmadd(v, Vec(block.k[at]), s));
    s.store(tile.s + k * kLanes);
    y[chain] = at::vec::fmadd(s, Vec(block.q[at]), y[chain]);
    u[chain] = at::vec::fmadd(s, Vec(block.a[at + next]), u[chain]);
  };
  in_chains(p.width, visit);
  write_output(p, tile, block, i, t, values, total(y));
  return total(u);
}

// S a for the first token of a block; the following ones get theirs from `advance_delta`.
inline Vec recall(const Tile& tile, const Block& block, int64_t width) {
  Chains u = zero_chains();
  for (int64_t k = 0; k < width; ++k)
    u[k % kChains] = at::vec::fmadd(Vec::loadu(tile.s + k * kLanes), Vec(block.a[k]), u[k % kChains]);
  return total(u);
}

template <typename State, Decay kDecay, bool kBonus>
void advance_plain(const Recurrence& p, const Tile& tile, const Block& block, int64_t first, int64_t count) {
  constexpr int64_t kTogether = tokens_together(kDecay);
  int64_t i = 0;
  for (; i + kTogether <= count; i += kTogether) advance<State, kDecay, kBonus, kTogether>(p, tile, block, i, first + i);
  for (; i < count; ++i) advance<State, kDecay, kBonus, 1>(p, tile, block, i, first + i);
}

template <typename State, Decay kDecay, Delta kDelta>
void advance_block(const Recurrence& p, const Tile& tile, const Block& block, int64_t first, int64_t count) {
  if constexpr (kDelta == Delta::kNone) {
    p.bonus ? advance_plain<State, kDecay, true>(p, tile, block, first, count)
            : advance_plain<State, kDecay, false>(p, tile, block, first, count);
  } else {
    Vec recalled = recall(tile, block, p.width);
    for (int64_t i = 0; i < count; ++i)
      recalled = advance_delta<State, kDecay, kDelta>(p, tile, block, i, first + i, recalled, i + 1 < count);
  }
}

}  // namespace ostinato
