// Recurrences of the demo models for training on a CPU: forward and hand-written backward, in fp32.
//
// dplr (GLA without a and b, RWKV-7 with them), per head, state S of shape [K, V]:
//     s_t = a_t^T S_{t-1};  S_t = diag(w_t) S_{t-1} + b_t s_t + k_t v_t^T;  o_t = r_t^T S_t
// mamba, per channel i with N states:
//     h_t = exp(dt_t A_i) h_{t-1} + dt_t x_t B_t;  y_t = C_t . h_t
//
// The forward pass saves the state every CHUNK tokens only; the backward pass rebuilds those in between, so its
// working set stays in the cache of a core.
// Loops over V and over 16 channels have constant bounds, so that the compiler turns them into vectors.
#include <torch/extension.h>

#include <cmath>
#include <vector>

namespace {

constexpr int64_t CHUNK = 16;
constexpr int LANES = 16;

using Tensor = torch::Tensor;

// One token: S <- diag(w) S + b s + k v^T in place. `s` receives a^T S when DELTA.
template <int V, bool DELTA>
inline void dplr_advance(int64_t K, const float* w, const float* k, const float* v, const float* a, const float* b,
                         const float* from, float* to, float* s) {
  if constexpr (DELTA) {
    float sum[V] = {};
    for (int64_t i = 0; i < K; ++i)
#pragma omp simd
      for (int j = 0; j < V; ++j) sum[j] += a[i] * from[i * V + j];
#pragma omp simd
    for (int j = 0; j < V; ++j) s[j] = sum[j];
  }
  for (int64_t i = 0; i < K; ++i)
#pragma omp simd
    for (int j = 0; j < V; ++j) {
      float value = w[i] * from[i * V + j] + k[i] * v[j];
      if constexpr (DELTA) value += b[i] * s[j];
      to[i * V + j] = value;
    }
}

template <int V, bool DELTA>
void dplr_forward_head(int64_t T, int64_t K, int64_t step_k, int64_t step_v, const float* r, const float* w,
                       const float* k, const float* v, const float* a, const float* b, float* o, float* saved) {
  std::vector<float> state(K * V, 0.f);
  float* S = state.data();
  float s[V];
  for (int64_t t = 0; t < T; ++t) {
    if (t % CHUNK == 0) std::copy(S, S + K * V, saved + (t / CHUNK) * K * V);
    const int64_t at = t * step_k;
    dplr_advance<V, DELTA>(K, w + at, k + at, v + t * step_v, a + at, b + at, S, S, s);
    float sum[V] = {};
    for (int64_t i = 0; i < K; ++i)
#pragma omp simd
      for (int j = 0; j < V; ++j) sum[j] += r[at + i] * S[i * V + j];
#pragma omp simd
    for (int j = 0; j < V; ++j) o[t * step_v + j] = sum[j];
  }
}

template <int V, bool DELTA>
void dplr_backward_head(int64_t T, int64_t K, int64_t step_k, int64_t step_v, const float* r, const float* w,
                        const float* k, const float* v, const float* a, const float* b, const float* saved,
                        const float* go, float* gr, float* gw, float* gk, float* gv, float* ga, float* gb) {
  std::vector<float> states((CHUNK + 1) * K * V), deltas(CHUNK * V), gradient(K * V, 0.f);
  float* G = gradient.data();  // d loss / d S_t, with everything that comes after t
  for (int64_t start = (T - 1) / CHUNK * CHUNK; start >= 0; start -= CHUNK) {
    const int64_t count = std::min(CHUNK, T - start);
    std::copy(saved + start / CHUNK * K * V, saved + (start / CHUNK + 1) * K * V, states.data());
    for (int64_t c = 0; c < count; ++c) {
      const int64_t at = (start + c) * step_k;
      dplr_advance<V, DELTA>(K, w + at, k + at, v + (start + c) * step_v, a + at, b + at, &states[c * K * V],
                             &states[(c + 1) * K * V], &deltas[c * V]);
    }
    for (int64_t c = count - 1; c >= 0; --c) {
      const int64_t at = (start + c) * step_k, av = (start + c) * step_v;
      const float *before = &states[c * K * V], *after = before + K * V, *s = &deltas[c * V];
      const float *g = go + av, *value = v + av;
      float sum_v[V] = {}, sum_s[V] = {};
      for (int64_t i = 0; i < K; ++i) {
        float dr = 0, dw = 0, dk = 0, db = 0;
        const float ri = r[at + i], ki = k[at + i], bi = DELTA ? b[at + i] : 0.f;
        float* Gi = G + i * V;
        const float *Pi = before + i * V, *Si = after + i * V;
#pragma omp simd
        for (int j = 0; j < V; ++j) {
          const float x = Gi[j] + ri * g[j];
          Gi[j] = x;
          dr += Si[j] * g[j];
          dw += x * Pi[j];
          dk += x * value[j];
          sum_v[j] += x * ki;
          if constexpr (DELTA) {
            db += x * s[j];
            sum_s[j] += x * bi;
          }
        }
        gr[at + i] = dr;
        gw[at + i] = dw;
        gk[at + i] = dk;
        if constexpr (DELTA) gb[at + i] = db;
      }
#pragma omp simd
      for (int j = 0; j < V; ++j) gv[av + j] = sum_v[j];
      for (int64_t i = 0; i < K; ++i) {
        const float wi = w[at + i], ai = DELTA ? a[at + i] : 0.f;
        float da = 0;
#pragma omp simd
        for (int j = 0; j < V; ++j) {
          if constexpr (DELTA) da += sum_s[j] * before[i * V + j];
          G[i * V + j] = wi * G[i * V + j] + ai * sum_s[j];
        }
        if constexpr (DELTA) ga[at + i] = da;
      }
    }
  }
}

template <int V, bool DELTA>
std::vector<Tensor> dplr_forward_v(const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a,
                                   const Tensor& b) {
  const int64_t B = r.size(0), T = r.size(1), H = r.size(2), K = r.size(3), chunks = (T + CHUNK - 1) / CHUNK;
  auto o = torch::empty_like(v), saved = torch::empty({B, H, chunks, K, V}, r.options());
  const float *pr = r.const_data_ptr<float>(), *pw = w.const_data_ptr<float>(), *pk = k.const_data_ptr<float>(),
              *pv = v.const_data_ptr<float>(), *pa = a.const_data_ptr<float>(), *pb = b.const_data_ptr<float>();
  float *po = o.data_ptr<float>(), *ps = saved.data_ptr<float>();
  at::parallel_for(0, B * H, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t at = (n / H * T * H + n % H) * K, av = (n / H * T * H + n % H) * V;
      dplr_forward_head<V, DELTA>(T, K, H * K, H * V, pr + at, pw + at, pk + at, pv + av, DELTA ? pa + at : pr,
                                  DELTA ? pb + at : pr, po + av, ps + n * chunks * K * V);
    }
  });
  return {o, saved};
}

