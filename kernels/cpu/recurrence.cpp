// The recurrence of kernels/recurrence.py over packed sequences, in place by slot.
//
// Every row v of S [V,K] evolves by itself, so rows are the vector lanes: a task takes a few rows of one head of one
// sequence, keeps them transposed, as [K, lanes], in its first-level cache and walks all tokens ("head outside, token
// inside"). Sums over K need no sum over lanes that way, and have one fixed order: kChains partial sums, k by k. What
// depends on the token but not on the row (exp of decays, normalised keys) is prepared once for a block of tokens.
#include <ATen/ops/add.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include <array>

#include "packed.h"
#include "parallel.h"
#include "simd.h"

namespace ostinato {
namespace {

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

void scale_row(const float* from, float* to, int64_t width, bool normalize, float scale) {
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
inline __attribute__((always_inline)) void in_chains(int64_t width, F visit) {
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

void write_output(const Recurrence& p, const Tile& tile, const Block& block, int64_t i, int64_t t, const Values& values,
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
Vec recall(const Tile& tile, const Block& block, int64_t width) {
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

// count rows of the pool, of `columns` elements each and `width` apart -> [columns, kLanes]; row_major: as many floats.
template <typename State>
void load_rows(const State* from, int64_t width, int64_t count, int64_t columns, float* s, float* row_major) {
  if constexpr (std::is_same_v<State, float>) return transpose(from, width, s, kLanes, count, columns);
  for (int64_t i = 0; i < count; ++i)
    map_row(columns, [&](int64_t j, int64_t n) { store(row_major + i * columns + j, load(from + i * width + j, n), n); });
  transpose(row_major, columns, s, kLanes, count, columns);
}

template <typename State>
void store_rows(const float* s, State* to, int64_t width, int64_t count, int64_t columns, float* row_major) {
  if constexpr (std::is_same_v<State, float>) return transpose(s, kLanes, to, width, columns, count);
  transpose(s, kLanes, row_major, columns, columns, count);
  for (int64_t i = 0; i < count; ++i)
    map_row(columns, [&](int64_t j, int64_t n) { store(to + i * width + j, load(row_major + i * columns + j, n), n); });
}

// A single token without a delta term, straight from the pool to the pool: a step is bound by memory, so S passes through
// registers in square blocks, while what the next tile will need is fetched.
template <typename State, Decay kDecay, bool kBonus>
void step_plain(const Recurrence& p, const Tile& tile, const Block& block, int64_t t, const State* from, State* to) {
  alignas(64) float s[kLanes * kLanes], row_major[kLanes * kLanes];
  const Values values = read_values<kDecay>(p, tile, block, 0, t);
  Chains y = zero_chains();
  for (int64_t k = 0; k < p.width; k += kLanes) {
    const int64_t columns = lanes_left(k, p.width);
    if (from)
      load_rows(from + k, p.width, tile.count, columns, s, row_major);
    else
      std::fill_n(s, kLanes * kLanes, 0.f);
    in_chains(columns, [&](int64_t j, auto chain) __attribute__((always_inline)) {
      __builtin_prefetch(tile.ahead + (k + j) * kLineBytes, 1);
      Vec x = Vec::loadu(s + j * kLanes);
      if constexpr (kBonus) y[chain] = at::vec::fmadd(x, Vec(block.q[k + j]), y[chain]);
      x = decayed<kDecay>(x, block, 0, k + j, tile.rate + (k + j) * kLanes, values.step);
      x = rounded<State>(at::vec::fmadd(values.v, Vec(block.k[k + j]), x));
      if constexpr (!kBonus) y[chain] = at::vec::fmadd(x, Vec(block.q[k + j]), y[chain]);
      x.store(s + j * kLanes);
    });
    if (to) store_rows(s, to + k, p.width, tile.count, columns, row_major);
  }
  write_output(p, tile, block, 0, t, values, total(y));
}

// A single token with a delta term: what S recalls is summed up while S is loaded.
template <typename State, Decay kDecay, Delta kDelta>
void step_delta(const Recurrence& p, const Tile& tile, const Block& block, int64_t t, const State* from, State* to) {
  alignas(64) float row_major[kLanes * kLanes];
  Chains u = zero_chains();
  for (int64_t k = 0; k < p.width; k += kLanes) {
    const int64_t columns = lanes_left(k, p.width);
    if (from)
      load_rows(from + k, p.width, tile.count, columns, tile.s + k * kLanes, row_major);
    else
      std::fill_n(tile.s + k * kLanes, columns * kLanes, 0.f);
    in_chains(columns, [&](int64_t j, auto chain) __attribute__((always_inline)) {
      __builtin_prefetch(tile.ahead + (k + j) * kLineBytes, 1);
      u[chain] = at::vec::fmadd(Vec::loadu(tile.s + (k + j) * kLanes), Vec(block.a[k + j]), u[chain]);
    });
  }
  advance_delta<State, kDecay, kDelta>(p, tile, block, 0, t, total(u), false);
  for (int64_t k = 0; to && k < p.width; k += kLanes)
    store_rows(tile.s + k * kLanes, to + k, p.width, tile.count, lanes_left(k, p.width), row_major);
}

// Rows of operands lie far apart, where the processor does not look ahead: fetches those of the next block of tokens.
void fetch_values(const Recurrence& p, int64_t head, int64_t row, int64_t last, int64_t first_token, int64_t stop) {
  for (int64_t t = first_token; t < std::min(first_token + kTokens, stop); ++t)
    for (const Operand* x : {&p.v, &p.step, &p.gate})
      if (x->data && x->row_width > 1)
        for (int64_t r = row; r < last; r += kLanes) __builtin_prefetch(x->at(t, head) + r);
}

// The memory of one thread: rows of S and rates, transposed, and one block of tokens.
struct Scratch {
  Scratch(int64_t width, int64_t lanes)
      : memory((2 * lanes + kLanes) * width), s(memory.get()), rate(s + width * lanes),
        row_major(rate + width * lanes), block(width) {}
  Floats memory;
  float *s, *rate, *row_major;
  int64_t rate_head = -1, rate_row = -1;  // whose rates these are
  Block block;
};

// `lanes` rows of a head, or what is left of it, of one sequence.
template <typename State>
struct Task {
  const Recurrence& p;
  int64_t sequence, head, row, lanes;
  const State* ahead;  // the rows that the next task will load

  int64_t src() const { return p.batch.src[sequence]; }
  int64_t dst() const { return p.batch.dst[sequence]; }
  int64_t last() const { return std::min(row + lanes, p.rows); }
  int64_t count(int64_t r) const { return lanes_left(r, last()); }
  float* tile_of(float* tiles, int64_t r) const { return tiles + (r - row) * p.width; }
  State* state_row(int64_t slot, int64_t r) const {
    return static_cast<State*>(p.state) + ((slot * p.heads + head) * p.rows + r) * p.width;
  }
  State* state_row_or_null(int64_t slot, int64_t r) const { return slot < 0 ? nullptr : state_row(slot, r); }
  Tile tile(const Scratch& scratch, int64_t r) const {
    const auto* next = reinterpret_cast<const char*>(ahead + (r - row) * p.width);
    return {tile_of(scratch.s, r), tile_of(scratch.rate, r), next, head, r, count(r)};
  }
};

// Rates do not depend on the sequence: consecutive tasks share them.
template <typename State>
void load_rates(const Task<State>& task, Scratch& scratch) {
  if (scratch.rate_head == task.head && scratch.rate_row == task.row) return;
  scratch.rate_head = task.head, scratch.rate_row = task.row;
  const Recurrence& p = task.p;
  for (int64_t r = task.row; r < task.last(); r += kLanes)
    transpose(p.rate + (task.head * p.rows + r) * p.width, p.width, task.tile_of(scratch.rate, r), kLanes,
              task.count(r), p.width);
}

template <typename State, Decay kDecay, Delta kDelta>
void run_step(const Task<State>& task, Scratch& scratch) {
  const Recurrence& p = task.p;
  const int64_t t = p.batch.starts[task.sequence];
  prepare<kDecay, kDelta>(p, task.head, t, 1, scratch.block);
  for (int64_t r = task.row; r < task.last(); r += kLanes) {
    const State* from = task.state_row_or_null(task.src(), r);
    State* to = task.state_row_or_null(task.dst(), r);
    const Tile tile = task.tile(scratch, r);
    if constexpr (kDelta != Delta::kNone)
      step_delta<State, kDecay, kDelta>(p, tile, scratch.block, t, from, to);
    else
      p.bonus ? step_plain<State, kDecay, true>(p, tile, scratch.block, t, from, to)
              : step_plain<State, kDecay, false>(p, tile, scratch.block, t, from, to);
  }
}

template <typename State, Decay kDecay, Delta kDelta>
void run_scan(const Task<State>& task, Scratch& scratch) {
  const Recurrence& p = task.p;
  if (task.src() < 0) std::fill_n(scratch.s, p.width * task.lanes, 0.f);
  for (int64_t r = task.row; r < task.last(); r += kLanes) {
    if (task.src() >= 0)
      load_rows(task.state_row(task.src(), r), p.width, task.count(r), p.width, task.tile_of(scratch.s, r),
                scratch.row_major);
  }
  const int64_t stop = p.batch.starts[task.sequence + 1];
  for (int64_t t = p.batch.starts[task.sequence]; t < stop; t += kTokens) {
    const int64_t tokens = std::min(kTokens, stop - t);
    prepare<kDecay, kDelta>(p, task.head, t, tokens, scratch.block);
    fetch_values(p, task.head, task.row, task.last(), t + kTokens, stop);
    for (int64_t r = task.row; r < task.last(); r += kLanes)
      advance_block<State, kDecay, kDelta>(p, task.tile(scratch, r), scratch.block, t, tokens);
  }
  if (task.dst() < 0) return;
  for (int64_t r = task.row; r < task.last(); r += kLanes)
    store_rows(task.tile_of(scratch.s, r), task.state_row(task.dst(), r), p.width, task.count(r), p.width,
               scratch.row_major);
}

template <typename State, Decay kDecay, Delta kDelta>
void run_task(const Task<State>& task, Scratch& scratch) {
  if constexpr (kDecay == Decay::kMatrix) load_rates(task, scratch);
  task.p.batch.length(task.sequence) == 1 ? run_step<State, kDecay, kDelta>(task, scratch)
                                           : run_scan<State, kDecay, kDelta>(task, scratch);
}

template <typename State, Decay kDecay, Delta kDelta>
void run_all(const Recurrence& p) {
  const int64_t fitting = kTileBytes / static_cast<int64_t>(sizeof(float)) / std::max<int64_t>(1, p.width);
  const int64_t padded_rows = (p.rows + kLanes - 1) / kLanes * kLanes;
  const int64_t lanes = std::min(padded_rows, std::clamp<int64_t>(fitting / kLanes, 1, 4) * kLanes);
  const int64_t tiles = (p.rows + lanes - 1) / lanes, tasks = p.batch.sequences * p.heads * tiles;
  const int64_t tokens = 1 + (p.batch.sequences ? p.batch.starts[p.batch.sequences] / p.batch.sequences : 0);
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, lanes * p.width * tokens));
  const auto locate = [&](int64_t i) -> Task<State> {
    // In the order of memory, but for rates, which all sequences share.
    const bool by_rate = kDecay == Decay::kMatrix;
    const int64_t sequence = by_rate ? i % p.batch.sequences : i / (p.heads * tiles);
    const int64_t rest = by_rate ? i / p.batch.sequences : i % (p.heads * tiles);
    return {p, sequence, rest / tiles, rest % tiles * lanes, lanes, nullptr};
  };
  at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    Scratch scratch(p.width, lanes);
    for (int64_t i = begin; i < end; ++i) {
      Task<State> task = locate(i);
      const Task<State> next = locate(std::min(i + 1, end - 1));
      task.ahead = next.state_row(std::max<int64_t>(0, next.src()), next.row);
      run_task<State, kDecay, kDelta>(task, scratch);
    }
  });
}

template <typename State, Decay kDecay>
void choose_delta(const Recurrence& p) {
  if constexpr (kDecay != Decay::kMatrix) {
    if (p.a.data) return run_all<State, kDecay, Delta::kGeneral>(p);
    if (p.beta.data) return run_all<State, kDecay, Delta::kBeta>(p);
  }
  run_all<State, kDecay, Delta::kNone>(p);
}

template <typename State>
void choose_decay(const Recurrence& p, Decay decay) {
  switch (decay) {
    case Decay::kNone: return choose_delta<State, Decay::kNone>(p);
    case Decay::kScalar: return choose_delta<State, Decay::kScalar>(p);
    case Decay::kVector: return choose_delta<State, Decay::kVector>(p);
    case Decay::kMatrix: return choose_delta<State, Decay::kMatrix>(p);
  }
}

Decay decay_kind(const std::optional<at::Tensor>& log_decay, const std::optional<at::Tensor>& rate) {
  if (rate) return rate->dim() == 3 ? Decay::kMatrix : Decay::kScalar;
  if (log_decay) return log_decay->dim() == 3 ? Decay::kVector : Decay::kScalar;
  return Decay::kNone;
}

const float* data_or_null(const std::optional<at::Tensor>& x) { return x ? x->const_data_ptr<float>() : nullptr; }

using Optional = const std::optional<at::Tensor>&;

// f of every element, in parallel: what all tasks share.
template <typename F>
at::Tensor map_all(const at::Tensor& x, F f) {
  at::Tensor y = x.to(at::kFloat).contiguous();
  if (y.is_same(x) || y.is_alias_of(x)) y = y.clone();
  float* data = y.mutable_data_ptr<float>();
  at::parallel_for(0, y.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kLanes) {
      const int64_t n = lanes_left(i, end);
      store(data + i, f(load(data + i, n)), n);
    }
  });
  return y;
}

