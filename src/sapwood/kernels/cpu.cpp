// Training kernels for a CPU whose matrix products take bf16. In: contiguous rows of bf16. Out: the same in few passes over memory.
//
//   tree_backward      ancestor attention, backward     (FlashAttention-2, arXiv:2307.08691, algorithm 2; one head a thread)
//   rms_*              RMSNorm                          (arXiv:1910.07467, eq. 4)
//   swiglu_*           silu(gate) * up                  (arXiv:2002.05202, eq. 6)
//   row_lse, pull      the head's loss                  (log-sum-exp of a row of logits; softmax minus one-hot)
//   decode_attention   one new token a sequence         (decode.h; bf16 and fp32)
//
// Everything is computed in fp32 and rounded once on the way out. Each number is made by one thread in a fixed order, so that
// results do not depend on the number of threads. Left out on purpose: other types, which run torch's own operators.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <immintrin.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

namespace {

using at::BFloat16;
using at::Tensor;
using Floats = at::vec::Vectorized<float>;
using Halves = at::vec::Vectorized<BFloat16>;
namespace blas = at::native::cpublas;

constexpr int64_t LANES = Floats::size();
constexpr int64_t BLOCK_Q = 128;
constexpr int64_t BLOCK_K = 256;
constexpr int64_t PAD = 32;  // shapes of products are multiples of this, so that few of them are ever compiled
constexpr int64_t ELEMENTS_A_TASK = 1 << 15;

int64_t padded(int64_t size) { return (size + PAD - 1) / PAD * PAD; }

int64_t rows_a_task(int64_t width) { return std::max<int64_t>(1, ELEMENTS_A_TASK / width); }

std::tuple<Floats, Floats> widened(const BFloat16* from) { return at::vec::convert_to_float<BFloat16>(Halves::loadu(from)); }

void store(const Floats& low, const Floats& high, BFloat16* to) { at::vec::convert_from_float<BFloat16>(low, high).store(to); }

float sum(const Floats& values) {
  return at::vec::vec_reduce_all<float>([](Floats& x, Floats& y) { return x + y; }, values);
}

float largest(const Floats& values) {
  return at::vec::vec_reduce_all<float>([](Floats& x, Floats& y) { return at::vec::maximum(x, y); }, values);
}

// (rows, columns) -> (columns, `all`), by tiles; behind the rows, zeros
template <typename T, int TILE>
void transpose(const T* from, int64_t ld, int64_t rows, int64_t columns, int64_t all, T* to) {
  for (int64_t i = 0; i < rows; i += TILE)
    for (int64_t j = 0; j < columns; j += TILE)
      at::vec::transpose_mxn<T>(from + i * ld + j, ld, to + j * all + i, all, static_cast<int>(std::min<int64_t>(TILE, rows - i)),
                                static_cast<int>(std::min<int64_t>(TILE, columns - j)));
  for (int64_t j = 0; j < columns; ++j) std::fill(to + j * all + rows, to + (j + 1) * all, T(0));
}

// (rows, width) -> pairs of columns, transposed: [width / 2][all][2]. Two neighbours move as one fp32, whose value nothing reads.
void pack_transposed(const BFloat16* from, int64_t ld, int64_t rows, int64_t all, int64_t width, BFloat16* to) {
  transpose<float, 16>(reinterpret_cast<const float*>(from), ld / 2, rows, width / 2, all, reinterpret_cast<float*>(to));
}

// (rows, width) -> pairs of rows: [all / 2][width][2]
void pack_pairs(const BFloat16* from, int64_t ld, int64_t rows, int64_t all, int64_t width, BFloat16* to) {
  auto* out = reinterpret_cast<uint32_t*>(to);
  for (int64_t row = 0; row < all; row += 2) {
    const auto* even = reinterpret_cast<const uint16_t*>(from + row * ld);
    const auto* odd = even + ld;
    uint32_t* pairs = out + row / 2 * width;
    if (row + 1 < rows)
      for (int64_t column = 0; column < width; ++column) pairs[column] = even[column] | static_cast<uint32_t>(odd[column]) << 16;
    else
      for (int64_t column = 0; column < width; ++column) pairs[column] = row < rows ? even[column] : 0u;
  }
}

void copy_rows(const BFloat16* from, int64_t ld, int64_t rows, int64_t all, int64_t width, BFloat16* to) {
  for (int64_t row = 0; row < rows; ++row) std::memcpy(to + row * width, from + row * ld, width * sizeof(BFloat16));
  std::fill(to + rows * width, to + all * width, BFloat16(0));
}

// to bf16, nearest even, in the upper half of 32 bits; NaN stays NaN
inline uint32_t rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t near = bits + 0x7fffu + ((bits >> 16) & 1u);
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : near;
}

