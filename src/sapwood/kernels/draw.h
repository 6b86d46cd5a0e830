// One token of each row of logits, and its log-probability, in two passes over the row and nothing written.
//
// Greedy, or drawn by inverting the cumulative distribution in order of the tokens' ids. A row may have a bit a token: only those whose
// bit is set are drawn. The log-probability is that of the whole row, whatever was allowed.
#pragma once

#include <optional>

#include "vectors.h"

namespace {

constexpr int64_t WEIGHED = 32 * LANES;  // tokens whose weights are summed together, in fp32; the sums are added up in fp64

// One row of bf16 as registers of fp32 at a temperature; what is not allowed, and what is behind the end, is minus infinity.
struct Row {
  const BFloat16* logits;
  const uint16_t* bits;  // or none
  int64_t width;
  __m512 temperature;
  Floats at(int64_t j, bool all) const {
    const __mmask16 inside = j + LANES <= width ? 0xffff : (1u << (width - j)) - 1u, allowed = all || bits == nullptr ? inside : inside & bits[j / LANES];
    const __m512 x = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, logits + j)), 16));
    return Floats(_mm512_mask_blend_ps(allowed, _mm512_set1_ps(-INFINITY), _mm512_div_ps(x, temperature)));
  }
  float top(bool all) const {
    Floats tops(-INFINITY);
    for (int64_t j = 0; j < width; j += LANES) tops = at::vec::maximum(tops, at(j, all));
    return largest(tops);
  }
};

// The sums of exp(x - top) of each WEIGHED tokens, and their sum.
double weigh_row(const Row& row, bool all, float top, std::vector<double>& sums) {
  const Floats base(top);
  double total = 0;
  sums.clear();
  for (int64_t first = 0; first < row.width; first += WEIGHED) {
    Floats some(0.f);
    for (int64_t j = first; j < std::min(row.width, first + WEIGHED); j += LANES) some = some + (row.at(j, all) - base).exp_u20();
    sums.push_back(sum(some));
    total += sums.back();
  }
  return total;
}

// The first token at which the cumulative weight exceeds `aim`.
int64_t invert(const Row& row, float top, const std::vector<double>& sums, double aim) {
  size_t block = 0;
  double before = 0;
  while (block + 1 < sums.size() && before + sums[block] <= aim) before += sums[block++];
  const Floats base(top);
  const int64_t first = static_cast<int64_t>(block) * WEIGHED, last = std::min(row.width, first + WEIGHED);
  int64_t found = first;
  for (int64_t j = first; j < last; j += LANES) {
    float weights[LANES];
    (row.at(j, false) - base).exp_u20().store(weights);
    for (int64_t i = 0; i < std::min(LANES, last - j); ++i) {
      if (weights[i] == 0.f) continue;
      found = j + i;  // where rounding leaves the aim behind the end, the last one that has a weight
      before += weights[i];
      if (before > aim) return found;
    }
  }
  return found;
}

// logits (N, V); uniform_N fp64 in [0, 1); bits (N, W) int32 with a bit a token, or none; temperature 0 takes the most likely token (the
// first of several) and its log-probability at 1 -> tokens (N), log-probabilities (N) fp32: NaN for a row that holds one, or plus infinity
std::tuple<Tensor, Tensor> draw_tokens(const Tensor& logits, const Tensor& uniform_N, const std::optional<Tensor>& bits, double temperature) {
  const int64_t N = logits.size(0), V = logits.size(1);
  TORCH_CHECK(logits.stride(1) == 1 && uniform_N.numel() == N && uniform_N.is_contiguous(), "logits lie side by side, with one number a row");
  TORCH_CHECK(!bits || (bits->is_contiguous() && bits->size(0) == N && bits->size(1) * 32 >= V), "there is a bit for each token");
  Tensor token_N = at::empty({N}, logits.options().dtype(at::kLong)), logprob_N = at::empty({N}, logits.options().dtype(at::kFloat));
  const BFloat16* in = logits.const_data_ptr<BFloat16>();
  const double* uniform = uniform_N.const_data_ptr<double>();
  int64_t* tokens = token_N.mutable_data_ptr<int64_t>();
  float* logprobs = logprob_N.mutable_data_ptr<float>();
  at::parallel_for(0, N, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sums;
    for (int64_t n = begin; n < end; ++n) {
      const auto* allowed = bits ? reinterpret_cast<const uint16_t*>(bits->const_data_ptr<int32_t>() + n * bits->size(1)) : nullptr;
      const Row row{in + n * logits.stride(0), allowed, V, _mm512_set1_ps(temperature > 0 ? static_cast<float>(temperature) : 1.f)};
      tokens[n] = 0;
      const float all = row.top(true), top = bits ? row.top(false) : all;
      if (!std::isfinite(all)) {
        logprobs[n] = NAN;
        continue;
      }
      double total = weigh_row(row, true, all, sums);
      const double lse = all + std::log(total);
      if (temperature > 0) {
        if (bits) total = weigh_row(row, false, top, sums);
        tokens[n] = invert(row, top, sums, uniform[n] * total);
      } else {
        for (int64_t j = 0; j < V; j += LANES) {
          const __mmask16 here = _mm512_cmp_ps_mask(row.at(j, false), _mm512_set1_ps(top), _CMP_EQ_OQ);
          if (here == 0) continue;
          tokens[n] = j + __builtin_ctz(here);
          break;
        }
      }
      const int64_t chosen = tokens[n];
      float block[LANES];
      row.at(chosen / LANES * LANES, true).store(block);
      logprobs[n] = static_cast<float>(block[chosen % LANES] - lse);
    }
  });
  return {token_N, logprob_N};
}

}  // namespace
