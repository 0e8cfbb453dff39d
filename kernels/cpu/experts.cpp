// A mixture of experts (kernels/experts.py): which experts a token meets, and what they give.
//
// Exactness: a token's experts follow from its own logits alone; a row of a projection is computed as if it were alone
// (kernels/linear.py); and what a token's experts give is added in the order of the experts.
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

#include <numeric>
#include <vector>

#include "coded_weight.h"
#include "operators.h"
#include "parallel.h"
#include "simd.h"

namespace ostinato {
namespace {

// The `chosen` largest of x in ascending order of their places; of equal ones the first. NaN is the smallest of all.
std::vector<int32_t> largest(const float* x, int64_t count, int64_t chosen) {
  const auto key = [x](int32_t i) { return std::isnan(x[i]) ? -std::numeric_limits<float>::infinity() : x[i]; };
  std::vector<int32_t> places(count);
  std::iota(places.begin(), places.end(), 0);
  std::partial_sort(places.begin(), places.begin() + chosen, places.end(), [&](int32_t a, int32_t b) {
    return key(a) > key(b) || (key(a) == key(b) && a < b);
  });
  places.resize(chosen);
  std::sort(places.begin(), places.end());
  return places;
}

void route_row(const float* x, int64_t count, int64_t chosen, bool normalize, float* powers, float* weights,
               int32_t* experts) {
  const std::vector<int32_t> places = largest(x, count, chosen);
  float most = x[places[0]];
  for (const int32_t i : places) most = std::max(most, x[i]);
  map_row(count, [&](int64_t i, int64_t n) { store(powers + i, exp(load(x + i, n) - Vec(most)), n); });
  float total = 0.f;
  if (normalize)
    for (const int32_t i : places) total += powers[i];
  else
    total = sum_row(count, [&](int64_t i, int64_t n) { return Vec::set(Vec(0.f), load(powers + i, n), n); });
  for (int64_t i = 0; i < chosen; ++i) {
    experts[i] = places[i];
    weights[i] = powers[places[i]] / total;
  }
}

std::tuple<at::Tensor, at::Tensor> route(const at::Tensor& logits, int64_t chosen, bool normalize) {
  const int64_t tokens = logits.size(0), count = logits.size(1);
  at::Tensor weights = at::empty({tokens, chosen}, logits.options());
  at::Tensor experts = at::empty({tokens, chosen}, logits.options().dtype(at::kInt));
  const float* x = logits.const_data_ptr<float>();
  float* w = weights.mutable_data_ptr<float>();
  int32_t* e = experts.mutable_data_ptr<int32_t>();
  at::parallel_for(0, tokens, rows_per_task(16 * count), [&](int64_t begin, int64_t end) {
    std::vector<float> powers(count);
    for (int64_t t = begin; t < end; ++t)
      route_row(x + t * count, count, chosen, normalize, powers.data(), w + t * chosen, e + t * chosen);
  });
  return {weights, experts};
}

// Packed weights come one by one, others in one tensor [E,N,K].
at::Tensor weight_of(at::TensorList weights, int64_t expert) {
  const bool one_by_one = weights[0].is_mkldnn() || is_coded(weights[0]);
  return one_by_one ? weights[expert] : weights[0].select(0, expert);
}

int64_t num_experts(at::TensorList weights) {
  const bool one_by_one = weights[0].is_mkldnn() || is_coded(weights[0]);
  return one_by_one ? static_cast<int64_t>(weights.size()) : weights[0].size(0);
}

// Which (token, choice) meets which expert: those of expert e are places[starts[e]] to places[starts[e + 1]].
struct Visits {
  std::vector<int64_t> starts, places;

  Visits(const at::Tensor& experts, int64_t count) : starts(count + 1), places(experts.numel()) {
    const int32_t* of = experts.const_data_ptr<int32_t>();
    for (int64_t i = 0; i < experts.numel(); ++i) {
      TORCH_CHECK_INDEX(of[i] >= 0 && of[i] < count, "experts: there is no expert ", of[i], " of ", count);
      ++starts[of[i] + 1];
    }
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    std::vector<int64_t> next = starts;
    for (int64_t i = 0; i < experts.numel(); ++i) places[next[of[i]]++] = i;
  }
};

// y[tokens[r]] += scale[places[r]] x[r], for every row r of x; no token is there twice.
void add_scaled(const at::Tensor& x, const int64_t* places, const int64_t* tokens, const float* scale, float* y) {
  const int64_t rows = x.size(0), width = x.size(1);
  const float* from = x.const_data_ptr<float>();
  at::parallel_for(0, rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const Vec factor(scale[places[r]]);
      float* to = y + tokens[r] * width;
      map_row(width, [&](int64_t i, int64_t n) {
        store(to + i, load(to + i, n) + factor * load(from + r * width + i, n), n);
      });
    }
  });
}

at::Tensor experts(const at::Tensor& x, at::TensorList gate_up, at::TensorList down, const at::Tensor& experts,
                   const at::Tensor& weights, const at::Tensor& residual, int64_t inner) {
  const int64_t chosen = experts.size(1), outputs = residual.size(1), count = num_experts(gate_up);
  TORCH_CHECK_VALUE(num_experts(down) == count && weights.sizes() == experts.sizes(), "experts: operands do not fit");
  const Visits visits(experts.contiguous(), count);
  const at::Tensor scales = weights.contiguous();
  const float* scale = scales.const_data_ptr<float>();
  at::Tensor y = residual.clone(at::MemoryFormat::Contiguous);
  float* out = y.mutable_data_ptr<float>();
  for (int64_t expert = 0; expert < count; ++expert) {
    const int64_t first = visits.starts[expert], rows = visits.starts[expert + 1] - first;
    if (!rows) continue;
    const int64_t* places = visits.places.data() + first;
    std::vector<int64_t> tokens(rows);
    std::transform(places, places + rows, tokens.begin(), [&](int64_t place) { return place / chosen; });
    const at::Tensor index = at::from_blob(tokens.data(), {rows}, at::TensorOptions().dtype(at::kLong));
    const at::Tensor wide = weight_of(gate_up, expert), narrow = weight_of(down, expert);
    const at::Tensor gated = activated_linear(x.index_select(0, index), wide, std::nullopt, 2 * inner,
                                              Activation::kSwiGLU, dtype_of(narrow));
    const at::Tensor given = linear(gated, narrow, std::nullopt, std::nullopt, outputs);
    add_scaled(given, places, tokens.data(), scale, out);
  }
  return y;
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) {
  m.impl("route", route);
  m.impl("experts", experts);
}
// As in linear.cpp: the weights may be such.
TORCH_LIBRARY_IMPL(ostinato, MkldnnCPU, m) { m.impl("experts", experts); }

}  // namespace
}  // namespace ostinato