// two rows of fp32 -> two rows of bf16, and, where wanted, the same two interleaved
inline void write_rows(const float* even, const float* odd, int64_t width, BFloat16* row, BFloat16* next, BFloat16* pairs) {
  auto* to = reinterpret_cast<uint16_t*>(row);
  auto* to_next = reinterpret_cast<uint16_t*>(next);
  auto* to_pairs = reinterpret_cast<uint32_t*>(pairs);
  for (int64_t i = 0; i < width; ++i) {
    const uint32_t x = rounded(even[i]) >> 16, y = rounded(odd[i]) & 0xffff0000u;
    to[i] = static_cast<uint16_t>(x);
    to_next[i] = static_cast<uint16_t>(y >> 16);
    if (to_pairs != nullptr) to_pairs[i] = x | y;
  }
}

// one query head: queries, keys, values, gradient, with the strides of their rows; sums in fp32, (T, D)
struct Head {
  const BFloat16 *q, *k, *v, *g;
  int64_t ld_q, ld_k, ld_v, ld_g;
  const float* lse;
  float *dq, *dk, *dv;
};

struct Scratch {
  std::vector<BFloat16> qt, gt, qp, gp, k, v, kt;  // of a whole part, packed block by block
  std::vector<BFloat16> pt, st, sp;                // of one pair of blocks
  std::vector<float> s, p, dqt, dkb, dvb, lse, delta;
  explicit Scratch(int64_t D)
      : pt(BLOCK_K * BLOCK_Q), st(BLOCK_K * BLOCK_Q), sp(BLOCK_K * BLOCK_Q), s(BLOCK_K * BLOCK_Q), p(BLOCK_K * BLOCK_Q),
        dqt(D * BLOCK_Q), dkb(D * BLOCK_K), dvb(D * BLOCK_K), lse(BLOCK_Q), delta(BLOCK_Q) {}
};

