// Ancestor attention, forward (FlashAttention-2, arXiv:2307.08691, algorithm 1). A task is one head and one block of queries: it goes
// through all parts of the forest that these queries have a share in, and joins them as it goes, so that nothing is joined later.
#pragma once

#include "vectors.h"

namespace {

constexpr int64_t QUERIES_A_TASK = 64;  // of a task
constexpr int64_t KEYS_A_PRODUCT = 256;  // of one product

// Keys and values of one node, in the layout of products, block by block: where its tokens lie in the packed buffers.
struct Packing {
  std::vector<int64_t> at;                          // by the node's first token
  std::vector<std::tuple<int64_t, int64_t>> blocks;  // first token, number of tokens
  int64_t tokens = 0;
  Packing(const int64_t* part, int64_t P, int64_t S) : at(S, -1) {
    for (int64_t i = 0; i < P; ++i, part += 5) {
      if (at[part[2]] >= 0) continue;  // another part reads the same node
      at[part[2]] = tokens;
      for (int64_t n0 = part[2]; n0 < part[3]; n0 += KEYS_A_PRODUCT) {
        const int64_t n = std::min(KEYS_A_PRODUCT, part[3] - n0);
        at[n0] = tokens;
        blocks.emplace_back(n0, n);
        tokens += padded(n);
      }
    }
  }
};

// What is known of a block of queries so far: the highest score, the sum of exp(score - highest), and the values weighted by them.
struct Known {
  Buffer<BFloat16> q, p;
  Buffer<float> s, values, top, total;
  explicit Known(int64_t D)
      : q((QUERIES_A_TASK + PAD) * D), p((QUERIES_A_TASK + PAD) * KEYS_A_PRODUCT), s((QUERIES_A_TASK + PAD) * KEYS_A_PRODUCT), values((QUERIES_A_TASK + PAD) * D), top(QUERIES_A_TASK), total(QUERIES_A_TASK) {}
};

// One row of scores -> its weights in bf16, zero behind the `seen` first ones; the row's state moves on. Returns what to scale values by.
inline float weigh(const float* s, int64_t seen, int64_t N, float scale, float& top, float& total, BFloat16* p) {
  const int64_t whole = seen / LANES * LANES;
  const Floats lowest(-INFINITY), inside = Floats::arange(0.f, 1.f) < Floats(static_cast<float>(seen - whole));
  Floats high = lowest;
  for (int64_t j = 0; j < whole; j += LANES) high = at::vec::maximum(high, Floats::loadu(s + j));
  if (whole < seen) high = at::vec::maximum(high, Floats::blendv(lowest, Floats::loadu(s + whole), inside));
  const float now = std::max(top, largest(high) * scale), factor = std::exp(top - now);
  const Floats by(scale * LOG2E), base(now * LOG2E), zero(0.f);
  Floats sums(0.f);
  for (int64_t j = 0; j < N; j += 2 * LANES) {
    Floats two[2] = {zero, zero};
    for (int64_t i = 0; i < 2; ++i) {
      const int64_t first = j + i * LANES;
      if (first >= seen) continue;
      two[i] = power_of_two(at::vec::fmsub(Floats::loadu(s + first), by, base));
      if (first + LANES > seen) two[i] = Floats::blendv(zero, two[i], inside);
      sums = sums + two[i];
    }
    store(two[0], two[1], p + j);
  }
  top = now;
  total = total * factor + sum(sums);
  return factor;
}

// q (H, T, D), k and v (G, S, D), rows of D contiguous; parts (P, 5): queries [a, b) see keys [c, d), causally where a = c -> out (H, T,
// D), laid out as (T, H, D), and the log-sum-exp of each query's scores, (H, T) fp32. Keys may stand behind those of the queries' own
// nodes: what was computed before.
std::tuple<Tensor, Tensor> tree_forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& parts, double scale) {
  const int64_t H = q.size(0), T = q.size(1), D = q.size(2), G = k.size(0), group = H / G, P = parts.size(0);
  const int64_t* part = parts.const_data_ptr<int64_t>();
  const Packing packing(part, P, k.size(1));
  const int64_t blocks = static_cast<int64_t>(packing.blocks.size()), size = packing.tokens * D;
  Tensor packed = at::empty({2, G, packing.tokens, D}, q.options());
  Tensor out = at::empty({T, H, D}, q.options()), lse = at::empty({H, T}, q.options().dtype(at::kFloat));
  BFloat16 *keys = packed.mutable_data_ptr<BFloat16>(), *values = keys + G * size, *to = out.mutable_data_ptr<BFloat16>();
  float* sums = lse.mutable_data_ptr<float>();
  at::parallel_for(0, G * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / blocks;
      const auto [n0, n] = packing.blocks[i % blocks];
      const int64_t place = head * size + packing.at[n0] * D;
      pack_transposed(k.const_data_ptr<BFloat16>() + head * k.stride(0) + n0 * k.stride(1), k.stride(1), n, padded(n), D, keys + place);
      pack_pairs(v.const_data_ptr<BFloat16>() + head * v.stride(0) + n0 * v.stride(1), v.stride(1), n, padded(n), D, values + place);
    }
  });
  const int64_t rounds = (T + QUERIES_A_TASK - 1) / QUERIES_A_TASK;
  share_out(H * rounds, [&](const auto& next) {
    Known x(D);
    for (int64_t task = next(); task < H * rounds; task = next()) {
      // the last ones see most: they come first, so that all end together
      const int64_t head = task % H, m0 = (rounds - 1 - task / H) * QUERIES_A_TASK, m1 = std::min(T, m0 + QUERIES_A_TASK), own = head / group * size;
      copy_rows(q.const_data_ptr<BFloat16>() + head * q.stride(0) + m0 * q.stride(1), q.stride(1), m1 - m0, QUERIES_A_TASK + PAD, D, x.q.data());
      std::fill(x.values.begin(), x.values.end(), 0.f);
      std::fill(x.top.begin(), x.top.end(), -INFINITY);
      std::fill(x.total.begin(), x.total.end(), 0.f);
      for (int64_t i = 0; i < P; ++i) {
        const int64_t *p = part + 5 * i, a = std::max(p[0], m0), b = std::min(p[1], m1), M = padded(b - a);
        const bool causal = p[4] != 0;
        if (a >= b) continue;
        const int64_t last = causal ? std::min(p[3], b) : p[3];
        for (int64_t n0 = p[2]; n0 < last; n0 += KEYS_A_PRODUCT) {
          const int64_t whole = padded(std::min(KEYS_A_PRODUCT, p[3] - n0)), n = std::min(KEYS_A_PRODUCT, last - n0), N = padded(n);
          const int64_t place = own + packing.at[n0] * D;
          blas::brgemm(M, N, D, D, whole, N, false, x.q.data() + (a - m0) * D, keys + place, x.s.data());
          for (int64_t row = 0; row < b - a; ++row) {
            const int64_t seen = causal ? std::max<int64_t>(0, std::min(n, a + row - n0 + 1)) : n, r = a - m0 + row;
            if (seen == 0) {
              std::fill(x.p.data() + row * N, x.p.data() + (row + 1) * N, BFloat16(0));
              continue;
            }
            const float factor = weigh(x.s.data() + row * N, seen, N, static_cast<float>(scale), x.top[r], x.total[r], x.p.data() + row * N);
            if (factor == 1.f) continue;
            for (int64_t j = 0; j < D; j += LANES) (Floats::loadu(&x.values[r * D + j]) * Floats(factor)).store(&x.values[r * D + j]);
          }
          std::fill(x.p.data() + (b - a) * N, x.p.data() + M * N, BFloat16(0));  // rows of another part: nothing is added to them
          blas::brgemm(M, D, N, N, D, D, true, x.p.data(), values + place, x.values.data() + (a - m0) * D);
        }
      }
      for (int64_t r = 0; r < m1 - m0; ++r) {
        const Floats share(1.f / x.total[r]);
        for (int64_t j = 0; j < D; j += 2 * LANES)
          store(Floats::loadu(&x.values[r * D + j]) * share, Floats::loadu(&x.values[r * D + j + LANES]) * share, to + ((m0 + r) * H + head) * D + j);
        sums[head * T + m0 + r] = x.top[r] + std::log(x.total[r]);
      }
    }
    blas::brgemm_release();
  });
  return {out.transpose(0, 1), lse};
}

}  // namespace
