// How work is divided among threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace ostinato {

constexpr int64_t kElementsPerTask = 16384;

inline int64_t rows_per_task(int64_t width) {
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, width));
}

// worker(take) in as many threads as there is work for, if one is worth its start for `grain` of [0, count). take(visit)
// calls visit(begin, end) for one part after the other until none is left. On a machine that others use too no two
// threads are equally fast, so whoever is done takes the next part, which is smaller the less is left.
template <typename Worker>
void in_parts(int64_t count, int64_t grain, Worker worker) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), (count + grain - 1) / grain);
  std::atomic<int64_t> next{0};
  const auto take = [&](auto visit) {
    for (int64_t begin = next, end; begin < count;) {
      end = std::min(count, begin + std::max(grain, (count - begin) / (2 * threads)));
      if (!next.compare_exchange_weak(begin, end)) continue;
      visit(begin, end);
      begin = next;
    }
  };
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) { worker(take); });
}

}  // namespace ostinato
