// Attention over a sliding window, whose keys and values live in a ring by slot (kernels/attention.py).
//
// A task is some heads of one sequence at some neighbouring tokens. It walks over the positions that these see, block
// by block: once over keys for all scores, then over values. A block that many queries share is first copied to fp32.
// Where its rows come from, the ring or the call's own tokens, makes no difference to the bits (attention.h). Sinks are
// blocks of their own, before all others.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <atomic>
#include <numeric>

#include "attention.h"
#include "dtypes.h"
#include "parallel.h"
#include "ring.h"

namespace ostinato {
namespace {

constexpr int64_t kTaskRows = 32;  // queries that a task has at most
constexpr int64_t kFewRows = 2;    // queries that share a block without its being copied
constexpr int64_t kPrefetchedRows = 2 * kLanes;

int64_t whole_vectors(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

struct Task {
  Sequence sequence;
  int64_t head, heads, token, tokens;
};

// Memory of one thread. Rows are the task's queries, head by head.
struct Scratch {
  std::vector<float> block;             // [kLanes, width]
  std::vector<float> queries, far, sums;  // [rows, width]
  std::vector<float> scores, divisors;  // [rows, span], [rows]
};

template <typename T>
struct Attention {
  const float *q, *far;  // [T,H,D] with tokens q_stride and far_stride apart
  int64_t q_stride, far_stride, heads;
  Memory<T> keys, values;
  float scale;
  float* y;  // [T,H,D]

  void run(const Task& task, Scratch& scratch) const { Pass(*this, task, scratch).run(); }

  struct Pass {
    const Attention& a;
    const Task& task;
    Scratch& scratch;
    int64_t sinks, recent, width, padded, now, end, origin, sink_span, span;

    Pass(const Attention& a_, const Task& task_, Scratch& scratch_) : a(a_), task(task_), scratch(scratch_) {
      sinks = a.keys.sinks, recent = a.keys.window - sinks, width = a.keys.width, padded = whole_vectors(width);
      now = task.sequence.past + task.token, end = now + task.tokens;
      origin = oldest(0) / kLanes * kLanes, sink_span = whole_vectors(sinks);
      span = sink_span + whole_vectors(std::max<int64_t>(0, end - origin));
    }

    // The first position that token t of the task sees, besides the sinks.
    int64_t oldest(int64_t t) const { return std::max(sinks, now + t - recent + 1); }

    // Blocks of positions, and where their scores are in a row of scores.
    struct Region {
      int64_t origin, from, to, offset;
      bool sink;
    };

    Region sink_region() const { return {0, 0, std::min(sinks, end), 0, true}; }
    Region recent_region() const { return {origin, oldest(0), end, sink_span, false}; }

    void run() {
      const int64_t rows = task.heads * task.tokens;
      scratch.block.resize(kLanes * padded);
      scratch.queries.resize(rows * padded);
      scratch.far.resize(sinks ? rows * padded : 0);
      scratch.sums.assign(rows * padded, 0.f);
      scratch.scores.resize(rows * span);
      scratch.divisors.resize(rows);
      for_each_row([&](int64_t row, int64_t head, int64_t t) { load_query(row, head, t); });
      for (const Region& region : {sink_region(), recent_region()}) {
        const float* queries = region.sink ? scratch.far.data() : scratch.queries.data();
        for_each_block(a.keys, region, [&](const auto& block, int64_t row, float* scores, int64_t from, int64_t to) {
          scores_of(queries + row * padded, block, padded).store(scores);
          std::fill(scores, scores + from, kNever);
          std::fill(scores + to, scores + kLanes, kNever);
        });
      }
      for_each_row([&](int64_t row, int64_t, int64_t t) { weigh(row, t); });
      for (const Region& region : {sink_region(), recent_region()})
        for_each_block(a.values, region,
                       [&](const auto& block, int64_t row, const float* weights, int64_t from, int64_t to) {
                         add_rows(&scratch.sums[row * padded], weights, block, padded, from, to);
                       });
      for_each_row([&](int64_t row, int64_t head, int64_t t) { store_result(row, head, t); });
    }

    // Turns a row's scores into weights. Blocks that it does not see weigh nothing, which does not change a sum's bits.
    void weigh(int64_t row, int64_t t) {
      const int64_t first = oldest(t) / kLanes * kLanes, after = now + t + 1;
      const int64_t begin = sink_span + first - origin, count = after > oldest(t) ? whole_vectors(after - first) : 0;
      float* scores = &scratch.scores[row * span];
      if (!sinks) return void(scratch.divisors[row] = exponentiate(scores + begin, count));
      const int64_t seen_sinks = whole_vectors(std::min(sinks, after));
      std::fill(scores + seen_sinks, scores + begin, kNever);
      scratch.divisors[row] = exponentiate(scores, count ? begin + count : seen_sinks);
    }

    template <typename F>
    void for_each_row(F f) const {
      for (int64_t head = task.head, row = 0; head < task.head + task.heads; ++head)
        for (int64_t t = 0; t < task.tokens; ++t) f(row++, head, t);
    }

    // f(block, row, the row's scores of the block, from, to) for each block and each row that sees [from, to) of it.
    template <typename F>
    void for_each_block(const Memory<T>& memory, const Region& region, F f) const {
      const int64_t sharing = a.heads / memory.groups, after = task.head + task.heads;
      for (int64_t first = region.origin; first < region.to; first += kLanes)
        for (int64_t head = task.head, last = head; head < after; head = last) {
          last = std::min(after, (head / sharing + 1) * sharing);
          const int64_t rows = (last - head) * task.tokens, row = (head - task.head) * task.tokens;
          if (rows <= kFewRows && width == padded) {
            for_each_query(scattered(memory, region, head / sharing, first), region, first, row, row + rows, f);
          } else {
            for_each_query(gathered(memory, region, head / sharing, first), region, first, row, row + rows, f);
          }
        }
    }

    template <typename Block, typename F>
    void for_each_query(const Block& block, const Region& region, int64_t first, int64_t row, int64_t after,
                        F f) const {
      for (; row < after; ++row) {
        const int64_t t = row % task.tokens;
        const int64_t from = std::max(first, region.sink ? 0 : oldest(t));
        const int64_t to = std::min({first + kLanes, now + t + 1, region.to});
        float* scores = &scratch.scores[row * span + region.offset + first - region.origin];
        if (from < to) f(block, row, scores, from - first, to - first);
      }
    }

    // f(position in the block, its row of the ring, where it is) for the positions that some query of the task sees.
    template <typename F>
    void for_each_row_of(const Memory<T>& memory, const Region& region, int64_t group, int64_t first, F f) const {
      for_each_position(memory, task.sequence, std::max(first, region.from), std::min(first + kLanes, region.to),
                        [&](int64_t position, int64_t index, const T* row) {
                          f(position - first, index, row + group * width);
                        });
    }

    // A position that no query sees stands for another one: its score is not used.
    Scattered<T> scattered(const Memory<T>& memory, const Region& region, int64_t group, int64_t first) const {
      Scattered<T> block{};
      for_each_row_of(memory, region, group, first, [&](int64_t position, int64_t index, const T* row) {
        if (!block.rows[kLanes - 1]) std::fill(block.rows, block.rows + kLanes, row);
        block.rows[position] = row;
        if (first + position + kPrefetchedRows < task.sequence.past && index + kPrefetchedRows < memory.window)
          prefetch(row + kPrefetchedRows * memory.groups * width);
      });
      return block;
    }

    // For the same heads a little later: by then the other heads' rows have led the hardware's prefetcher astray.
    void prefetch(const T* row) const {
      for (int64_t i = 0; i < width; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + i, 0, 2);
    }

    Gathered gathered(const Memory<T>& memory, const Region& region, int64_t group, int64_t first) const {
      Gathered block{scratch.block.data()};
      for_each_row_of(memory, region, group, first, [&](int64_t position, int64_t, const T* row) {
        block.copy(position, row, width);
      });
      return block;
    }

    void load_query(int64_t row, int64_t head, int64_t t) const {
      const int64_t token = task.sequence.start + task.token + t;
      const auto scaled = [&](const float* q, float* query) {
        map_row(width, [&](int64_t i, int64_t n) { (load(q + i, n) * Vec(a.scale)).store(query + i); });
      };
      scaled(a.q + token * a.q_stride + head * width, &scratch.queries[row * padded]);
      if (sinks) scaled(a.far + token * a.far_stride + head * width, &scratch.far[row * padded]);
    }

    void store_result(int64_t row, int64_t head, int64_t t) const {
      float* y = a.y + ((task.sequence.start + task.token + t) * a.heads + head) * width;
      const Vec divisor(scratch.divisors[row]);
      const float* sums = &scratch.sums[row * padded];
      map_row(width, [&](int64_t i, int64_t n) { store(y + i, Vec::loadu(sums + i) / divisor, n); });
    }
  };
};

// A single token has as many heads in a task as leave every thread the same work, so that memory is read in long
// pieces; of several tokens a task has one head.
std::vector<Task> tasks_of(const std::vector<Sequence>& sequences, int64_t heads) {
  const int64_t threads = at::get_num_threads(), count = static_cast<int64_t>(sequences.size());
  const int64_t pieces = count ? threads / std::gcd(threads, count) : 1;
  std::vector<Task> tasks;
  for (const Sequence& s : sequences) {
    const int64_t tokens = std::min(s.length, kTaskRows);
    const int64_t together = s.length == 1 ? std::min((heads + pieces - 1) / pieces, kTaskRows) : 1;
    for (int64_t head = 0; head < heads; head += together)
      for (int64_t token = 0; token < s.length; token += tokens)
        tasks.push_back({s, head, std::min(together, heads - head), token, std::min(tokens, s.length - token)});
  }
  return tasks;
}

// Tasks differ in length, so a thread takes the next one when it is done.
template <typename T>
void run_all(const Attention<T>& attention, const std::vector<Task>& tasks) {
  const int64_t count = static_cast<int64_t>(tasks.size()), threads = at::get_num_threads();
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min(threads, count), 1, [&](int64_t, int64_t) {
    Scratch scratch;
    for (int64_t i = next++; i < count; i = next++) attention.run(tasks[i], scratch);
  });
}

template <typename T>
void run_typed(const at::Tensor& q, const at::Tensor& far, const at::Tensor& k, const at::Tensor& v,
               const at::Tensor& keys, const at::Tensor& values, const std::vector<Sequence>& sequences, double scale,
               int64_t sinks, at::Tensor& y) {
  const auto memory = [&](const at::Tensor& ring, const at::Tensor& fresh) {
    return Memory<T>{ring.mutable_data_ptr<T>(), fresh.const_data_ptr<T>(), fresh.stride(0),
                     ring.size(1), sinks, ring.size(2), ring.size(3)};
  };
  const Attention<T> attention{q.const_data_ptr<float>(), far.const_data_ptr<float>(), q.stride(0), far.stride(0),
                               q.size(1), memory(keys, k), memory(values, v), static_cast<float>(scale), y.mutable_data_ptr<float>()};
  run_all(attention, tasks_of(sequences, q.size(1)));
  int64_t moved = 1;
  for (const Sequence& s : sequences) moved += s.src == s.dst ? s.length : s.past + s.length;
  const int64_t count = static_cast<int64_t>(sequences.size());
  const int64_t rows = std::min(moved / std::max<int64_t>(1, count), keys.size(1));
  at::parallel_for(0, 2 * count, rows_per_task(rows * keys.size(2) * keys.size(3)), [&](int64_t begin, int64_t stop) {
    for (int64_t i = begin; i < stop; ++i)
      write_ring(i % 2 ? attention.values : attention.keys, sequences[i / 2]);
  });
}

at::Tensor window_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& keys,
                            const at::Tensor& values, const at::Tensor& past, const at::Tensor& src,
                            const at::Tensor& dst, const at::Tensor& starts, int64_t /*longest*/, double scale,
                            const std::optional<at::Tensor>& far_, int64_t sinks) {
  const Packed batch = packed(src, dst, starts, keys.size(0), q.size(0));
  at::Tensor y = at::empty(q.sizes(), q.options().dtype(at::kFloat));
  with_dtype(keys.scalar_type(), [&](auto type) {
    const at::Tensor near = q.to(at::kFloat), far = far_ ? far_->to(at::kFloat) : near;
    run_typed<decltype(type)>(near, far, k, v, keys, values, sequences_of(batch, past), scale, sinks, y);
  });
  return y;
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) { m.impl("window_attention", window_attention); }

}  // namespace
}  // namespace ostinato
