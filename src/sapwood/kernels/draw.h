// One token of each row of logits, and its log-probability, in two passes over the row, three with filters, and next to nothing written.
//
// Greedy, or drawn by inverting the cumulative distribution in order of the tokens' ids. A row may have a bit a token (only those whose bit
// is set are drawn), logits that are put in the place of its own (penalties, biases), and filters. The log-probability is that of the
// whole row as it came.
#pragma once

#include <optional>

#include "filters.h"

namespace {

// What one thread works with.
struct Drawing {
  std::vector<double> sums;
  std::vector<float> tops;
  std::vector<Candidate> found, kept;
  Buffer<float> edited;
};

struct Setting {
  double uniform, temperature;
  Filters filters;
};

// The sums of exp(x - top) of each WEIGHED tokens, and their sum.
template <typename T>
double weigh_row(const Row<T>& row, float top, std::vector<double>& sums) {
  const Floats base(top);
  double total = 0;
  sums.clear();
  for (int64_t first = 0; first < row.width; first += WEIGHED) {
    Floats some(0.f);
    for (int64_t j = first; j < std::min(row.width, first + WEIGHED); j += LANES) some = some + (row.at(j) - base).exp_u20();
    sums.push_back(sum(some));
    total += sums.back();
  }
  return total;
}

// The first token at which the cumulative weight exceeds `aim`.
template <typename T>
int64_t invert(const Row<T>& row, float top, const std::vector<double>& sums, double aim) {
  size_t block = 0;
  double before = 0;
  while (block + 1 < sums.size() && before + sums[block] <= aim) before += sums[block++];
  const Floats base(top);
  const int64_t first = static_cast<int64_t>(block) * WEIGHED, last = std::min(row.width, first + WEIGHED);
  int64_t found = first;
  for (int64_t j = first; j < last; j += LANES) {
    float weights[LANES];
    (row.at(j) - base).exp_u20().store(weights);
    for (int64_t i = 0; i < std::min(LANES, last - j); ++i) {
      if (weights[i] == 0.f) continue;
      found = j + i;  // where rounding leaves the aim behind the end, the last one that has a weight
      before += weights[i];
      if (before > aim) return found;
    }
  }
  return found;
}

int64_t invert_kept(const std::vector<Candidate>& kept, double uniform) {
  double total = 0, before = 0;
  for (const Candidate& one : kept) total += one.weight;
  int64_t found = kept.front().token;
  for (const Candidate& one : kept) {
    if (one.weight == 0.f) continue;
    found = one.token;
    before += one.weight;
    if (before > uniform * total) break;
  }
  return found;
}

template <typename T>
int64_t first_of(const Row<T>& row, float value) {
  for (int64_t j = 0; j < row.width; j += LANES) {
    const __mmask16 here = _mm512_cmp_ps_mask(row.at(j), _mm512_set1_ps(value), _CMP_EQ_OQ);
    if (here != 0) return j + __builtin_ctz(here);
  }
  return 0;
}

// A token of a row whose largest logit is `top`, with `scratch.tops`; `sums` hold the weights already if their `total` is above 0.
template <typename T>
int64_t draw_token(const Row<T>& row, const Setting& setting, float top, double total, Drawing& scratch) {
  if (setting.temperature == 0) return first_of(row, top);
  if (total == 0) total = weigh_row(row, top, scratch.sums);
  const Filters& filters = setting.filters;
  if (!filters.any() || !std::isfinite(top)) return invert(row, top, scratch.sums, setting.uniform * total);
  gather_candidates(row, filters, top, total, scratch.tops, scratch.found);
  filter(filters, total, scratch.found, scratch.kept);
  return invert_kept(scratch.kept, setting.uniform);
}

// settings (N, 5) fp64: a uniform number in [0, 1), temperature (0 takes the most likely token, the first of several, and its
// log-probability at 1), top_k (0: all), top_p, min_p
Setting setting_of(const double* row, int64_t width) {
  const auto top_k = static_cast<int64_t>(row[2]);
  return {row[0], row[1], {top_k < width ? top_k : 0, row[3], row[4]}};
}

// The row with the logits (id, value) of [begin, end) in the place of its own, in fp32
Row<float> edited_row(const Row<BFloat16>& row, const int64_t* ids, const float* values, int64_t begin, int64_t end, Buffer<float>& edited) {
  edited.resize((row.width + LANES - 1) / LANES * LANES);
  for (int64_t j = 0; j < row.width; j += LANES) _mm512_storeu_ps(edited.data() + j, row.raw(j, row.inside(j)));
  for (int64_t e = begin; e < end; ++e) edited[ids[e]] = values[e];
  return {edited.data(), row.bits, row.width, row.temperature};
}

// logits (N, V) bf16; settings (N, 5) fp64; bits (N, W) int32 with a bit a token, or none; edits: row n has those from starts[n] to
// starts[n + 1] of ids (E) and values (E) fp32, or none
// -> tokens (N), log-probabilities (N) fp32: NaN for a row that holds one, or plus infinity
std::tuple<Tensor, Tensor> draw_tokens(const Tensor& logits, const Tensor& settings, const std::optional<Tensor>& bits,
                                       const std::optional<Tensor>& starts, const std::optional<Tensor>& ids,
                                       const std::optional<Tensor>& values) {
  const int64_t N = logits.size(0), V = logits.size(1);
  TORCH_CHECK(logits.stride(1) == 1 && settings.is_contiguous() && settings.numel() == 5 * N, "logits lie side by side, with five numbers a row");
  TORCH_CHECK(!bits || (bits->is_contiguous() && bits->size(0) == N && bits->size(1) * 32 >= V), "there is a bit for each token");
  TORCH_CHECK(!starts || (starts->numel() == N + 1 && ids && values && ids->is_contiguous() && values->is_contiguous()), "each row has its edits");
  Tensor token_N = at::empty({N}, logits.options().dtype(at::kLong)), logprob_N = at::empty({N}, logits.options().dtype(at::kFloat));
  const BFloat16* in = logits.const_data_ptr<BFloat16>();
  const double* given = settings.const_data_ptr<double>();
  const int64_t *start = starts ? starts->const_data_ptr<int64_t>() : nullptr, *id = ids ? ids->const_data_ptr<int64_t>() : nullptr;
  const float* value = values ? values->const_data_ptr<float>() : nullptr;
  int64_t* tokens = token_N.mutable_data_ptr<int64_t>();
  float* logprobs = logprob_N.mutable_data_ptr<float>();
  at::parallel_for(0, N, 1, [&](int64_t begin, int64_t end) {
    Drawing scratch;
    for (int64_t n = begin; n < end; ++n) {
      const Setting setting = setting_of(given + 5 * n, V);
      const Row<BFloat16> whole{in + n * logits.stride(0), nullptr, V, _mm512_set1_ps(setting.temperature > 0 ? static_cast<float>(setting.temperature) : 1.f)};
      tokens[n] = 0;
      const float top = whole.top(scratch.tops);
      if (!std::isfinite(top)) {
        logprobs[n] = NAN;
        continue;
      }
      const double total = weigh_row(whole, top, scratch.sums), lse = top + std::log(total);
      Row<BFloat16> allowed = whole;
      if (bits) allowed.bits = reinterpret_cast<const uint16_t*>(bits->const_data_ptr<int32_t>() + n * bits->size(1));
      if (start && start[n] < start[n + 1]) {
        const Row<float> edited = edited_row(allowed, id, value, start[n], start[n + 1], scratch.edited);
        tokens[n] = draw_token(edited, setting, edited.top(scratch.tops), 0, scratch);
      } else if (bits) {
        tokens[n] = draw_token(allowed, setting, allowed.top(scratch.tops), 0, scratch);
      } else {
        tokens[n] = draw_token(whole, setting, top, total, scratch);
      }
      const int64_t chosen = tokens[n];
      float block[LANES];
      whole.at(chosen / LANES * LANES).store(block);
      logprobs[n] = static_cast<float>(block[chosen % LANES] - lse);
    }
  });
  return {token_N, logprob_N};
}

}  // namespace
