// Vector helpers shared by all CPU operators.
//
// Exactness: an element's result may depend on nothing but its own inputs, so that a token gives the same bits in any
// batch, at any position and with any number of threads. Therefore (1) the last, partial vector goes through the very
// same instructions as the full ones (masked loads), never through scalar code, and (2) every sum over a row has one
// fixed order: lane-wise partial sums, then one tree over the lanes.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <tuple>
#include <type_traits>

// A call would spill every vector register.
#define INLINE __attribute__((always_inline)) inline

namespace ostinato {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kLanes = Vec::size();

// Memory that is not initialised, aligned to whole cache lines.
struct Floats {
  explicit Floats(int64_t count) : data(new (std::align_val_t(64)) float[count]) {}
  ~Floats() { ::operator delete[](data, std::align_val_t(64)); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* get() const { return data; }
  float* data;
};

inline int64_t lanes_left(int64_t i, int64_t n) { return n - i < kLanes ? n - i : kLanes; }

INLINE Vec load(const float* p, int64_t count) { return count == kLanes ? Vec::loadu(p) : Vec::loadu(p, count); }

template <typename T>
INLINE Vec load(const T* p, int64_t count) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    if (count == kLanes) {
      Vec x;
      at::vec::load_fp32_from_bf16(p, x);
      return x;
    }
  }
  alignas(64) float buffer[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = static_cast<float>(p[i]);
  return Vec::loadu(buffer);
}

INLINE void store(float* p, Vec x, int64_t count) { x.store(p, count); }

template <typename T>
INLINE void store(T* p, Vec x, int64_t count) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
#if defined(__AVX512BF16__)
    return _mm256_mask_storeu_epi16(p, (1u << count) - 1, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
#else
    return at::vec::convert_float_bfloat16(x, x).store(p, count);
#endif
  }
  alignas(64) float buffer[kLanes];
  x.store(buffer);
  for (int64_t i = 0; i < count; ++i) p[i] = static_cast<T>(buffer[i]);
}

inline float sum_lanes(Vec x) {
  alignas(64) float lane[kLanes];
  x.store(lane);
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

// Sum of f(i, count) over the row [0, n), where f returns one vector whose lanes past `count` are zero.
template <typename F>
INLINE float sum_row(int64_t n, F f) {
  Vec total(0.f);
  for (int64_t i = 0; i < n; i += kLanes) total = total + f(i, lanes_left(i, n));
  return sum_lanes(total);
}

template <typename F>
INLINE void map_row(int64_t n, F f) {
  for (int64_t i = 0; i < n; i += kLanes) f(i, lanes_left(i, n));
}

struct RowMoments {
  float mean, scale;  // scale = 1 / sqrt(variance + eps), with the biased variance
};

inline RowMoments row_moments(const float* x, int64_t width, float eps) {
  const float mean = sum_row(width, [&](int64_t i, int64_t n) { return load(x + i, n); }) / static_cast<float>(width);
  const float squares = sum_row(width, [&](int64_t i, int64_t n) {
    const Vec d = Vec::set(Vec(0.f), load(x + i, n) - Vec(mean), n);
    return d * d;
  });
  return {mean, 1.f / std::sqrt(squares / static_cast<float>(width) + eps)};
}

// x as it is after having been stored as T.
template <typename T>
INLINE Vec rounded(Vec x) {
  if constexpr (std::is_same_v<T, float>) return x;
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
#if defined(__AVX512BF16__)
    const __m512i bits = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
#else
    return std::get<0>(at::vec::convert_bfloat16_float(at::vec::convert_float_bfloat16(x, x)));
#endif
  }
  alignas(64) T buffer[kLanes];
  store(buffer, x, kLanes);
  return load(buffer, kLanes);
}

// dst[j * dst_stride + i] = src[i * src_stride + j] for i, j < kLanes.
inline void transpose_square(const float* src, int64_t src_stride, float* dst, int64_t dst_stride) {
#if defined(CPU_CAPABILITY_AVX512)
  // Four columns at a time. Loading quarters of rows 4q + i into quarter q of a vector leaves 4 x 4 transpositions
  // within quarters.
  for (int64_t column = 0; column < 16; column += 4) {
    __m512 rows[4];
    for (int64_t i = 0; i < 4; ++i) {
      const float* p = src + i * src_stride + column;
      rows[i] = _mm512_castps128_ps512(_mm_loadu_ps(p));
      rows[i] = _mm512_insertf32x4(rows[i], _mm_loadu_ps(p + 4 * src_stride), 1);
      rows[i] = _mm512_insertf32x4(rows[i], _mm_loadu_ps(p + 8 * src_stride), 2);
      rows[i] = _mm512_insertf32x4(rows[i], _mm_loadu_ps(p + 12 * src_stride), 3);
    }
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(rows[0], rows[1])),
                  high01 = _mm512_castps_pd(_mm512_unpackhi_ps(rows[0], rows[1])),
                  low23 = _mm512_castps_pd(_mm512_unpacklo_ps(rows[2], rows[3])),
                  high23 = _mm512_castps_pd(_mm512_unpackhi_ps(rows[2], rows[3]));
    float* to = dst + column * dst_stride;
    _mm512_storeu_ps(to, _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23)));
    _mm512_storeu_ps(to + dst_stride, _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23)));
    _mm512_storeu_ps(to + 2 * dst_stride, _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23)));
    _mm512_storeu_ps(to + 3 * dst_stride, _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23)));
  }
#else
  at::vec::transpose_mxn<float, kLanes, kLanes>(src, src_stride, dst, dst_stride);
#endif
}

