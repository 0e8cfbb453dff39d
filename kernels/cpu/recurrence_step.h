// A single token: rows of S from the pool to registers and back.
#pragma once

#include "recurrence_tile.h"

namespace ostinato {

// What the next task will need comes into the first-level cache, to be written too; what a later one will, into the
// second: the first has too few buffers to wait for memory.
INLINE void fetch(const Tile& tile, int64_t at) {
  __builtin_prefetch(tile.ahead + at, 1);
  __builtin_prefetch(tile.far + at, 0, 2);
}

// count rows of the pool, of `columns` elements each and `width` apart -> [columns, kLanes]; row_major: as many floats.
template <typename State>
void load_rows(const State* from, int64_t width, int64_t count, int64_t columns, float* s, float* row_major) {
  if constexpr (std::is_same_v<State, float>) return transpose(from, width, s, kLanes, count, columns);
  for (int64_t i = 0; i < count; ++i)
    map_row(columns, [&](int64_t j, int64_t n) { store(row_major + i * columns + j, load(from + i * width + j, n), n); });
  transpose(row_major, columns, s, kLanes, count, columns);
}

// A single token without a delta term, straight from the pool to the pool: S stays as it lies, and only what is read of
// it is turned, to sum over K in the order of a scan. kCount: rows, or none if they are not a vector.
template <typename State, Decay kDecay, bool kBonus, int64_t kCount>
void step_plain(const Recurrence& p, const Tile& tile, const Block& block, const State* from, State* to) {
  alignas(64) float read[kLanes * kLanes], turned[kLanes * kLanes];
  alignas(64) State zeros[kLanes] = {}, nowhere[kLanes];
  if constexpr (kCount == 0) std::fill_n(read, kLanes * kLanes, 0.f);
  const int64_t count = kCount ? kCount : tile.count, from_width = from ? p.width : 0, to_width = to ? p.width : 0;
  const float *v = tile.v(0), *step = tile.step(0);
  const float* rate = kDecay == Decay::kMatrix ? p.rate + (tile.head * p.rows + tile.row) * p.width : nullptr;
  Chains y = zero_chains();
  for (int64_t k = 0; k < p.width; k += kLanes) {
    const int64_t columns = lanes_left(k, p.width);
    const State* source = from ? from + k : zeros;
    State* target = to ? to + k : nowhere;
    const auto advance_rows = [&](int64_t n) __attribute__((always_inline)) {
      const Vec key = load(&block.k[k], n);
      Vec decay;
      if constexpr (kDecay == Decay::kScalar) decay = Vec(block.scalar_decay[0]);
      if constexpr (kDecay == Decay::kVector) decay = load(&block.d[k], n);
#pragma GCC unroll 4
      for (int64_t i = 0; i < count; ++i) {
        fetch(tile, (i * p.width + k) * sizeof(State));
        if constexpr (kDecay == Decay::kMatrix) decay = decay_factor(Vec(step[i]), load(rate + i * p.width + k, n));
        const Vec before = load(source + i * from_width, n), kept = kDecay == Decay::kNone ? before : before * decay;
        const Vec x = rounded<State>(at::vec::fmadd(Vec(v[i]), key, kept));
        store(target + i * to_width, x, n);
        (kBonus ? before : x).store(read + i * kLanes);
      }
    };
    columns == kLanes ? advance_rows(kLanes) : advance_rows(columns);
    transpose_square(read, kLanes, turned, kLanes);
    in_chains(columns, [&](int64_t j, auto chain) __attribute__((always_inline)) {
      y[chain] = at::vec::fmadd(Vec::loadu(turned + j * kLanes), Vec(block.q[k + j]), y[chain]);
    });
  }
  total(y).store(tile.y(0));
}

template <typename State, Decay kDecay>
auto choose_plain(bool whole, bool bonus) {
  if (whole) return bonus ? step_plain<State, kDecay, true, kLanes> : step_plain<State, kDecay, false, kLanes>;
  return bonus ? step_plain<State, kDecay, true, 0> : step_plain<State, kDecay, false, 0>;
}

// A single token with a delta term: what S recalls is summed up while S is turned, what is read of it after the token
// from there. S itself is computed a second time as it lies: that takes less than turning it back.
template <typename State, Decay kDecay, Delta kDelta>
void step_delta(const Recurrence& p, const Tile& tile, const Block& block, const State* from, State* to) {
  alignas(64) float row_major[kLanes * kLanes], recalled_of[kLanes], v_of[kLanes];
  alignas(64) const State zeros[kLanes] = {};
  Chains u = zero_chains(), y = zero_chains();
  for (int64_t k = 0; k < p.width; k += kLanes) {
    const int64_t columns = lanes_left(k, p.width);
    if (from)
      load_rows(from + k, p.width, tile.count, columns, tile.s + k * kLanes, row_major);
    else
      std::fill_n(tile.s + k * kLanes, columns * kLanes, 0.f);
    in_chains(columns, [&](int64_t j, auto chain) __attribute__((always_inline)) {
      fetch(tile, (k + j) * kLineBytes);
      u[chain] = at::vec::fmadd(Vec::loadu(tile.s + (k + j) * kLanes), Vec(block.a[k + j]), u[chain]);
    });
  }
  const Vec recalled = total(u);
  Vec v = Vec::loadu(tile.v(0));
  if constexpr (kDelta == Delta::kBeta) v = (v - recalled) * Vec(block.beta[0]);
  in_chains(p.width, [&](int64_t k, auto chain) __attribute__((always_inline)) {
    const float* factor = kDecay == Decay::kVector ? &block.d[k] : &block.scalar_decay[0];
    const Vec kept = decayed<kDecay>(Vec::loadu(tile.s + k * kLanes), factor, nullptr, Vec(0.f));
    const Vec x = updated<State, kDelta>(kept, recalled, Vec(block.b[k]), v, Vec(block.k[k]));
    y[chain] = at::vec::fmadd(x, Vec(block.q[k]), y[chain]);
  });
  total(y).store(tile.y(0));
  if (!to) return;
  recalled.store(recalled_of), v.store(v_of);
  for (int64_t k = 0; k < p.width; k += kLanes) {
    const int64_t n = lanes_left(k, p.width);
    const Vec decay = kDecay == Decay::kVector ? load(&block.d[k], n) : Vec(block.scalar_decay[0]);
    const Vec b = load(&block.b[k], n), key = load(&block.k[k], n);
    for (int64_t i = 0; i < tile.count; ++i) {
      const Vec before = load(from ? from + i * p.width + k : zeros, n);
      const Vec kept = kDecay == Decay::kNone ? before : before * decay;
      store(to + i * p.width + k, updated<State, kDelta>(kept, Vec(recalled_of[i]), b, Vec(v_of[i]), key), n);
    }
  }
}

}  // namespace ostinato
