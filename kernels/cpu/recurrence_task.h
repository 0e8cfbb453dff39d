// How the recurrence passes through memory: rows of S from the pool to tiles and back, a step or a scan at a time, and
// the division of the whole into tasks.
#pragma once

#include "parallel.h"
#include "recurrence_step.h"

namespace ostinato {

// Rows of operands lie far apart, where the processor does not look ahead: fetches those of the next block of tokens.
inline void fetch_values(const Recurrence& p, int64_t head, int64_t row, int64_t last, int64_t first_token, int64_t stop) {
  for (int64_t t = first_token; t < std::min(first_token + kTokens, stop); ++t)
    for (const Operand* x : {&p.v, &p.step, &p.gate})
      if (x->data && x->row_width > 1)
        for (int64_t r = row; r < last; r += kLanes) __builtin_prefetch(x->at(t, head) + r);
}

template <typename State>
void store_rows(const float* s, State* to, int64_t width, int64_t count, int64_t columns, float* row_major) {
  if constexpr (std::is_same_v<State, float>) return transpose(s, kLanes, to, width, columns, count);
  transpose(s, kLanes, row_major, columns, columns, count);
  for (int64_t i = 0; i < count; ++i)
    map_row(columns, [&](int64_t j, int64_t n) { store(to + i * width + j, load(row_major + i * columns + j, n), n); });
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
  const State *ahead, *far;  // the rows that the next task will load, and a later one

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
    const auto* later = reinterpret_cast<const char*>(far + (r - row) * p.width);
    return {tile_of(scratch.s, r), tile_of(scratch.rate, r), values, next, later, head, r, count(r)};
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
void step_tile(const Task<State>& task, const Tile& tile, const Block& block) {
  const State* from = task.state_row_or_null(task.src(), tile.row);
  State* to = task.state_row_or_null(task.dst(), tile.row);
  if constexpr (kDelta != Delta::kNone)
    step_delta<State, kDecay, kDelta>(task.p, tile, block, from, to);
  else
    choose_plain<State, kDecay>(tile.count == kLanes, task.p.bonus)(task.p, tile, block, from, to);
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
    return {p, sequence, rest / tiles, rest % tiles * lanes, lanes, nullptr, nullptr};
  };
  in_parts(tasks, grain, [&](auto take) {
    Scratch scratch(p.width, lanes);
    take([&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Task<State> task = locate(i);
        const auto rows_of = [&](int64_t j) {
          const Task<State> later = locate(std::min(j, end - 1));
          return later.state_row(std::max<int64_t>(0, later.src()), later.row);
        };
        task.ahead = rows_of(i + 1);
        task.far = rows_of(i + 3);
        run_task<State, kDecay, kDelta>(task, scratch);
      }
    });
  });
}

}  // namespace ostinato