// queries [a, b) and keys [c, d): P' = exp(K Q' - lse), S' = P' (V G' - delta); dV += P' G, dK += S' Q, dQ' += K' S'.
// All scores are made transposed, keys by queries, so that only keys need a transposed copy.
void part_backward(const Head& h, Scratch& x, int64_t D, int64_t a, int64_t b, int64_t c, int64_t d, bool causal, float scale,
                   const float* delta) {
  const int64_t queries = (b - a + BLOCK_Q - 1) / BLOCK_Q, keys = (d - c + BLOCK_K - 1) / BLOCK_K;
  for (auto* buffer : {&x.qt, &x.gt, &x.qp, &x.gp}) buffer->resize(queries * BLOCK_Q * D);
  for (auto* buffer : {&x.k, &x.v, &x.kt}) buffer->resize(keys * BLOCK_K * D);
  for (int64_t m0 = a; m0 < b; m0 += BLOCK_Q) {
    const int64_t m = std::min(BLOCK_Q, b - m0), M = padded(m), at = (m0 - a) * D;
    pack_transposed(h.q + m0 * h.ld_q, h.ld_q, m, M, D, x.qt.data() + at);
    pack_transposed(h.g + m0 * h.ld_g, h.ld_g, m, M, D, x.gt.data() + at);
    pack_pairs(h.q + m0 * h.ld_q, h.ld_q, m, M, D, x.qp.data() + at);
    pack_pairs(h.g + m0 * h.ld_g, h.ld_g, m, M, D, x.gp.data() + at);
  }
  for (int64_t n0 = c; n0 < d; n0 += BLOCK_K) {
    const int64_t n = std::min(BLOCK_K, d - n0), N = padded(n), at = (n0 - c) * D;
    copy_rows(h.k + n0 * h.ld_k, h.ld_k, n, N, D, x.k.data() + at);
    copy_rows(h.v + n0 * h.ld_v, h.ld_v, n, N, D, x.v.data() + at);
    transpose<BFloat16, 32>(h.k + n0 * h.ld_k, h.ld_k, n, D, N, x.kt.data() + at);
  }
  alignas(64) float ps[2][BLOCK_Q], ds[2][BLOCK_Q];
  const Floats vscale(scale), zero(0.f);
  for (int64_t m0 = a; m0 < b; m0 += BLOCK_Q) {
    const int64_t m = std::min(BLOCK_Q, b - m0), M = padded(m), at_q = (m0 - a) * D;
    for (int64_t i = 0; i < M; ++i) {
      x.lse[i] = i < m ? h.lse[m0 + i] : 0.f;
      x.delta[i] = i < m ? delta[m0 + i] : 0.f;
    }
    const int64_t last = causal ? std::min(d, m0 + m) : d;
    for (int64_t n0 = c; n0 < last; n0 += BLOCK_K) {
      // rows of this block of keys; the packed block may hold more of them
      const int64_t n = std::min(BLOCK_K, last - n0), whole = padded(std::min(BLOCK_K, d - n0)), N = std::min(padded(n), whole);
      const int64_t at_k = (n0 - c) * D;
      blas::brgemm(N, M, D, D, M, M, false, x.k.data() + at_k, x.qt.data() + at_q, x.s.data());
      blas::brgemm(N, M, D, D, M, M, false, x.v.data() + at_k, x.gt.data() + at_q, x.p.data());
      for (int64_t row = 0; row < N; row += 2) {
        for (int64_t two = 0; two < 2; ++two) {
          const int64_t r = row + two, hidden = causal ? n0 + r - m0 : (r < n ? 0 : M);  // queries before this one do not see key r
          const float *s = x.s.data() + r * M, *dp = x.p.data() + r * M;
          const int64_t skip = std::min(M, std::max<int64_t>(0, hidden) / LANES * LANES);
          std::fill(ps[two], ps[two] + skip, 0.f);
          std::fill(ds[two], ds[two] + skip, 0.f);
          for (int64_t i = skip; i < M; i += LANES) {
            Floats p = (Floats::loadu(s + i) * vscale - Floats::loadu(x.lse.data() + i)).exp_u20();
            if (hidden > i) p = Floats::blendv(p, zero, Floats::arange(0.f, 1.f) < Floats(static_cast<float>(hidden - i)));
            p.store(ps[two] + i);
            (p * (Floats::loadu(dp + i) - Floats::loadu(x.delta.data() + i)) * vscale).store(ds[two] + i);
          }
        }
        write_rows(ps[0], ps[1], M, x.pt.data() + row * M, x.pt.data() + (row + 1) * M, nullptr);
        write_rows(ds[0], ds[1], M, x.st.data() + row * M, x.st.data() + (row + 1) * M, x.sp.data() + row * M);
      }
      blas::brgemm(N, D, M, M, D, D, false, x.pt.data(), x.gp.data() + at_q, x.dvb.data());
      blas::brgemm(N, D, M, M, D, D, false, x.st.data(), x.qp.data() + at_q, x.dkb.data());
      blas::brgemm(D, M, N, whole, M, M, n0 > c, x.kt.data() + at_k, x.sp.data(), x.dqt.data());
      for (int64_t i = 0; i < n * D; i += LANES) {
        (Floats::loadu(h.dv + n0 * D + i) + Floats::loadu(x.dvb.data() + i)).store(h.dv + n0 * D + i);
        (Floats::loadu(h.dk + n0 * D + i) + Floats::loadu(x.dkb.data() + i)).store(h.dk + n0 * D + i);
      }
    }
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < D; ++j) h.dq[(m0 + i) * D + j] += x.dqt[j * M + i];
  }
}