template <int V, bool DELTA>
std::vector<Tensor> dplr_backward_v(const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v,
                                    const Tensor& a, const Tensor& b, const Tensor& saved, const Tensor& go) {
  const int64_t B = r.size(0), T = r.size(1), H = r.size(2), K = r.size(3), chunks = saved.size(2);
  auto gr = torch::empty_like(r), gw = torch::empty_like(r), gk = torch::empty_like(r), gv = torch::empty_like(v);
  auto ga = torch::empty_like(a), gb = torch::empty_like(b);
  const float *pr = r.const_data_ptr<float>(), *pw = w.const_data_ptr<float>(), *pk = k.const_data_ptr<float>(),
              *pv = v.const_data_ptr<float>(), *pa = a.const_data_ptr<float>(), *pb = b.const_data_ptr<float>(),
              *ps = saved.const_data_ptr<float>(), *pg = go.const_data_ptr<float>();
  float *qr = gr.data_ptr<float>(), *qw = gw.data_ptr<float>(), *qk = gk.data_ptr<float>(),
        *qv = gv.data_ptr<float>(), *qa = ga.data_ptr<float>(), *qb = gb.data_ptr<float>();
  at::parallel_for(0, B * H, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t at = (n / H * T * H + n % H) * K, av = (n / H * T * H + n % H) * V;
      dplr_backward_head<V, DELTA>(T, K, H * K, H * V, pr + at, pw + at, pk + at, pv + av, DELTA ? pa + at : pr,
                                   DELTA ? pb + at : pr, ps + n * chunks * K * V, pg + av, qr + at, qw + at, qk + at,
                                   qv + av, DELTA ? qa + at : qr, DELTA ? qb + at : qr);
    }
  });
  return {gr, gw, gk, gv, ga, gb};
}

std::vector<Tensor> dplr_forward(const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a,
                                 const Tensor& b) {
  const bool delta = a.numel() > 0;
  switch (v.size(3)) {
    case 64: return delta ? dplr_forward_v<64, true>(r, w, k, v, a, b) : dplr_forward_v<64, false>(r, w, k, v, a, b);
    case 128:
      return delta ? dplr_forward_v<128, true>(r, w, k, v, a, b) : dplr_forward_v<128, false>(r, w, k, v, a, b);
  }
  TORCH_CHECK(false, "head value size must be 64 or 128, got ", v.size(3));
}

