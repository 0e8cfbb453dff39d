// The arithmetic of attention on a block of kLanes neighbouring positions, which starts at a multiple of kLanes.
//
// A score is one dot product in one order; the sum of weights is lane by lane, where a position's lane is its
// remainder; and values are added position by position. So a query's bits depend on what it sees and on where that is,
// not on how the block's rows come to be in memory.
#pragma once

#include <c10/util/Unroll.h>

#include <limits>
#include <utility>

#include "simd.h"

namespace ostinato {

constexpr float kNever = -std::numeric_limits<float>::infinity();  // the score of a position that is not seen

// The block's rows where they are.
template <typename T>
struct Scattered {
  const T* rows[kLanes];

  Vec at(int64_t position, int64_t i) const { return load(rows[position] + i, kLanes); }
};

// The block's rows as fp32, padded with zeros to whole vectors. These lie position by position, and the rows' parts one
// after the other, [width / kLanes, kLanes, kLanes], so that their addresses differ by constants.
struct Gathered {
  float* block;

  static int64_t offset(int64_t position, int64_t i) { return i * kLanes + position * kLanes; }

  Vec at(int64_t position, int64_t i) const { return Vec::loadu(block + offset(position, i)); }

  template <typename T>
  void copy(int64_t position, const T* row, int64_t width) {
    float* out = block + offset(position, 0);
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) load(row + i, kLanes).store(out + offset(0, i));
    if (i < width) load(row + i, width - i).store(out + offset(0, i));
  }
};

// Adds neighbouring lanes until each of kRows vectors is one lane of the first.
template <int kRows>
void sum_neighbours(Vec* x) {
  if constexpr (kRows > 1) {
    c10::ForcedUnroll<kRows / 2>{}([&](auto j) {
      const auto [even, odd] = at::vec::deinterleave2(x[2 * j], x[2 * j + 1]);
      x[j] = even + odd;
    });
    sum_neighbours<kRows / 2>(x);
  }
}

template <typename Block, size_t... j>
Vec scores_of(const float* q, const Block& block, int64_t width, std::index_sequence<j...>) {
  Vec sums[] = {Vec(0.f * j)...};  // not default-constructed: that loop would keep them out of registers
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vec x = Vec::loadu(q + i);
    ((sums[j] = at::vec::fmadd(x, block.at(j, i), sums[j])), ...);
  }
  sum_neighbours<kLanes>(sums);
  return sums[0];
}

// Lane j of the result is the dot product of q with position j of the block. width: in whole vectors.
template <typename Block>
Vec scores_of(const float* q, const Block& block, int64_t width) {
  return scores_of(q, block, width, std::make_index_sequence<kLanes>{});
}

// kVectors vectors of the sum below, from i on.
template <int kVectors, typename Block>
void add_vectors(float* sum, const float* weights, const Block& block, int64_t i, int64_t from, int64_t to) {
  Vec sums[kVectors];
  c10::ForcedUnroll<kVectors>{}([&](auto c) { sums[c] = Vec::loadu(sum + i + c * kLanes); });
  for (int64_t j = from; j < to; ++j) {
    const Vec weight(weights[j]);
    c10::ForcedUnroll<kVectors>{}(
        [&](auto c) { sums[c] = at::vec::fmadd(weight, block.at(j, i + c * kLanes), sums[c]); });
  }
  c10::ForcedUnroll<kVectors>{}([&](auto c) { sums[c].store(sum + i + c * kLanes); });
}

// sum += weights[j] * row j of the block, for the positions j of [from, to), one after the other.
template <typename Block>
void add_rows(float* sum, const float* weights, const Block& block, int64_t width, int64_t from, int64_t to) {
  int64_t i = 0;
  for (; i + 8 * kLanes <= width; i += 8 * kLanes) add_vectors<8>(sum, weights, block, i, from, to);
  for (; i + 2 * kLanes <= width; i += 2 * kLanes) add_vectors<2>(sum, weights, block, i, from, to);
  for (; i < width; i += kLanes) add_vectors<1>(sum, weights, block, i, from, to);
}

// Turns scores into weights that are not yet divided by their sum, which is returned. count: in whole vectors.
inline float exponentiate(float* scores, int64_t count) {
  Vec largest(kNever), total(0.f);
  for (int64_t i = 0; i < count; i += kLanes) largest = at::vec::maximum(largest, Vec::loadu(scores + i));
  const Vec shift(at::vec::vec_reduce_all<float>([](Vec& x, Vec& y) { return at::vec::maximum(x, y); }, largest));
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec weight = exp(Vec::loadu(scores + i) - shift);
    weight.store(scores + i);
    total = total + weight;
  }
  return sum_lanes(total);
}

}  // namespace ostinato
