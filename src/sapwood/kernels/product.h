// Products of few rows, or many, with a weight that is laid out once: x W^T.
//
// The weight lies in panels of 48 outputs, and in a panel by pairs of inputs: [O / 48][I / 2][48][2], zeros behind the last output. A
// tile is eight rows by one panel: 24 sums stay in registers, and each pair of a row is read once for three products. A panel comes from
// memory once and from the cache for the tiles that follow, while the next one is fetched. Each sum runs over the inputs in their
// order, whatever other rows there are.
#pragma once

#include <immintrin.h>

#include <optional>

#include "vectors.h"

namespace {

constexpr int64_t COLUMNS = 48;         // outputs of a panel: three registers
constexpr int64_t TILE = 8;             // rows of a tile
constexpr int64_t ROW_BYTES = 1 << 19;  // rows that go through all panels at a time: they stay in the second cache
using Sums = __m512[3];                 // of one row and one panel

int64_t panels_of(int64_t outputs) { return (outputs + COLUMNS - 1) / COLUMNS; }

// sum + products of the two numbers in each lane
inline __m512 dot_pairs(__m512 sum, __m512i x, __m512i w) {
#ifdef __AVX512BF16__
  return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
#else
  const auto low = [](__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); };
  const auto high = [](__m512i pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff0000))); };
  return _mm512_fmadd_ps(high(x), high(w), _mm512_fmadd_ps(low(x), low(w), sum));
#endif
}

// W (O, I) -> its panels. I is even.
Tensor pack_weight(const Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() && weight.size(1) % 2 == 0, "a weight has rows of an even width, side by side");
  const int64_t O = weight.size(0), I = weight.size(1), panels = panels_of(O);
  Tensor packed = at::empty({panels, I / 2, COLUMNS, 2}, weight.options());
  const BFloat16* from = weight.const_data_ptr<BFloat16>();
  BFloat16* to = packed.mutable_data_ptr<BFloat16>();
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      pack_transposed(from + p * COLUMNS * I, I, std::min(COLUMNS, O - p * COLUMNS), COLUMNS, I, to + p * COLUMNS * I);
  });
  return packed;
}

// R rows of x, `pairs` pairs each, by one panel. `ahead`: what will be read soon, one line a pair.
template <int R>
void tile(const BFloat16* x, int64_t ld, const BFloat16* panel, const BFloat16* ahead, int64_t pairs, Sums* sums) {
  __m512 s[R][3];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < 3; ++j) s[r][j] = _mm512_setzero_ps();
  for (int64_t k = 0; k < pairs; ++k) {
    __m512i w[3];
    for (int j = 0; j < 3; ++j) w[j] = _mm512_loadu_si512(panel + 2 * (k * COLUMNS + j * LANES));
    if (ahead != nullptr) _mm_prefetch(reinterpret_cast<const char*>(ahead + 2 * k * LANES), _MM_HINT_T1);
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      std::memcpy(&pair, x + r * ld + 2 * k, 4);
      for (int j = 0; j < 3; ++j) s[r][j] = dot_pairs(s[r][j], _mm512_set1_epi32(pair), w[j]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < 3; ++j) sums[r][j] = s[r][j];
}

// Rows that a packed weight multiplies.
struct Factor {
  const BFloat16* rows;
  int64_t ld, pairs;
  const BFloat16* weight;
  Factor(const Tensor& x, const Tensor& packed)
      : rows(x.const_data_ptr<BFloat16>()), ld(x.stride(0)), pairs(packed.size(1)), weight(packed.const_data_ptr<BFloat16>()) {
    TORCH_CHECK(x.stride(1) == 1 && x.size(1) == 2 * pairs, "rows and weight belong together");
  }
};