// g, q, o (H, T, D) and k, v (G, T, D), rows of D contiguous; lse (H, T) fp32; parts (P, 5): a, b, c, d, causal.
// Gradients of q (H, T, D), k and v (G, T, D), laid out as (T, heads, D).
std::tuple<Tensor, Tensor, Tensor> tree_backward(const Tensor& g, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                                                 const Tensor& lse, const Tensor& parts, double scale) {
  const int64_t H = q.size(0), T = q.size(1), D = q.size(2), G = k.size(0), group = H / G, P = parts.size(0);
  Tensor sums = at::empty({3, H, T, D}, q.options().dtype(at::kFloat));
  Tensor dq = at::empty({T, H, D}, q.options()), dk = at::empty({T, G, D}, q.options()), dv = at::empty({T, G, D}, q.options());
  float* sum_of[3];
  for (int64_t i = 0; i < 3; ++i) sum_of[i] = sums.mutable_data_ptr<float>() + i * H * T * D;
  const int64_t* part = parts.const_data_ptr<int64_t>();
  const auto at_head = [](const Tensor& x, int64_t head) { return x.const_data_ptr<BFloat16>() + head * x.stride(0); };
  at::parallel_for(0, H, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(D);
    std::vector<float> delta(T);
    for (int64_t head = begin; head < end; ++head) {
      const int64_t own = head * T * D;
      for (float* sum : sum_of) std::fill(sum + own, sum + own + T * D, 0.f);
      const Head h{at_head(q, head), at_head(k, head / group), at_head(v, head / group), at_head(g, head), q.stride(1), k.stride(1),
                   v.stride(1), g.stride(1), lse.const_data_ptr<float>() + head * T, sum_of[0] + own, sum_of[1] + own, sum_of[2] + own};
      const BFloat16* out = at_head(o, head);
      for (int64_t t = 0; t < T; ++t) {
        Floats dot(0.f);
        for (int64_t j = 0; j < D; j += 2 * LANES) {
          const auto [g0, g1] = widened(h.g + t * h.ld_g + j);
          const auto [o0, o1] = widened(out + t * o.stride(1) + j);
          dot = dot + g0 * o0 + g1 * o1;
        }
        delta[t] = sum(dot);
      }
      for (int64_t i = 0; i < P; ++i) {
        const int64_t* p = part + 5 * i;
        part_backward(h, scratch, D, p[0], p[1], p[2], p[3], p[4] != 0, static_cast<float>(scale), delta.data());
      }
    }
    blas::brgemm_release();
  });
  // heads side by side; keys and values sum over the heads that share them
  const auto gather = [&](const float* from, int64_t heads, int64_t each, Tensor& to) {
    BFloat16* out = to.mutable_data_ptr<BFloat16>();
    at::parallel_for(0, T, rows_a_task(H * D), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t head = 0; head < heads; ++head)
          for (int64_t j = 0; j < D; j += 2 * LANES) {
            Floats low(0.f), high(0.f);
            for (int64_t i = 0; i < each; ++i) {
              const float* row = from + ((head * each + i) * T + t) * D + j;
              low = low + Floats::loadu(row);
              high = high + Floats::loadu(row + LANES);
            }
            store(low, high, out + (t * heads + head) * D + j);
          }
    });
  };
  gather(sum_of[0], H, 1, dq);
  gather(sum_of[1], G, group, dk);
  gather(sum_of[2], G, group, dv);
  return {dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1)};
}

// x (T, D), weight (D) -> y (T, D), 1 / root mean square of each row (T) fp32
std::tuple<Tensor, Tensor> rms_forward(const Tensor& x, const Tensor& weight, double eps) {
  const int64_t T = x.size(0), D = x.size(1);
  Tensor y = at::empty_like(x), inverse = at::empty({T}, x.options().dtype(at::kFloat));
  const BFloat16 *in = x.const_data_ptr<BFloat16>(), *w = weight.const_data_ptr<BFloat16>();
  BFloat16* out = y.mutable_data_ptr<BFloat16>();
  float* kept = inverse.mutable_data_ptr<float>();
  at::parallel_for(0, T, rows_a_task(D), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const BFloat16* row = in + t * D;
      Floats squares(0.f);
      for (int64_t j = 0; j < D; j += 2 * LANES) {
        const auto [a, b] = widened(row + j);
        squares = squares + a * a + b * b;
      }
      kept[t] = 1.f / std::sqrt(sum(squares) / static_cast<float>(D) + static_cast<float>(eps));
      const Floats factor(kept[t]);
      for (int64_t j = 0; j < D; j += 2 * LANES) {
        const auto [a, b] = widened(row + j);
        BFloat16 normed[2 * LANES];  // rounded before the weight, as the models were trained
        store(a * factor, b * factor, normed);
        const auto [n0, n1] = widened(normed);
        const auto [w0, w1] = widened(w + j);
        store(n0 * w0, n1 * w1, out + t * D + j);
      }
    }
  });
  return {y, inverse};
}

