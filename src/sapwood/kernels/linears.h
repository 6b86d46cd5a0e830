// LoRA linear layers that read the same rows, there and back: every product of a block of rows while the block is in the cache.
//
//   forward    h = x Aᵀ,  y = x Wᵀ + b + h (s B)ᵀ                 the sum in fp32, rounded once
//   backward   u = g (s B),  grad x = Σ g W + u A,  grad A = uᵀ x,  grad B = s gᵀ h
//
// torch makes each product over all rows before the next one reads them again from memory: the thin ones are then nothing but that
// reading. Weights are laid out for the products in every call, which takes a hundredth of their time, and no second copy of them is kept.
#pragma once

#include "vectors.h"

namespace {

constexpr int64_t UNIT = 16;      // rows: all blocks but the last are multiples of it, so that few shapes of products are ever compiled
constexpr int64_t PANEL = 64;     // columns of a product
constexpr int64_t WIDE = 256;     // columns of a product that sums over rows
constexpr int64_t RANGES = 12;    // of rows, whose shares of the adapters' gradients are summed in their order: never a function of threads
constexpr int64_t CACHED = 1 << 18;  // numbers of a block of rows, which are to stay in the cache beside a panel of weights

// One projection, and its adapter with the scale inside.
struct Linear {
  Tensor weight, b;
  int64_t outer, rank, first;  // `first` of its columns in h
  int64_t panels, at;          // of the laid out weights
};

struct Linears {
  std::vector<Linear> each;
  int64_t inner, rank = 0, outer = 0;
  Tensor a;  // all A, (rank, inner)
  Linears(at::TensorList weights, at::TensorList all_a, at::TensorList all_b, at::ArrayRef<double> scales) : inner(weights[0].size(1)) {
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t size = weights[i].size(0), r = all_a[i].size(0);
      each.push_back({weights[i], all_b[i].mul(scales[i]).to(at::kBFloat16).contiguous(), size, r, rank, 0, outer * inner});
      rank += r;
      outer += size;
    }
    a = at::cat(all_a).to(at::kBFloat16).contiguous();
  }
};

const BFloat16* numbers(const Tensor& x) { return x.const_data_ptr<BFloat16>(); }

// Rows · (inner, columns), whole units first.
void product(int64_t rows, int64_t columns, int64_t inner, int64_t ld_a, int64_t ld_b, int64_t ld_c, bool add, const BFloat16* a,
             const BFloat16* b, float* c) {
  const int64_t whole = rows / UNIT * UNIT;
  if (whole > 0) blas::brgemm(whole, columns, inner, ld_a, ld_b, ld_c, add, a, b, c);
  if (rows > whole) blas::brgemm(rows - whole, columns, inner, ld_a, ld_b, ld_c, add, a + whole * ld_a, b, c + whole * ld_c);
}

// rows of fp32 -> rows of bf16, in whole pairs of columns
void round_rows(const float* from, int64_t ld_from, int64_t rows, int64_t width, const float* bias, BFloat16* to, int64_t ld_to) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* in = from + row * ld_from;
    BFloat16* out = to + row * ld_to;
    int64_t j = 0;
    if (bias == nullptr) {
      for (; j + 2 * LANES <= width; j += 2 * LANES) store(Floats::loadu(in + j), Floats::loadu(in + j + LANES), out + j);
      for (; j < width; ++j) out[j] = in[j];
    } else {
      for (; j + 2 * LANES <= width; j += 2 * LANES)
        store(Floats::loadu(in + j) + Floats::loadu(bias + j), Floats::loadu(in + j + LANES) + Floats::loadu(bias + j + LANES), out + j);
      for (; j < width; ++j) out[j] = in[j] + bias[j];
    }
  }
}

// Edges of `count` ranges of T rows, in whole units.
std::vector<int64_t> row_ranges(int64_t T, int64_t count) {
  const int64_t units = (T + UNIT - 1) / UNIT;
  std::vector<int64_t> edges(count + 1);
  for (int64_t i = 0; i <= count; ++i) edges[i] = std::min(T, units * i / count * UNIT);
  return edges;
}

int64_t rows_cached(int64_t width) { return std::clamp<int64_t>(CACHED / width / UNIT * UNIT, 2 * UNIT, 14 * UNIT); }

