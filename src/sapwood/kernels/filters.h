// What top-k, top-p and min-p leave of a row: found without sorting it, among the few tokens that can be left at all.
//
// Tokens rank by their logits, equal ones by their ids. Each filter keeps the first so many of what the one before left, so the tokens
// that are kept are the first of a ranking; and how small the last of them can be is known before any is ranked.
#pragma once

#include <limits>

#include "vectors.h"

namespace {

constexpr int64_t WEIGHED = 32 * LANES;  // tokens whose weights are summed together, in fp32; the sums are added up in fp64

// One row of bf16 or fp32 as registers of fp32 at a temperature; what is not allowed, and what is behind the end, is minus infinity.
template <typename T>
struct Row {
  const T* logits;
  const uint16_t* bits;  // or none
  int64_t width;
  __m512 temperature;
  __m512 raw(int64_t j, __mmask16 inside) const {
    if constexpr (std::is_same_v<T, float>)
      return _mm512_maskz_loadu_ps(inside, logits + j);
    else
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, logits + j)), 16));
  }
  __mmask16 inside(int64_t j) const { return j + LANES <= width ? 0xffff : (1u << (width - j)) - 1u; }
  Floats at(int64_t j) const {
    const __mmask16 here = inside(j), allowed = bits == nullptr ? here : here & bits[j / LANES];
    return Floats(_mm512_mask_blend_ps(allowed, _mm512_set1_ps(-INFINITY), _mm512_div_ps(raw(j, here), temperature)));
  }
  // The largest, and into `tops` the largest of each WEIGHED / LANES tokens that lie LANES apart.
  float top(std::vector<float>& tops) const {
    Floats best(-INFINITY);
    tops.resize((width + WEIGHED - 1) / WEIGHED * LANES);
    for (int64_t first = 0; first < width; first += WEIGHED) {
      Floats some(-INFINITY);
      for (int64_t j = first; j < std::min(width, first + WEIGHED); j += LANES) some = at::vec::maximum(some, at(j));
      some.store(tops.data() + first / WEIGHED * LANES);
      best = at::vec::maximum(best, some);
    }
    return largest(best);
  }
};

struct Filters {
  int64_t top_k;  // 0 keeps all
  double top_p, min_p;
  bool any() const { return top_k > 0 || top_p < 1 || min_p > 0; }
};

struct Candidate {
  float logit, weight;
  int32_t token;
  bool ranks_behind(const Candidate& other) const { return logit < other.logit || (logit == other.logit && token > other.token); }
};

// A logit that no token is below which the filters have to see. As many sets of tokens have a largest as `tops` are: the k-th of those is
// not above the k-th token, and top-p asks for the weight of all k. Without top-k, all tokens below top + ln((1 - p) total / V) together
// weigh less than what top-p leaves out.
float least_seen(const Filters& filters, float top, double total, int64_t width, std::vector<float>& tops) {
  constexpr double ROUNDING = 1e-3;
  if (filters.top_k > static_cast<int64_t>(tops.size())) return -std::numeric_limits<float>::infinity();
  if (filters.top_k > 0) {
    std::nth_element(tops.begin(), tops.begin() + (filters.top_k - 1), tops.end(), std::greater<>());
    return tops[filters.top_k - 1];
  }
  double least = -std::numeric_limits<double>::infinity();
  if (filters.top_p < 1) least = std::max(least, top + std::log((1 - filters.top_p) * total / static_cast<double>(width)) - ROUNDING);
  if (filters.min_p > 0) least = std::max(least, top + std::log(filters.min_p) - ROUNDING);
  return static_cast<float>(least);
}

// The tokens whose logits are not below `least`, and their weight.
template <typename T>
double gather(const Row<T>& row, float top, float least, std::vector<Candidate>& found) {
  double total = 0;
  found.clear();
  for (int64_t j = 0; j < row.width; j += LANES) {
    const Floats x = row.at(j);
    unsigned mask = _mm512_cmp_ps_mask(x, _mm512_set1_ps(least), _CMP_GE_OQ) & row.inside(j);
    if (mask == 0) continue;
    float logits[LANES], weights[LANES];
    x.store(logits);
    (x - Floats(top)).exp_u20().store(weights);
    for (; mask; mask &= mask - 1) {
      const int i = __builtin_ctz(mask);
      found.push_back({logits[i], weights[i], static_cast<int32_t>(j + i)});
      total += weights[i];
    }
  }
  return total;
}

// All tokens that the filters have to see, and more.
template <typename T>
void gather_candidates(const Row<T>& row, const Filters& filters, float top, double total, std::vector<float>& tops,
                       std::vector<Candidate>& found) {
  constexpr float NEAR = 7;  // e^-7 of the likeliest: most often what is nearer holds p already, and is far less than what must hold it
  const float least = least_seen(filters, top, total, row.width, tops);
  if (filters.top_k == 0 && filters.top_p < 1 && least < top - NEAR && gather(row, top, top - NEAR, found) >= filters.top_p * total) return;
  gather(row, top, least, found);
}

// The kept ones in order of their ids. `total` is the weight of the whole row. The order of the filters is that of the fields.
void filter(const Filters& filters, double total, std::vector<Candidate>& found, std::vector<Candidate>& kept) {
  const auto behind = [](const Candidate& one, const Candidate& other) { return one.ranks_behind(other); };
  const bool by_rank = filters.top_k > 0;
  double sum = 0;
  kept.clear();
  std::make_heap(found.begin(), found.end(), behind);
  for (auto end = found.end(); end != found.begin(); sum += kept.back().weight) {
    const bool enough = by_rank ? static_cast<int64_t>(kept.size()) >= filters.top_k : filters.top_p < 1 && sum >= filters.top_p * total;
    if (enough && !kept.empty()) break;
    std::pop_heap(found.begin(), end--, behind);
    kept.push_back(*end);
  }
  const double aim = filters.top_p * (by_rank ? sum : total);
  size_t count = 0;
  for (double before = 0; count < kept.size(); before += kept[count++].weight) {
    const bool enough = (filters.top_p < 1 && before >= aim) || kept[count].weight < filters.min_p * kept[0].weight;
    if (enough && count > 0) break;
  }
  kept.resize(count);
  std::sort(kept.begin(), kept.end(), [](const Candidate& one, const Candidate& other) { return one.token < other.token; });
}

}  // namespace