// gradient of x, of a norm whose weight is frozen
Tensor rms_backward(const Tensor& g, const Tensor& x, const Tensor& weight, const Tensor& inverse) {
  const int64_t T = x.size(0), D = x.size(1);
  Tensor dx = at::empty_like(x);
  const BFloat16 *in = x.const_data_ptr<BFloat16>(), *w = weight.const_data_ptr<BFloat16>(), *grad = g.const_data_ptr<BFloat16>();
  BFloat16* out = dx.mutable_data_ptr<BFloat16>();
  const float* kept = inverse.const_data_ptr<float>();
  at::parallel_for(0, T, rows_a_task(D), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Floats factor(kept[t]);
      Floats dot(0.f);
      for (int64_t j = 0; j < D; j += 2 * LANES) {
        const auto [x0, x1] = widened(in + t * D + j);
        const auto [g0, g1] = widened(grad + t * D + j);
        const auto [w0, w1] = widened(w + j);
        dot = dot + x0 * g0 * w0 + x1 * g1 * w1;
      }
      const Floats share(sum(dot) * kept[t] * kept[t] / static_cast<float>(D));
      for (int64_t j = 0; j < D; j += 2 * LANES) {
        const auto [x0, x1] = widened(in + t * D + j);
        const auto [g0, g1] = widened(grad + t * D + j);
        const auto [w0, w1] = widened(w + j);
        store((g0 * w0 - x0 * share) * factor, (g1 * w1 - x1 * share) * factor, out + t * D + j);
      }
    }
  });
  return dx;
}

// silu(gate) * up, of as many contiguous numbers
Tensor swiglu_forward(const Tensor& gate, const Tensor& up) {
  Tensor y = at::empty_like(gate);
  const BFloat16 *a = gate.const_data_ptr<BFloat16>(), *b = up.const_data_ptr<BFloat16>();
  BFloat16* out = y.mutable_data_ptr<BFloat16>();
  const Floats one(1.f);
  at::parallel_for(0, gate.numel() / (2 * LANES), ELEMENTS_A_TASK / (2 * LANES), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * 2 * LANES; i < end * 2 * LANES; i += 2 * LANES) {
      const auto [g0, g1] = widened(a + i);
      const auto [u0, u1] = widened(b + i);
      store(g0 / (one + g0.neg().exp_u20()) * u0, g1 / (one + g1.neg().exp_u20()) * u1, out + i);
    }
  });
  return y;
}

// gradients of gate and up
std::tuple<Tensor, Tensor> swiglu_backward(const Tensor& g, const Tensor& gate, const Tensor& up) {
  Tensor d_gate = at::empty_like(gate), d_up = at::empty_like(up);
  const BFloat16 *a = gate.const_data_ptr<BFloat16>(), *b = up.const_data_ptr<BFloat16>(), *grad = g.const_data_ptr<BFloat16>();
  BFloat16 *out_gate = d_gate.mutable_data_ptr<BFloat16>(), *out_up = d_up.mutable_data_ptr<BFloat16>();
  const Floats one(1.f);
  at::parallel_for(0, gate.numel() / (2 * LANES), ELEMENTS_A_TASK / (2 * LANES), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * 2 * LANES; i < end * 2 * LANES; i += 2 * LANES) {
      const auto [g0, g1] = widened(a + i);
      const auto [u0, u1] = widened(b + i);
      const auto [r0, r1] = widened(grad + i);
      const Floats s0 = one / (one + g0.neg().exp_u20()), s1 = one / (one + g1.neg().exp_u20());
      store(r0 * g0 * s0, r1 * g1 * s1, out_up + i);
      store(r0 * u0 * s0 * (one + g0 * (one - s0)), r1 * u1 * s1 * (one + g1 * (one - s1)), out_gate + i);
    }
  });
  return {d_gate, d_up};
}

