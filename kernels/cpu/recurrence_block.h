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

}  // namespace ostinato