// Steps as they enter the state, and decays as factors, where a head shares them.
struct Factors {
  std::optional<at::Tensor> step, decay;
};

Factors factors_of(Optional log_decay, Optional rate, Optional step, Optional step_bias) {
  if (log_decay) return {std::nullopt, map_all(*log_decay, [](Vec x) { return exp(x); })};
  if (!rate || rate->dim() == 3) return {step, std::nullopt};
  const at::Tensor shared = step_bias ? map_all(at::add(*step, *step_bias), [](Vec x) { return softplus(x); }) : *step;
  return {shared, map_all(at::mul(shared, *rate), [](Vec x) { return exp(x); })};
}

at::Tensor recurrence(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& state,
                      const at::Tensor& src, const at::Tensor& dst, const at::Tensor& starts, int64_t /*longest*/,
                      Optional log_decay, Optional rate, Optional step, Optional step_bias, Optional beta, Optional a,
                      Optional b, Optional bonus, Optional skip, Optional gate, bool normalize, double scale) {
  const int64_t tokens = q.size(0), heads = state.size(1), rows = state.size(2), width = state.size(3);
  at::Tensor y = at::empty({tokens, heads, rows}, q.options().dtype(at::kFloat));
  const Factors factors = factors_of(log_decay, rate, step, step_bias);
  const HeldOperand q_ = held(q, heads), k_ = held(k, heads), v_ = held(v, heads), decay_ = held(factors.decay, heads),
                    step_ = held(factors.step, heads), beta_ = held(beta, heads), a_ = held(a, heads),
                    b_ = held(b, heads), gate_ = held(gate, heads);
  const auto parameter = [](Optional x) { return x ? std::optional(x->contiguous()) : std::nullopt; };
  const auto rate_ = parameter(rate), step_bias_ = parameter(step_bias), bonus_ = parameter(bonus),
             skip_ = parameter(skip);
  const Recurrence p{
      q_.operand, k_.operand, v_.operand, decay_.operand, step_.operand, beta_.operand, a_.operand, b_.operand,
      gate_.operand, data_or_null(rate_), data_or_null(step_bias_), data_or_null(bonus_), data_or_null(skip_),
      skip && skip->dim() == 2, normalize, static_cast<float>(scale),
      packed(src, dst, starts, state.size(0), tokens), heads, rows, width, state.data_ptr(), y.mutable_data_ptr<float>()};
  if (state.scalar_type() == at::kBFloat16)
    choose_decay<c10::BFloat16>(p, decay_kind(log_decay, rate));
  else
    choose_decay<float>(p, decay_kind(log_decay, rate));
  return y;
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) { m.impl("recurrence", recurrence); }

}  // namespace
}  // namespace ostinato
