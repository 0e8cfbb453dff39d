// Token shift: every row mixed with the one before it, which for a sequence's first row is what its slot remembers.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "dtypes.h"
#include "packed.h"
#include "parallel.h"
#include "simd.h"

namespace ostinato {
namespace {

// x [T,C], mix [n,C], last [slots,C], y [n,T,C]. A task is one row of x, for all mixes.
template <typename T>
void mix_row(const T* x, const T* previous, const float* mix, T* y, int64_t mixes, int64_t channels, int64_t y_stride) {
  map_row(channels, [&](int64_t c, int64_t n) {
    const Vec now = load(x + c, n), before = previous ? load(previous + c, n) : Vec(0.f);
    for (int64_t i = 0; i < mixes; ++i)
      store(y + i * y_stride + c, at::vec::fmadd(before - now, load(mix + i * channels + c, n), now), n);
  });
}

// The row before token t of the batch: one of x, or of `last`, or none (null).
template <typename T>
const T* row_before(const T* x, const T* last, const Packed& batch, int64_t t, int64_t channels) {
  const int64_t sequence = std::upper_bound(batch.starts, batch.starts + batch.sequences, t) - batch.starts - 1;
  if (t > batch.starts[sequence]) return x + (t - 1) * channels;
  return batch.src[sequence] < 0 ? nullptr : last + batch.src[sequence] * channels;
}

// Leaves the last row of a sequence, or what it started from, in its destination.
template <typename T>
void remember(const T* x, T* last, const Packed& batch, int64_t sequence, int64_t channels) {
  const int64_t src = batch.src[sequence], dst = batch.dst[sequence], length = batch.length(sequence);
  if (dst < 0 || (length == 0 && src == dst)) return;
  if (length > 0)
    std::copy_n(x + (batch.starts[sequence + 1] - 1) * channels, channels, last + dst * channels);
  else if (src >= 0)
    std::copy_n(last + src * channels, channels, last + dst * channels);
  else
    std::fill_n(last + dst * channels, channels, static_cast<T>(0.f));
}

at::Tensor token_shift(const at::Tensor& x_, const at::Tensor& mix, const at::Tensor& last, const at::Tensor& src,
                       const at::Tensor& dst, const at::Tensor& starts, int64_t /*longest*/) {
  const at::Tensor x = x_.contiguous();
  const int64_t tokens = x.size(0), channels = x.size(1), mixes = mix.size(0);
  const Packed batch = packed(src, dst, starts, last.size(0), tokens);
  at::Tensor y = at::empty({mixes, tokens, channels}, x.options());
  with_dtype(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* in = x.const_data_ptr<T>();
    T *kept = last.mutable_data_ptr<T>(), *out = y.mutable_data_ptr<T>();
    const float* weights = mix.const_data_ptr<float>();
    at::parallel_for(0, tokens, rows_per_task(channels * mixes), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        mix_row(in + t * channels, row_before(in, kept, batch, t, channels), weights, out + t * channels, mixes,
                channels, tokens * channels);
    });
    for (int64_t i = 0; i < batch.sequences; ++i) remember(in, kept, batch, i, channels);
  });
  return y;
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) { m.impl("token_shift", token_shift); }

}  // namespace
}  // namespace ostinato