// x (T, I), W (O, I), A (R, I), B (O, R) of each -> y (T, O) of each, h (T, all R). I and O are multiples of 32, R are even.
std::tuple<std::vector<Tensor>, Tensor> lora_forward(const Tensor& x, at::TensorList weights, at::TensorList biases, at::TensorList all_a,
                                                     at::TensorList all_b, at::ArrayRef<double> scales) {
  Linears linears(weights, all_a, all_b, scales);
  const int64_t T = x.size(0), I = linears.inner, R = linears.rank;
  Tensor h = at::empty({T, R}, x.options()), packed = at::empty({linears.outer * I}, x.options());
  Tensor a = at::empty({R * I}, x.options()), b = at::empty({linears.outer * R}, x.options());
  std::vector<Tensor> outputs, shifts;
  std::vector<std::pair<int64_t, int64_t>> panels;  // projection, first column
  pack_transposed(numbers(linears.a), I, R, R, I, a.mutable_data_ptr<BFloat16>());
  int64_t at_b = 0;
  std::vector<int64_t> places_b;
  std::vector<const float*> added;
  std::vector<BFloat16*> to;
  for (size_t i = 0; i < linears.each.size(); ++i) {
    const Linear& one = linears.each[i];
    outputs.push_back(at::empty({T, one.outer}, x.options()));
    to.push_back(outputs.back().mutable_data_ptr<BFloat16>());
    shifts.push_back(biases[i].to(at::kFloat).contiguous());
    added.push_back(shifts.back().numel() ? shifts.back().const_data_ptr<float>() : nullptr);
    pack_transposed(numbers(one.b), one.rank, one.outer, one.outer, one.rank, b.mutable_data_ptr<BFloat16>() + at_b);
    places_b.push_back(at_b);
    at_b += one.outer * one.rank;
    for (int64_t n0 = 0; n0 < one.outer; n0 += PANEL) panels.emplace_back(i, n0);
  }
  BFloat16 *laid = packed.mutable_data_ptr<BFloat16>(), *thin = h.mutable_data_ptr<BFloat16>();
  at::parallel_for(0, static_cast<int64_t>(panels.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const Linear& one = linears.each[panels[p].first];
      const int64_t n0 = panels[p].second, n = std::min(PANEL, one.outer - n0);
      pack_transposed(numbers(one.weight) + n0 * I, I, n, n, I, laid + one.at + n0 * I);
    }
  });
  const int64_t threads = at::get_num_threads(), least = (T + rows_cached(I) - 1) / rows_cached(I);
  const int64_t count = (least + threads - 1) / threads * threads;
  const std::vector<int64_t> edges = row_ranges(T, count);
  share_out(count, [&](const auto& next) {
    Buffer<float> sums(14 * UNIT * std::max(PANEL, R));
    for (int64_t task = next(); task < count; task = next()) {
      const int64_t t0 = edges[task], rows = edges[task + 1] - t0;
      if (rows == 0) continue;
      const BFloat16* in = numbers(x) + t0 * I;
      product(rows, R, I, I, R, R, false, in, numbers(a), sums.data());
      round_rows(sums.data(), R, rows, R, nullptr, thin + t0 * R, R);
      for (const auto& [i, n0] : panels) {
        const Linear& one = linears.each[i];
        const int64_t n = std::min(PANEL, one.outer - n0);
        product(rows, n, I, I, n, PANEL, false, in, laid + one.at + n0 * I, sums.data());
        product(rows, n, one.rank, R, one.outer, PANEL, true, thin + t0 * R + one.first, numbers(b) + places_b[i] + 2 * n0, sums.data());
        round_rows(sums.data(), PANEL, rows, n, added[i] == nullptr ? nullptr : added[i] + n0, to[i] + t0 * one.outer + n0, one.outer);
      }
    }
    blas::brgemm_release();
  });
  return {outputs, h};
}

// of (ranges, size): the sum over ranges, in their order
Tensor summed(const Tensor& parts) {
  const int64_t ranges = parts.size(0), size = parts.numel() / ranges;
  Tensor total = at::empty({parts.size(1), parts.size(2)}, parts.options());
  const float* from = parts.const_data_ptr<float>();
  float* to = total.mutable_data_ptr<float>();
  at::parallel_for(0, size / LANES, 1 << 10, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * LANES; i < end * LANES; i += LANES) {
      Floats sums = Floats::loadu(from + i);
      for (int64_t range = 1; range < ranges; ++range) sums = sums + Floats::loadu(from + range * size + i);
      sums.store(to + i);
    }
  });
  return total;
}