std::vector<Tensor> dplr_backward(const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a,
                                  const Tensor& b, const Tensor& saved, const Tensor& go) {
  const bool delta = a.numel() > 0;
  if (v.size(3) == 64)
    return delta ? dplr_backward_v<64, true>(r, w, k, v, a, b, saved, go)
                 : dplr_backward_v<64, false>(r, w, k, v, a, b, saved, go);
  return delta ? dplr_backward_v<128, true>(r, w, k, v, a, b, saved, go)
               : dplr_backward_v<128, false>(r, w, k, v, a, b, saved, go);
}

// x, dt [B, T, I]; A [N, I]; Bm, Cm [B, T, N] -> y [B, T, I] and states [B, chunks, I / LANES, N, LANES]
std::vector<Tensor> mamba_forward(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& Bm,
                                  const Tensor& Cm) {
  const int64_t B = x.size(0), T = x.size(1), I = x.size(2), N = A.size(0);
  TORCH_CHECK(I % LANES == 0, "the number of channels must be a multiple of ", LANES);
  const int64_t blocks = I / LANES, cell = N * LANES, chunks = (T + CHUNK - 1) / CHUNK;
  auto y = torch::empty_like(x), saved = torch::empty({B, chunks, blocks, N, LANES}, x.options());
  const float *px = x.const_data_ptr<float>(), *pd = dt.const_data_ptr<float>(), *pA = A.const_data_ptr<float>(),
              *pB = Bm.const_data_ptr<float>(), *pC = Cm.const_data_ptr<float>();
  float *py = y.data_ptr<float>(), *ps = saved.data_ptr<float>();
  at::parallel_for(0, B * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> h(cell);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t row = n / blocks, block = n % blocks, channel = block * LANES;
      std::fill(h.begin(), h.end(), 0.f);
      for (int64_t t = 0; t < T; ++t) {
        if (t % CHUNK == 0) std::copy(h.begin(), h.end(), ps + ((row * chunks + t / CHUNK) * blocks + block) * cell);
        const float *xt = px + (row * T + t) * I + channel, *dtt = pd + (row * T + t) * I + channel;
        const float *Bt = pB + (row * T + t) * N, *Ct = pC + (row * T + t) * N;
        float sum[LANES] = {}, in[LANES];
#pragma omp simd
        for (int j = 0; j < LANES; ++j) in[j] = dtt[j] * xt[j];
        for (int64_t s = 0; s < N; ++s)
#pragma omp simd
          for (int j = 0; j < LANES; ++j) {
            const float value = std::exp(dtt[j] * pA[s * I + channel + j]) * h[s * LANES + j] + in[j] * Bt[s];
            h[s * LANES + j] = value;
            sum[j] += value * Ct[s];
          }
#pragma omp simd
        for (int j = 0; j < LANES; ++j) py[(row * T + t) * I + channel + j] = sum[j];
      }
    }
  });
  return {y, saved};
}

// Working memory of one thread: a chunk of one channel block, and gradients carried from chunk to chunk.
struct MambaScratch {
  std::vector<float> states, decays, sumB, sumC, carried, rates;
  MambaScratch(int64_t cell, int64_t blocks)
      : states((CHUNK + 1) * cell), decays(CHUNK * cell), sumB(CHUNK * cell), sumC(CHUNK * cell),
        carried(blocks * cell), rates(blocks * cell) {}
};

