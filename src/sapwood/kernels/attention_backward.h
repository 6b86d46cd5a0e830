// Ancestor attention, backward (FlashAttention-2, arXiv:2307.08691, algorithm 2). A part is one node's keys, and the queries of the
// node itself or of all below it; every (query, key) pair of the forest lies in one part.
#pragma once

#include "vectors.h"

namespace {

constexpr int64_t BLOCK_Q = 128;
constexpr int64_t BLOCK_K = 256;
constexpr int64_t TASKS = 24;  // of a pass, about: enough that two or more threads end together

// the lanes of 16 from the one `hidden` on
inline __mmask16 from_lane(int64_t hidden) {
  return hidden <= 0 ? 0xffff : hidden >= LANES ? 0 : static_cast<__mmask16>(0xffff << hidden);
}

// Two keys' scores and products with the gradient, for 32 queries each -> p and p (dp - delta) in bf16, rows to `pt` and `st`; the
// second pair of rows also interleaved, to `sp`. Queries before `hidden` do not see the first key, nor those before `hidden_next` the other.
inline void two_rows(const float* s, const float* dp, int64_t M, int64_t i, int64_t hidden, int64_t hidden_next, const Floats& factor,
                     const float* lse, const float* delta, BFloat16* pt, BFloat16* st, BFloat16* sp) {
  __m512i gradients[2];
  for (int64_t two = 0; two < 2; ++two) {
    Floats p[2], ds[2];
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t at = i + half * LANES, place = two * M + at;
      const __mmask16 seen = from_lane((two ? hidden_next : hidden) - at);
      p[half] = _mm512_maskz_mov_ps(seen, power_of_two(at::vec::fmsub(Floats::loadu(s + place), factor, Floats::loadu(lse + at))));
      ds[half] = p[half] * (Floats::loadu(dp + place) - Floats::loadu(delta + at));
    }
    gradients[two] = narrowed(ds[0], ds[1]);
    store(p[0], p[1], pt + two * M + i);
    _mm512_storeu_si512(st + two * M + i, gradients[two]);
  }
  alignas(64) static const uint16_t order[64] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                 11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
                                                 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  for (int64_t half = 0; half < 2; ++half)
    _mm512_storeu_si512(sp + 2 * (i + half * LANES), _mm512_permutex2var_epi16(gradients[0], _mm512_load_si512(order + 32 * half), gradients[1]));
}

// one query head: queries, keys, values, gradient, with the strides of their rows; sums in fp32, (T, D)
struct Head {
  const BFloat16 *q, *k, *v, *g;
  int64_t ld_q, ld_k, ld_v, ld_g;
  const float* lse;
  float *dq, *dk, *dv;
};

struct Scratch {
  Buffer<BFloat16> qt, gt, qp, gp, k, v, kt;  // of a whole part, packed block by block
  Buffer<BFloat16> pt, st, sp;                // of one pair of blocks
  Buffer<float> s, p, dqt, dqb, dkb, dvb, lse, delta;
  explicit Scratch(int64_t D)
      : pt(BLOCK_K * BLOCK_Q), st(BLOCK_K * BLOCK_Q), sp(BLOCK_K * BLOCK_Q), s(BLOCK_K * BLOCK_Q), p(BLOCK_K * BLOCK_Q),
        dqt(D * BLOCK_Q), dqb(D * BLOCK_Q), dkb(D * BLOCK_K), dvb(D * BLOCK_K), lse(BLOCK_Q), delta(BLOCK_Q) {}
};

// queries [a, b) and keys [c, d): P' = exp(K Q' - lse), S' = P' (V G' - delta), yet without the scale; dV += P' G, dK += S' Q, dQ' += K' S'.
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
  const Floats factor(scale * LOG2E);
  for (int64_t m0 = a; m0 < b; m0 += BLOCK_Q) {
    const int64_t m = std::min(BLOCK_Q, b - m0), M = padded(m), at_q = (m0 - a) * D;
    for (int64_t i = 0; i < M; ++i) {
      x.lse[i] = i < m ? h.lse[m0 + i] * LOG2E : 0.f;
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
        // queries before this one do not see the key of the row
        const auto hidden = [&](int64_t r) { return causal ? n0 + r - m0 : (r < n ? 0 : M); };
        for (int64_t i = 0; i < M; i += 2 * LANES)
          two_rows(x.s.data() + row * M, x.p.data() + row * M, M, i, hidden(row), hidden(row + 1), factor, x.lse.data(), x.delta.data(),
                   x.pt.data() + row * M, x.st.data() + row * M, x.sp.data() + row * M);
      }
      blas::brgemm(N, D, M, M, D, D, false, x.pt.data(), x.gp.data() + at_q, x.dvb.data());
      blas::brgemm(N, D, M, M, D, D, false, x.st.data(), x.qp.data() + at_q, x.dkb.data());
      blas::brgemm(D, M, N, whole, M, M, n0 > c, x.kt.data() + at_k, x.sp.data(), x.dqt.data());
      for (int64_t i = 0; i < n * D; i += LANES) {
        (Floats::loadu(h.dv + n0 * D + i) + Floats::loadu(x.dvb.data() + i)).store(h.dv + n0 * D + i);
        (Floats::loadu(h.dk + n0 * D + i) + Floats::loadu(x.dkb.data() + i)).store(h.dk + n0 * D + i);
      }
    }
    transpose<float, 16>(x.dqt.data(), M, D, m, D, x.dqb.data());
    for (int64_t i = 0; i < m * D; i += LANES)
      (Floats::loadu(h.dq + m0 * D + i) + Floats::loadu(x.dqb.data() + i)).store(h.dq + m0 * D + i);
  }
}

