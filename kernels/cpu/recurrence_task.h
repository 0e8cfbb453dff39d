// How the recurrence passes through memory: rows of S from the pool to tiles and back, a step or a scan at a time, and
// the division of the whole into tasks.
#pragma once

#include "parallel.h"
#include "recurrence_tile.h"

namespace ostinato {

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
void step_plain(const Recurrence& p, const Tile& tile, const Block& block, const State* from, State* to) {
  alignas(64) float s[kLanes * kLanes], row_major[kLanes * kLanes];
  const Vec v = Vec::loadu(tile.v(0));
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
      x = decayed<kDecay>(x, block, 0, k + j, nullptr, Vec(0.f));
      x = rounded<State>(at::vec::fmadd(v, Vec(block.k[k + j]), x));
      if constexpr (!kBonus) y[chain] = at::vec::fmadd(x, Vec(block.q[k + j]), y[chain]);
      x.store(s + j * kLanes);
    });
    if (to) store_rows(s, to + k, p.width, tile.count, columns, row_major);
  }
  total(y).store(tile.y(0));
}

// A single token with a decay for every element of S, which is most of the work: S and its rates stay as they lie, and
// only what is read of S is turned, to sum over K in the order of a scan. kCount: rows, or none if they are not a vector.
template <typename State, bool kBonus, int64_t kCount>
void step_matrix(const Recurrence& p, const Tile& tile, const Block& block, const State* from, State* to) {
  alignas(64) float read[kLanes * kLanes], turned[kLanes * kLanes];
  alignas(64) State zeros[kLanes] = {}, nowhere[kLanes];
  if constexpr (kCount == 0) std::fill_n(read, kLanes * kLanes, 0.f);
  const int64_t count = kCount ? kCount : tile.count, from_width = from ? p.width : 0, to_width = to ? p.width : 0;
  const float *v = tile.v(0), *step = tile.step(0);
  const float* rate = p.rate + (tile.head * p.rows + tile.row) * p.width;
  Chains y = zero_chains();
  for (int64_t k = 0; k < p.width; k += kLanes) {
    const int64_t columns = lanes_left(k, p.width);
    const State* source = from ? from + k : zeros;
    State* target = to ? to + k : nowhere;
    const auto advance_rows = [&](int64_t n) __attribute__((always_inline)) {
      const Vec key = load(&block.k[k], n);
#pragma GCC unroll 4
      for (int64_t i = 0; i < count; ++i) {
        __builtin_prefetch(tile.ahead + (i * p.width + k) * sizeof(State), 1);
        const Vec before = load(source + i * from_width, n);
        Vec x = before * decay_factor(Vec(step[i]), load(rate + i * p.width + k, n));
        x = rounded<State>(at::vec::fmadd(Vec(v[i]), key, x));
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

// A single token with a delta term: what S recalls is summed up while S is loaded.
template <typename State, Decay kDecay, Delta kDelta>
void step_delta(const Recurrence& p, const Tile& tile, const Block& block, const State* from, State* to) {
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
  std::array<Vec, 1> recalled{total(u)};
  advance_delta<State, kDecay, kDelta, 1>(p, {tile}, block, 0, false, recalled);
  for (int64_t k = 0; to && k < p.width; k += kLanes)
    store_rows(tile.s + k * kLanes, to + k, p.width, tile.count, lanes_left(k, p.width), row_major);
}

// Rows of operands lie far apart, where the processor does not look ahead: fetches those of the next block of tokens.
inline void fetch_values(const Recurrence& p, int64_t head, int64_t row, int64_t last, int64_t first_token, int64_t stop) {
  for (int64_t t = first_token; t < std::min(first_token + kTokens, stop); ++t)
    for (const Operand* x : {&p.v, &p.step, &p.gate})
      if (x->data && x->row_width > 1)
        for (int64_t r = row; r < last; r += kLanes) __builtin_prefetch(x->at(t, head) + r);
}

// The memory of one thread: rows of S and rates, transposed, and one block of tokens.
struct Scratch {
  Scratch(int64_t width, int64_t lanes)
      : memory((2 * lanes + kLanes) * width + lanes / kLanes * kValues), values(memory.get()),
        s(values + lanes / kLanes * kValues), rate(s + width * lanes), row_major(rate + width * lanes), block(width) {}
  Floats memory;
  float *values, *s, *rate, *row_major;
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
    float* values = scratch.values + (r - row) / kLanes * kValues;
    return {tile_of(scratch.s, r), tile_of(scratch.rate, r), values, next, head, r, count(r)};
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

template <typename State>
auto choose_matrix(bool whole, bool bonus) {
  if (whole) return bonus ? step_matrix<State, true, kLanes> : step_matrix<State, false, kLanes>;
  return bonus ? step_matrix<State, true, 0> : step_matrix<State, false, 0>;
}

template <typename State, Decay kDecay, Delta kDelta>
void step_tile(const Task<State>& task, const Tile& tile, const Block& block) {
  const State* from = task.state_row_or_null(task.src(), tile.row);
  State* to = task.state_row_or_null(task.dst(), tile.row);
  const bool bonus = task.p.bonus;
  if constexpr (kDelta != Delta::kNone)
    step_delta<State, kDecay, kDelta>(task.p, tile, block, from, to);
  else if constexpr (kDecay == Decay::kMatrix)
    choose_matrix<State>(tile.count == kLanes, bonus)(task.p, tile, block, from, to);
  else
    (bonus ? step_plain<State, kDecay, true> : step_plain<State, kDecay, false>)(task.p, tile, block, from, to);
}

template <typename State, Decay kDecay, Delta kDelta>
void run_step(const Task<State>& task, Scratch& scratch) {
  const int64_t t = task.p.batch.starts[task.sequence];
  const Block& block = scratch.block;
  prepare<kDecay, kDelta>(task.p, task.head, t, 1, scratch.block);
  const auto each_tile = [&](auto f) {
    for (int64_t r = task.row; r < task.last(); r += kLanes) f(task.tile(scratch, r));
  };
  each_tile([&](const Tile& tile) { read_values<kDecay>(task.p, tile, block, t, 1); });
  each_tile([&](const Tile& tile) { step_tile<State, kDecay, kDelta>(task, tile, block); });
  each_tile([&](const Tile& tile) { write_outputs(task.p, tile, block, t, 1); });
}

template <typename State, Decay kDecay, Delta kDelta>
void advance_tiles(const Task<State>& task, const Scratch& scratch, int64_t first, int64_t count) {
  int64_t r = task.row;
  if constexpr (tiles_together(kDecay) == 2)
    for (; r + kLanes < task.last(); r += 2 * kLanes)
      advance_block<State, kDecay, kDelta, 2>(task.p, {task.tile(scratch, r), task.tile(scratch, r + kLanes)},
                                              scratch.block, first, count);
  for (; r < task.last(); r += kLanes)
    advance_block<State, kDecay, kDelta, 1>(task.p, {task.tile(scratch, r)}, scratch.block, first, count);
}

template <typename State, Decay kDecay, Delta kDelta>
void run_scan(const Task<State>& task, Scratch& scratch) {
  const Recurrence& p = task.p;
  if constexpr (kDecay == Decay::kMatrix) load_rates(task, scratch);
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
    advance_tiles<State, kDecay, kDelta>(task, scratch, t, tokens);
  }
  if (task.dst() < 0) return;
  for (int64_t r = task.row; r < task.last(); r += kLanes)
    store_rows(task.tile_of(scratch.s, r), task.state_row(task.dst(), r), p.width, task.count(r), p.width,
               scratch.row_major);
}

template <typename State, Decay kDecay, Delta kDelta>
void run_task(const Task<State>& task, Scratch& scratch) {
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
    // In the order of memory; scans in that of rates, which all sequences share.
    const bool by_rate = kDecay == Decay::kMatrix && tokens > 2;
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

}  // namespace ostinato