// g (T, O) of each -> grad x (T, I), of all A (all R, I) and of each B (O, R) in fp32
std::tuple<Tensor, Tensor, std::vector<Tensor>> lora_backward(const Tensor& x, const Tensor& h, at::TensorList grads, at::TensorList weights,
                                                              at::TensorList all_a, at::TensorList all_b, at::ArrayRef<double> scales,
                                                              bool needs_x) {
  Linears linears(weights, all_a, all_b, scales);
  const int64_t T = x.size(0), I = linears.inner, R = linears.rank, count = static_cast<int64_t>(linears.each.size());
  const int64_t ranges = std::min(RANGES, (T + UNIT - 1) / UNIT);
  const std::vector<int64_t> edges = row_ranges(T, ranges);
  const auto wide = x.options().dtype(at::kFloat);
  Tensor dx = at::empty({needs_x ? T : 0, I}, x.options()), packed = at::empty({needs_x ? linears.outer * I : 0}, x.options());
  Tensor a = at::empty({R * I}, x.options()), sums_a = at::empty({ranges, R, I}, wide);
  std::vector<Tensor> b, sums_b;
  pack_pairs(numbers(linears.a), I, R, R, I, a.mutable_data_ptr<BFloat16>());
  for (const Linear& one : linears.each) {
    b.push_back(at::empty({one.outer * one.rank}, x.options()));
    pack_pairs(numbers(one.b), one.rank, one.outer, one.outer, one.rank, b.back().mutable_data_ptr<BFloat16>());
    sums_b.push_back(at::empty({ranges, one.rank, one.outer}, wide));
  }
  BFloat16 *laid = packed.mutable_data_ptr<BFloat16>(), *to = dx.mutable_data_ptr<BFloat16>();
  float* to_a = sums_a.mutable_data_ptr<float>();
  std::vector<float*> to_b;
  for (Tensor& parts : sums_b) to_b.push_back(parts.mutable_data_ptr<float>());
  const int64_t panels = (I + PANEL - 1) / PANEL;
  if (needs_x)
    at::parallel_for(0, count * panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const Linear& one = linears.each[p / panels];
        const int64_t n0 = p % panels * PANEL, n = std::min(PANEL, I - n0);
        pack_pairs(numbers(one.weight) + n0, I, one.outer, one.outer, n, laid + one.at + n0 * one.outer);
      }
    });
  const int64_t most = rows_cached(linears.outer);
  share_out(ranges, [&](const auto& next) {
    Buffer<float> sums(most * std::max(PANEL, R));
    Buffer<BFloat16> u(most * R), ut(most * R), ht(most * R), pairs(most * WIDE);
    for (int64_t range = next(); range < ranges; range = next())
      for (int64_t t0 = edges[range]; t0 < edges[range + 1]; t0 += most) {
        const int64_t rows = std::min(most, edges[range + 1] - t0), all = (rows + UNIT - 1) / UNIT * UNIT;
        const bool add = t0 > edges[range];
        for (int64_t i = 0; i < count; ++i) {
          const Linear& one = linears.each[i];
          product(rows, one.rank, one.outer, one.outer, one.rank, R, false, numbers(grads[i]) + t0 * one.outer, numbers(b[i]), sums.data() + one.first);
        }
        round_rows(sums.data(), R, rows, R, nullptr, u.data(), R);
        for (int64_t n0 = 0; needs_x && n0 < I; n0 += PANEL) {
          const int64_t n = std::min(PANEL, I - n0);
          for (int64_t i = 0; i < count; ++i) {
            const Linear& one = linears.each[i];
            product(rows, n, one.outer, one.outer, n, PANEL, i > 0, numbers(grads[i]) + t0 * one.outer, laid + one.at + n0 * one.outer, sums.data());
          }
          product(rows, n, R, R, I, PANEL, true, u.data(), numbers(a) + 2 * n0, sums.data());
          round_rows(sums.data(), PANEL, rows, n, nullptr, to + t0 * I + n0, I);
        }
        transpose<BFloat16, 32>(u.data(), R, rows, R, all, ut.data());
        transpose<BFloat16, 32>(numbers(h) + t0 * R, R, rows, R, all, ht.data());
        for (int64_t n0 = 0; n0 < I; n0 += WIDE) {
          const int64_t n = std::min(WIDE, I - n0);
          pack_pairs(numbers(x) + t0 * I + n0, I, rows, all, n, pairs.data());
          blas::brgemm(R, n, all, all, n, I, add, ut.data(), pairs.data(), to_a + range * R * I + n0);
        }
        for (int64_t i = 0; i < count; ++i) {
          const Linear& one = linears.each[i];
          for (int64_t n0 = 0; n0 < one.outer; n0 += WIDE) {
            const int64_t n = std::min(WIDE, one.outer - n0);
            pack_pairs(numbers(grads[i]) + t0 * one.outer + n0, one.outer, rows, all, n, pairs.data());
            blas::brgemm(one.rank, n, all, all, n, one.outer, add, ht.data() + one.first * all, pairs.data(),
                         to_b[i] + range * one.rank * one.outer + n0);
          }
        }
      }
    blas::brgemm_release();
  });
  std::vector<Tensor> d_b;
  for (int64_t i = 0; i < count; ++i) d_b.push_back(summed(sums_b[i]).t().contiguous().mul_(scales[i]));
  return {dx, summed(sums_a), d_b};
}

}  // namespace