// The tokens in as many ranges as `count`, such that as many (query, key) pairs have their key in each: the edges.
std::vector<int64_t> key_ranges(const int64_t* part, int64_t P, int64_t T, int64_t count) {
  std::vector<int64_t> pairs(T + 1, 0);
  for (int64_t i = 0; i < P; ++i, part += 5)
    for (int64_t key = part[2]; key < part[3]; ++key) pairs[key + 1] += part[1] - (part[4] ? key : part[0]);
  for (int64_t key = 0; key < T; ++key) pairs[key + 1] += pairs[key];
  std::vector<int64_t> edges(count + 1, 0);
  for (int64_t i = 1; i < count; ++i)
    edges[i] = std::min(T, padded(std::lower_bound(pairs.begin(), pairs.end(), pairs[T] * i / count) - pairs.begin()));
  edges[count] = T;
  return edges;
}

// g, q, o (H, T, D) and k, v (G, T, D), rows of D contiguous; lse (H, T) fp32; parts (P, 5): a, b, c, d, causal.
// Gradients of q (H, T, D), k and v (G, T, D), laid out as (T, heads, D).
// A task is one head and one range of keys. How many ranges there are depends on the number of heads alone: never on threads.
std::tuple<Tensor, Tensor, Tensor> tree_backward(const Tensor& g, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                                                 const Tensor& lse, const Tensor& parts, double scale) {
  const int64_t H = q.size(0), T = q.size(1), D = q.size(2), G = k.size(0), group = H / G, P = parts.size(0);
  const int64_t ranges = std::max<int64_t>(1, TASKS / H);
  const int64_t* part = parts.const_data_ptr<int64_t>();
  const std::vector<int64_t> edges = key_ranges(part, P, T, ranges);
  const auto narrow = q.options(), wide = q.options().dtype(at::kFloat);
  Tensor sums_q = at::empty({ranges, H, T, D}, wide), sums_k = at::empty({H, T, D}, wide), sums_v = at::empty({H, T, D}, wide);
  Tensor deltas = at::empty({H, T}, wide);
  Tensor dq = at::empty({T, H, D}, narrow), dk = at::empty({T, G, D}, narrow), dv = at::empty({T, G, D}, narrow);
  float *sum_q = sums_q.mutable_data_ptr<float>(), *sum_k = sums_k.mutable_data_ptr<float>(), *sum_v = sums_v.mutable_data_ptr<float>();
  float* delta = deltas.mutable_data_ptr<float>();
  const auto at_head = [](const Tensor& x, int64_t head) { return x.const_data_ptr<BFloat16>() + head * x.stride(0); };
  at::parallel_for(0, H * T, rows_a_task(D), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const BFloat16 *grad = at_head(g, i / T) + i % T * g.stride(1), *out = at_head(o, i / T) + i % T * o.stride(1);
      Floats dot(0.f);
      for (int64_t j = 0; j < D; j += 2 * LANES) {
        const auto [g0, g1] = widened(grad + j);
        const auto [o0, o1] = widened(out + j);
        dot = dot + g0 * o0 + g1 * o1;
      }
      delta[i] = sum(dot);
    }
  });
  share_out(H * ranges, [&](const auto& next) {
    Scratch scratch(D);
    for (int64_t task = next(); task < H * ranges; task = next()) {
      const int64_t head = task % H, range = task / H, low = edges[range], high = edges[range + 1], own = head * T * D;
      const Head h{at_head(q, head), at_head(k, head / group), at_head(v, head / group), at_head(g, head), q.stride(1), k.stride(1),
                   v.stride(1), g.stride(1), lse.const_data_ptr<float>() + head * T, sum_q + range * H * T * D + own, sum_k + own, sum_v + own};
      std::fill(h.dq, h.dq + T * D, 0.f);
      std::fill(h.dk + low * D, h.dk + high * D, 0.f);
      std::fill(h.dv + low * D, h.dv + high * D, 0.f);
      for (int64_t i = 0; i < P; ++i) {
        const int64_t* p = part + 5 * i;
        const int64_t c = std::max(p[2], low), d = std::min(p[3], high), a = p[4] ? std::max(p[0], c) : p[0];
        if (c < d) part_backward(h, scratch, D, a, p[1], c, d, p[4] != 0, static_cast<float>(scale), delta + head * T);
      }
    }
    blas::brgemm_release();
  });
  // heads side by side: each is `by` times the sum of `each` others, so many numbers apart
  const auto gather = [&](const float* from, int64_t heads, int64_t each, int64_t apart, int64_t step, float by, Tensor& to) {
    BFloat16* out = to.mutable_data_ptr<BFloat16>();
    at::parallel_for(0, T, rows_a_task(H * D), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t head = 0; head < heads; ++head)
          for (int64_t j = 0; j < D; j += 2 * LANES) {
            Floats low(0.f), high(0.f);
            for (int64_t i = 0; i < each; ++i) {
              const float* row = from + head * step + i * apart + t * D + j;
              low = low + Floats::loadu(row);
              high = high + Floats::loadu(row + LANES);
            }
            store(low * Floats(by), high * Floats(by), out + (t * heads + head) * D + j);
          }
    });
  };
  gather(sum_q, H, ranges, H * T * D, T * D, static_cast<float>(scale), dq);
  gather(sum_k, G, group, T * D, group * T * D, static_cast<float>(scale), dk);
  gather(sum_v, G, group, T * D, group * T * D, 1.f, dv);
  return {dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1)};
}

}  // namespace