// dst[j * dst_stride + i] = src[i * src_stride + j] for i < rows, j < columns.
inline void transpose(const float* src, int64_t src_stride, float* dst, int64_t dst_stride, int64_t rows,
                      int64_t columns) {
  for (int64_t i = 0; i < rows; i += kLanes)
    for (int64_t j = 0; j < columns; j += kLanes) {
      const float* from = src + i * src_stride + j;
      float* to = dst + j * dst_stride + i;
      const int64_t m = lanes_left(i, rows), n = lanes_left(j, columns);
      if (m == kLanes && n == kLanes)
        transpose_square(from, src_stride, to, dst_stride);
      else
        for (int64_t x = 0; x < m; ++x)
          for (int64_t y = 0; y < n; ++y) to[y * dst_stride + x] = from[x * src_stride + y];
    }
}

// p * 2^n for integral n; zero where that is below the normal numbers, infinite where it is above them.
INLINE Vec scale_by_power(Vec p, Vec n) {
#if defined(CPU_CAPABILITY_AVX512)
  // Denormal numbers would slow down whatever reads them. The comparison lets NaN through.
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(n, Vec(-126.f), _CMP_NLT_UQ), p, n);
#else
  using Int = at::vec::Vectorized<int32_t>;
  // Adding 1.5 * 2^23 leaves n in the low bits.
  const Int exponent = at::vec::cast<int32_t>(n + Vec(12582912.f)) << Int(23);
  const Vec y = at::vec::cast<float>(at::vec::cast<int32_t>(p) + exponent);
  const Vec power = Vec::blendv(n, n - Vec(1.f), p < Vec(1.f));  // of y, since p is between 1/2 and 2
  const Vec large = Vec::blendv(y, Vec(std::numeric_limits<float>::infinity()), power > Vec(127.f));
  return Vec::blendv(Vec::blendv(large, Vec(0.f), power < Vec(-126.f)), p, p.isnan());
#endif
}

// e^x within 2 units in the last place: 2^n e^r with |r| <= ln(2) / 2. e^r - 1 - r is r^2 times a polynomial (Cephes).
INLINE Vec exp(Vec x) {
  x = at::vec::clamp(x, Vec(-150.f), Vec(150.f));
  const Vec n = (x * Vec(1.442695041f)).round();
  Vec r = at::vec::fmadd(n, Vec(-0.693359375f), x);
  r = at::vec::fmadd(n, Vec(2.12194440e-4f), r);
  Vec p(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = at::vec::fmadd(p, r, Vec(c));
  return scale_by_power(at::vec::fmadd(p * r, r, r) + Vec(1.f), n);
}

// 2^(a b) within 1.5 units in the last place, a b being exact: 2^n 2^f with |f| <= 1/2, by the polynomial with p(0) = 1
// whose largest relative error is least.
INLINE Vec exp2_of_product(Vec a, Vec b) {
  const Vec shift(12582912.f);  // 1.5 * 2^23: a sum with it has no bits behind the point, unless its power overflows
  const Vec n = at::vec::fmadd(a, b, shift) - shift, f = at::vec::fmsub(a, b, n);
  Vec p(1.3264735e-3f);
  for (const float c : {9.6715176e-3f, 5.5507340e-2f, 2.4022242e-1f, 6.9314700e-1f, 1.f})
    p = at::vec::fmadd(p, f, Vec(c));
  return scale_by_power(p, n);
}

// a / x for 1 <= x, within 2 units in the last place: a division occupies its unit for as long as this takes in all.
INLINE Vec divided(Vec a, Vec x) {
#if defined(CPU_CAPABILITY_AVX512)
  // Newton's method from an estimate; scaled by 2^-64, so that nothing leaves the normal numbers on the way.
  const Vec power(5.42101086e-20f), one(1.f), negative = x * power.neg();
  Vec y = _mm512_rcp14_ps(negative.neg());
  y = at::vec::fmadd(y, at::vec::fmadd(negative, y, one), y);
  y = at::vec::fmadd(y, at::vec::fmadd(negative, y, one), y);
  const Vec quotient = Vec::blendv(a * (y * power), a * y * power, x > Vec(1e30f));
  return Vec::blendv(quotient, Vec(0.f), x > Vec(std::numeric_limits<float>::max()));
#else
  return a / x;
#endif
}

INLINE Vec sigmoid(Vec x) { return divided(Vec(1.f), Vec(1.f) + exp(x.neg())); }
INLINE Vec silu(Vec x) { return divided(x, Vec(1.f) + exp(x.neg())); }

// GELU in its tanh form, x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3): that is x / (1 + e^-2u).
inline Vec gelu(Vec x) {
  const Vec slope = at::vec::fmadd(x * x, Vec(0.0713548163f), Vec(1.59576912f));  // 2 u / x
  return divided(x, Vec(1.f) + exp((x * slope).neg()));
}

// log(1 + u) for 0 <= u <= 1: twice the inverse hyperbolic tangent of u / (2 + u), by its Taylor series; of a small u
// the square could underflow, which is slow, and does not count.
INLINE Vec log1p_of_unit(Vec u) {
  const Vec s = u / (u + Vec(2.f)), visible = at::vec::maximum(s, Vec(1e-10f)), z = visible * visible;
  Vec p(1.f / 15);
  for (const float c : {1.f / 13, 1.f / 11, 1.f / 9, 1.f / 7, 1.f / 5, 1.f / 3}) p = at::vec::fmadd(p, z, Vec(c));
  return at::vec::fmadd(p, z, Vec(1.f)) * s * Vec(2.f);
}

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|).
INLINE Vec softplus(Vec x) { return at::vec::maximum(x, Vec(0.f)) + log1p_of_unit(exp(x.abs().neg())); }

}  // namespace ostinato
