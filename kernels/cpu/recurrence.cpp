// The operator of kernels/recurrence.py: chooses the form at compile time, and prepares what all tasks share.
#include <ATen/ops/add.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include "recurrence_task.h"

namespace ostinato {
namespace {

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