// The sums of row m and the outputs of panel p go to `finish(m, p, sums)`, once each. `more`: a product that is added to them.
template <typename Finish>
void panel_sums(const Factor& factor, const std::optional<Factor>& more, int64_t M, int64_t panels, const Finish& finish) {
  using Tile = void (*)(const BFloat16*, int64_t, const BFloat16*, const BFloat16*, int64_t, Sums*);
  static constexpr Tile TILES[] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>, tile<7>, tile<8>};
  const int64_t pairs = factor.pairs, size = 2 * pairs * COLUMNS;
  const int64_t rows = std::max(TILE, ROW_BYTES / (4 * pairs) / TILE * TILE), blocks = (M + rows - 1) / rows;
  at::parallel_for(0, blocks * panels, 1, [&](int64_t begin, int64_t end) {
    Sums sums[TILE], added[TILE];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t p = task % panels, m0 = task / panels * rows, m1 = std::min(M, m0 + rows);
      const BFloat16* next = task + 1 < end ? factor.weight + (task + 1) % panels * size : nullptr;
      for (int64_t m = m0, third = 0; m < m1; m += TILE, ++third) {
        const int64_t R = std::min(TILE, m1 - m);
        const BFloat16* ahead = next != nullptr && third < 3 ? next + third * 2 * pairs * LANES : nullptr;
        TILES[R](factor.rows + m * factor.ld, factor.ld, factor.weight + p * size, ahead, pairs, sums);
        if (more) {
          TILES[R](more->rows + m * more->ld, more->ld, more->weight + p * 2 * more->pairs * COLUMNS, nullptr, more->pairs, added);
          for (int64_t r = 0; r < R; ++r)
            for (int j = 0; j < 3; ++j) sums[r][j] = _mm512_add_ps(sums[r][j], added[r][j]);
        }
        for (int64_t r = 0; r < R; ++r) finish(m + r, p, sums[r]);
      }
    }
  });
}

// Three registers of a row of `width` numbers, from `first` on; behind its end, zeros.
inline void load_sums(const BFloat16* row, int64_t first, int64_t width, Sums& sums) {
  BFloat16 some[COLUMNS] = {};
  const int64_t count = std::min(COLUMNS, width - first);
  if (count < COLUMNS) std::memcpy(some, row + first, count * sizeof(BFloat16));
  const BFloat16* from = count < COLUMNS ? some : row + first;
  for (int j = 0; j < 3; ++j)
    sums[j] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + j * LANES))), 16));
}

inline void store_sums(const Sums& sums, int64_t first, int64_t width, BFloat16* row) {
  BFloat16 some[COLUMNS];
  const int64_t count = std::min(COLUMNS, width - first);
  BFloat16* to = count < COLUMNS ? some : row + first;
  for (int j = 0; j < 3; ++j) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j * LANES), at::vec::cvtfp32_bf16(sums[j]));
  if (count < COLUMNS) std::memcpy(row + first, some, count * sizeof(BFloat16));
}

// x W^T + b, and + h B^T where they are given: (M, O), summed in fp32 and rounded once. `onto` (M, O) is added to what was rounded, as
// a model would that runs layer by layer.
Tensor product_sum(const Tensor& x, const Tensor& packed, int64_t outputs, const std::optional<Tensor>& bias, const std::optional<Factor>& more,
                   const std::optional<Tensor>& onto = std::nullopt) {
  const int64_t M = x.size(0), panels = panels_of(outputs);
  TORCH_CHECK(packed.size(0) == panels, "rows and weight belong together");
  Tensor y = at::empty({M, outputs}, x.options());
  BFloat16* out = y.mutable_data_ptr<BFloat16>();
  const BFloat16* b = bias.has_value() ? bias->const_data_ptr<BFloat16>() : nullptr;
  TORCH_CHECK(!onto || (onto->is_contiguous() && onto->sizes() == y.sizes()), "what is added to has the output's shape");
  const BFloat16* rest = onto.has_value() ? onto->const_data_ptr<BFloat16>() : nullptr;
  panel_sums(Factor(x, packed), more, M, panels, [&](int64_t m, int64_t p, Sums& sums) {
    if (b != nullptr) {
      Sums wide;
      load_sums(b, p * COLUMNS, outputs, wide);
      for (int j = 0; j < 3; ++j) sums[j] = _mm512_add_ps(sums[j], wide[j]);
    }
    if (rest != nullptr) {
      Sums before;
      load_sums(rest + m * outputs, p * COLUMNS, outputs, before);
      for (int j = 0; j < 3; ++j) {
        const __m512i whole = _mm512_slli_epi32(_mm512_cvtepu16_epi32(at::vec::cvtfp32_bf16(sums[j])), 16);
        sums[j] = _mm512_add_ps(before[j], _mm512_castsi512_ps(whole));
      }
    }
    store_sums(sums, p * COLUMNS, outputs, out + m * outputs);
  });
  return y;
}

// x (M, I), the numbers of a row side by side; a packed weight; b (O) or none -> x W^T + b: (M, O)
Tensor packed_product(const Tensor& x, const Tensor& packed, int64_t outputs, const std::optional<Tensor>& bias) {
  return product_sum(x, packed, outputs, bias, std::nullopt);
}

}  // namespace
