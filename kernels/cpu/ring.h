// The ring of a sliding window (kernels/attention.py): position p < S lies in row p of a slot, any other one in row
// S + (p - S) % (W - S), where S is the number of sinks.
#pragma once

#include <cstring>
#include <vector>

#include "packed.h"

namespace ostinato {

// Keys or values: the ring [slots, W, G, D], and the call's tokens [T, G, D].
template <typename T>
struct Memory {
  T* ring;
  const T* fresh;
  int64_t token_stride, window, sinks, groups, width;

  int64_t index(int64_t position) const {
    return position < sinks ? position : sinks + (position - sinks) % (window - sinks);
  }

  T* row(int64_t slot, int64_t index) const { return ring + (slot * window + index) * groups * width; }
};

struct Sequence {
  int64_t src, dst, past;  // slots, and how many tokens it has read before the call
  int64_t start, length;   // its tokens in the call
};

// f(position, its row of the ring, where it is now) for the positions [from, to), some of which may lie in the past.
template <typename T, typename F>
void for_each_position(const Memory<T>& memory, const Sequence& s, int64_t from, int64_t to, F f) {
  int64_t index = memory.index(from);
  for (int64_t position = from; position < to; ++position, index = index + 1 == memory.window ? memory.sinks : index + 1)
    f(position, index, position < s.past ? memory.row(s.src, index)
                                         : memory.fresh + (s.start + position - s.past) * memory.token_stride);
}

// Leaves the sinks and the last W - S positions in the destination. Not before all have read: a position may overwrite one that an
// earlier token of the same chunk sees.
template <typename T>
void write_ring(const Memory<T>& memory, const Sequence& s) {
  if (s.dst < 0) return;
  const int64_t end = s.past + s.length, oldest = std::max<int64_t>(0, end - memory.window + memory.sinks);
  const int64_t missing = s.src == s.dst ? s.past : 0;  // what is before it is in place already
  const auto copy = [&](int64_t, int64_t index, const T* row) {
    std::memcpy(memory.row(s.dst, index), row, sizeof(T) * memory.groups * memory.width);
  };
  for_each_position(memory, s, missing, std::min(memory.sinks, oldest), copy);
  for_each_position(memory, s, std::max(oldest, missing), end, copy);
}

inline std::vector<Sequence> sequences_of(const Packed& batch, const at::Tensor& past) {
  std::vector<Sequence> sequences;
  for (int64_t i = 0; i < batch.sequences; ++i) {
    const int64_t read =
        past.scalar_type() == at::kLong ? past.const_data_ptr<int64_t>()[i] : past.const_data_ptr<int32_t>()[i];
    TORCH_CHECK(read >= 0, "past must not be negative, got ", read);
    TORCH_CHECK(read == 0 || batch.src[i] >= 0, "a sequence with no source has read nothing, but its past is ", read);
    sequences.push_back({batch.src[i], batch.dst[i], read, batch.starts[i], batch.length(i)});
  }
  return sequences;
}

}  // namespace ostinato