// One chunk of LANES channels. x, dt, gy, gx, gdt point at its first token; A has row stride I, as they have.
void mamba_backward_chunk(int64_t count, int64_t I, int64_t N, const float* x, const float* dt, const float* A,
                          const float* Bm, const float* Cm, const float* gy, const float* saved, MambaScratch& m,
                          float* G, float* gA, float* gx, float* gdt) {
  const int64_t cell = N * LANES;
  std::copy(saved, saved + cell, m.states.begin());
  for (int64_t t = 0; t < count; ++t) {
    const float *h = &m.states[t * cell], *Bt = Bm + t * N;
    float *next = &m.states[(t + 1) * cell], *decay = &m.decays[t * cell], in[LANES], step[LANES];
#pragma omp simd
    for (int j = 0; j < LANES; ++j) {
      step[j] = dt[t * I + j];
      in[j] = step[j] * x[t * I + j];
    }
    for (int64_t s = 0; s < N; ++s)
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        const float d = std::exp(step[j] * A[s * I + j]);
        decay[s * LANES + j] = d;
        next[s * LANES + j] = d * h[s * LANES + j] + in[j] * Bt[s];
      }
  }
  for (int64_t t = count - 1; t >= 0; --t) {
    const float *Bt = Bm + t * N, *Ct = Cm + t * N;
    const float *before = &m.states[t * cell], *after = before + cell, *decay = &m.decays[t * cell];
    float *sB = &m.sumB[t * cell], *sC = &m.sumC[t * cell];
    float in[LANES], step[LANES], g[LANES], gin[LANES] = {}, gd[LANES] = {};
#pragma omp simd
    for (int j = 0; j < LANES; ++j) {
      step[j] = dt[t * I + j];
      in[j] = step[j] * x[t * I + j];
      g[j] = gy[t * I + j];
    }
    for (int64_t s = 0; s < N; ++s)
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        const int64_t e = s * LANES + j;
        const float total = G[e] + g[j] * Ct[s], through = total * decay[e], log_decay = through * before[e];
        sC[e] += g[j] * after[e];
        sB[e] += total * in[j];
        gin[j] += total * Bt[s];
        gd[j] += log_decay * A[s * I + j];
        gA[e] += log_decay * step[j];
        G[e] = through;
      }
#pragma omp simd
    for (int j = 0; j < LANES; ++j) {
      gx[t * I + j] = gin[j] * step[j];
      gdt[t * I + j] = gin[j] * x[t * I + j] + gd[j];
    }
  }
}

// One thread per batch row: the gradients of B and C are sums over channels, kept as LANES partial sums.
std::vector<Tensor> mamba_backward(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& Bm,
                                   const Tensor& Cm, const Tensor& saved, const Tensor& gy) {
  const int64_t B = x.size(0), T = x.size(1), I = x.size(2), N = A.size(0);
  const int64_t blocks = I / LANES, cell = N * LANES, chunks = saved.size(1);
  auto gx = torch::empty_like(x), gdt = torch::empty_like(x), gB = torch::empty_like(Bm), gC = torch::empty_like(Cm);
  auto gA = torch::empty({B, blocks, N, LANES}, x.options());
  const float *px = x.const_data_ptr<float>(), *pd = dt.const_data_ptr<float>(), *pA = A.const_data_ptr<float>(),
              *pB = Bm.const_data_ptr<float>(), *pC = Cm.const_data_ptr<float>(), *pg = gy.const_data_ptr<float>(),
              *ps = saved.const_data_ptr<float>();
  float *qx = gx.data_ptr<float>(), *qd = gdt.data_ptr<float>(), *qA = gA.data_ptr<float>(),
        *qB = gB.data_ptr<float>(), *qC = gC.data_ptr<float>();
  at::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
    MambaScratch m(cell, blocks);
    for (int64_t row = begin; row < end; ++row) {
      std::fill(m.carried.begin(), m.carried.end(), 0.f);
      std::fill(m.rates.begin(), m.rates.end(), 0.f);
      for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
        const int64_t first = row * T + chunk * CHUNK, count = std::min(CHUNK, T - chunk * CHUNK);
        std::fill(m.sumB.begin(), m.sumB.end(), 0.f);
        std::fill(m.sumC.begin(), m.sumC.end(), 0.f);
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t at = first * I + block * LANES;
          mamba_backward_chunk(count, I, N, px + at, pd + at, pA + block * LANES, pB + first * N, pC + first * N,
                               pg + at, ps + ((row * chunks + chunk) * blocks + block) * cell, m,
                               &m.carried[block * cell], &m.rates[block * cell], qx + at, qd + at);
        }
        for (int64_t e = 0; e < count * N; ++e) {
          float b = 0, c = 0;
#pragma omp simd
          for (int j = 0; j < LANES; ++j) {
            b += m.sumB[e * LANES + j];
            c += m.sumC[e * LANES + j];
          }
          qB[first * N + e] = b;
          qC[first * N + e] = c;
        }
      }
      std::copy(m.rates.begin(), m.rates.end(), qA + row * blocks * cell);
    }
  });
  return {gx, gdt, gA.sum(0).permute({1, 0, 2}).reshape({N, I}), gB, gC};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("dplr_forward", &dplr_forward);
  m.def("dplr_backward", &dplr_backward);
  m.def("mamba_forward", &mamba_forward);
  m.def("mamba_backward", &mamba_backward);
}
