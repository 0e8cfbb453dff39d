// The recurrence S' = D * S + (S a) b^T + v k^T, y = S' q over packed sequences, in place by slot.
//
// S is [V,K] with K contiguous. Every row v of S evolves by itself, so a task is a tile of rows of one head of one
// sequence: it keeps its tile in cache and walks all tokens ("head outside, token inside").
#pragma once

#include <vector>

#include "packed.h"
#include "rows.h"

namespace ostinato {

enum class Decay { kNone, kVector, kMatrix };

struct Recurrence {
  const float *q, *k, *v;  // [T,H,K], [T,H,K], [T,H,V]
  const float* decay;      // kVector: factors [T,H,K]; kMatrix: rates [H,V,K]
  const float* step;       // kMatrix: step sizes [T,H,V]; D = exp(step * rate)
  const float *a, *b;      // [T,H,K] each, or null: no delta term
  float* state;            // [slots,H,V,K]
  float* y;                // [T,H,V]
  const int32_t *slots, *starts;
  int64_t sequences, heads, rows, width;  // rows = V, width = K
};

constexpr int64_t kTileRows = 16;

// One token for one row s of S; returns that row's output.
template <Decay kDecay, bool kDelta>
float advance_row(const Recurrence& p, int64_t head, int64_t row, int64_t t, float* s) {
  const int64_t at_k = (t * p.heads + head) * p.width, at_v = (t * p.heads + head) * p.rows + row;
  const Vec v(p.v[at_v]);
  Vec u(0.f);
  if constexpr (kDelta)
    u = Vec(sum_row(p.width, [&](int64_t i, int64_t n) { return load(s + i, n) * load(p.a + at_k + i, n); }));
  return sum_row(p.width, [&](int64_t i, int64_t n) {
    Vec x = load(s + i, n);
    if constexpr (kDecay == Decay::kVector) x = x * load(p.decay + at_k + i, n);
    if constexpr (kDecay == Decay::kMatrix)
      x = x * exp(load(p.decay + (head * p.rows + row) * p.width + i, n) * Vec(p.step[at_v]));
    if constexpr (kDelta) x = at::vec::fmadd(u, load(p.b + at_k + i, n), x);
    x = at::vec::fmadd(v, load(p.k + at_k + i, n), x);
    store(s + i, x, n);
    return x * load(p.q + at_k + i, n);
  });
}

template <Decay kDecay, bool kDelta>
void run_tile(const Recurrence& p, int64_t sequence, int64_t head, int64_t tile, float* zeros) {
  const int64_t slot = p.slots[sequence];
  const int64_t first = tile * kTileRows, last = std::min(first + kTileRows, p.rows);
  // A padding sequence starts from zero and leaves nothing behind.
  float* s = slot < 0 ? zeros : p.state + ((slot * p.heads + head) * p.rows + first) * p.width;
  if (slot < 0) std::fill(zeros, zeros + (last - first) * p.width, 0.f);
  for (int64_t t = p.starts[sequence]; t < p.starts[sequence + 1]; ++t)
    for (int64_t row = first; row < last; ++row)
      p.y[(t * p.heads + head) * p.rows + row] =
          advance_row<kDecay, kDelta>(p, head, row, t, s + (row - first) * p.width);
}

template <Decay kDecay, bool kDelta>
void run_all(const Recurrence& p) {
  const int64_t tiles = (p.rows + kTileRows - 1) / kTileRows, tasks = p.sequences * p.heads * tiles;
  const int64_t tokens_per_sequence = p.sequences ? 1 + p.starts[p.sequences] / p.sequences : 1;
  at::parallel_for(0, tasks, rows_per_task(kTileRows * p.width * tokens_per_sequence), [&](int64_t begin, int64_t end) {
    std::vector<float> zeros(kTileRows * p.width);
    for (int64_t task = begin; task < end; ++task)
      run_tile<kDecay, kDelta>(p, task / tiles / p.heads, task / tiles % p.heads, task % tiles, zeros.data());
  });
}

inline const float* data_or_null(const std::optional<at::Tensor>& x) {
  return x ? x->const_data_ptr<float>() : nullptr;
}

inline at::Tensor recurrence_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& state,
                                const at::Tensor& slots, const at::Tensor& starts,
                                const std::optional<at::Tensor>& decay, const std::optional<at::Tensor>& step,
                                const std::optional<at::Tensor>& a, const std::optional<at::Tensor>& b) {
  check_packed(slots, starts, state.size(0), q.size(0));
  at::Tensor y = at::empty_like(v);
  const Recurrence p{q.const_data_ptr<float>(), k.const_data_ptr<float>(), v.const_data_ptr<float>(),
                     data_or_null(decay), data_or_null(step), data_or_null(a), data_or_null(b),
                     state.mutable_data_ptr<float>(), y.mutable_data_ptr<float>(),
                     slots.const_data_ptr<int32_t>(), starts.const_data_ptr<int32_t>(),
                     slots.numel(), q.size(1), v.size(2), q.size(2)};
  const Decay kind = !decay ? Decay::kNone : step ? Decay::kMatrix : Decay::kVector;
  if (a) {
    TORCH_CHECK(kind != Decay::kMatrix, "a matrix decay has no delta form");
    kind == Decay::kVector ? run_all<Decay::kVector, true>(p) : run_all<Decay::kNone, true>(p);
  } else if (kind == Decay::kMatrix) {
    run_all<Decay::kMatrix, false>(p);
  } else {
    kind == Decay::kVector ? run_all<Decay::kVector, false>(p) : run_all<Decay::kNone, false>(p);
  }
  return y;
}

}  // namespace ostinato