// log-sum-exp (N) fp32 of each row of logits (N, V)
Tensor row_lse(const Tensor& logits) {
  const int64_t N = logits.size(0), V = logits.size(1), whole = V / (2 * LANES) * (2 * LANES);
  Tensor lse = at::empty({N}, logits.options().dtype(at::kFloat));
  const BFloat16* in = logits.const_data_ptr<BFloat16>();
  float* out = lse.mutable_data_ptr<float>();
  at::parallel_for(0, N, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const BFloat16* row = in + n * V;
      Floats top(-INFINITY);
      for (int64_t j = 0; j < whole; j += 2 * LANES) {
        const auto [a, b] = widened(row + j);
        top = at::vec::maximum(top, at::vec::maximum(a, b));
      }
      float high = largest(top);
      for (int64_t j = whole; j < V; ++j) high = std::max(high, static_cast<float>(row[j]));
      const Floats base(high);
      Floats total(0.f);
      for (int64_t j = 0; j < whole; j += 2 * LANES) {
        const auto [a, b] = widened(row + j);
        total = total + (a - base).exp_u20() + (b - base).exp_u20();
      }
      float all = sum(total);
      for (int64_t j = whole; j < V; ++j) all += std::exp(static_cast<float>(row[j]) - high);
      out[n] = high + std::log(all);
    }
  });
  return lse;
}

// softmax of a row of logits minus 1 at its token, (N, V): rows of `logits` by `row_N`
Tensor pull(const Tensor& logits, const Tensor& lse, const Tensor& row_N, const Tensor& token_N) {
  const int64_t N = row_N.size(0), V = logits.size(1), whole = V / (2 * LANES) * (2 * LANES);
  Tensor result = at::empty({N, V}, logits.options());
  const BFloat16* in = logits.const_data_ptr<BFloat16>();
  const float* sums = lse.const_data_ptr<float>();
  const int64_t *rows = row_N.const_data_ptr<int64_t>(), *tokens = token_N.const_data_ptr<int64_t>();
  BFloat16* out = result.mutable_data_ptr<BFloat16>();
  at::parallel_for(0, N, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const BFloat16* row = in + rows[n] * V;
      BFloat16* to = out + n * V;
      const float base = sums[rows[n]];
      const Floats bases(base);
      for (int64_t j = 0; j < whole; j += 2 * LANES) {
        const auto [a, b] = widened(row + j);
        store((a - bases).exp_u20(), (b - bases).exp_u20(), to + j);
      }
      for (int64_t j = whole; j < V; ++j) to[j] = std::exp(static_cast<float>(row[j]) - base);
      to[tokens[n]] = std::exp(static_cast<float>(row[tokens[n]]) - base) - 1.f;  // in fp32, so that little is left of what nearly cancels
    }
  });
  return result;
}

#include "decode.h"

}  // namespace

TORCH_LIBRARY(sapwood_cpu, library) {
  library.def("tree_backward(Tensor g, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor parts, float scale) -> (Tensor, Tensor, Tensor)");
  library.def("rms_forward(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)");
  library.def("rms_backward(Tensor g, Tensor x, Tensor weight, Tensor inverse) -> Tensor");
  library.def("swiglu_forward(Tensor gate, Tensor up) -> Tensor");
  library.def("swiglu_backward(Tensor g, Tensor gate, Tensor up) -> (Tensor, Tensor)");
  library.def("row_lse(Tensor logits) -> Tensor");
  library.def(
      "decode_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, Tensor length_N, int window, float scale) -> "
      "(Tensor, Tensor)");
  library.def("pull(Tensor logits, Tensor lse, Tensor row_N, Tensor token_N) -> Tensor");
}

TORCH_LIBRARY_IMPL(sapwood_cpu, CPU, library) {
  library.impl("tree_backward", tree_backward);
  library.impl("rms_forward", rms_forward);
  library.impl("rms_backward", rms_backward);
  library.impl("swiglu_forward", swiglu_forward);
  library.impl("swiglu_backward", swiglu_backward);
  library.impl("row_lse", row_lse);
  library.impl("pull", pull);
  library.impl("decode_attention", decode_attention);
}
