// What is done row by row, each read and written once.
//
//   rms_*         RMSNorm                            (arXiv:1910.07467, eq. 4)
//   swiglu_*      silu(gate) * up                    (arXiv:2002.05202, eq. 6)
//   rotate        rotary positions                   (arXiv:2104.09864, eq. 34, halves of a head instead of neighbours)
//   row_lse, pull the head's loss                    (log-sum-exp of a row of logits; softmax minus one-hot)
#pragma once

#include "vectors.h"

namespace {

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

// silu(gate) * up: (T, I), both in rows whose numbers lie side by side
Tensor swiglu_rows(const Tensor& gate, const Tensor& up) {
  const int64_t T = gate.size(0), I = gate.size(1), chunks = I / (2 * LANES);
  Tensor y = at::empty({T, I}, gate.options());
  const BFloat16 *a = gate.const_data_ptr<BFloat16>(), *b = up.const_data_ptr<BFloat16>();
  BFloat16* out = y.mutable_data_ptr<BFloat16>();
  const int64_t lda = gate.stride(0), ldb = up.stride(0);
  const Floats one(1.f);
  at::parallel_for(0, T * chunks, ELEMENTS_A_TASK / (2 * LANES), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i / chunks, j = i % chunks * 2 * LANES;
      const auto [g0, g1] = widened(a + t * lda + j);
      const auto [u0, u1] = widened(b + t * ldb + j);
      store(g0 / (one + g0.neg().exp_u20()) * u0, g1 / (one + g1.neg().exp_u20()) * u1, out + t * I + j);
    }
  });
  return y;
}

// the same of as many contiguous numbers, whatever their shape
Tensor swiglu_forward(const Tensor& gate, const Tensor& up) {
  return swiglu_rows(gate.view({-1, gate.size(-1)}), up.view({-1, up.size(-1)})).view(gate.sizes());
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

// x (T, heads, D) in rows of D; cos, sin (T, D) -> each pair (x[j], x[j + D / 2]) turned by the angle of its place: (T, heads, D).
// `back` turns the other way, which is the gradient's way. D is a multiple of 64.
Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, bool back) {
  const int64_t T = x.size(0), heads = x.size(1), D = x.size(2), half = D / 2;
  Tensor y = at::empty({T, heads, D}, x.options());
  const BFloat16 *in = x.const_data_ptr<BFloat16>(), *c = cos.const_data_ptr<BFloat16>(), *s = sin.const_data_ptr<BFloat16>();
  BFloat16* out = y.mutable_data_ptr<BFloat16>();
  const int64_t row = x.stride(0), head = x.stride(1);
  // of the lower half: a cos - b sin; of the upper: b cos + a sin, each with the cosine and sine of its own place
  const auto turn = [back](const Floats& a, const Floats& b, const Floats& ca, const Floats& sa, const Floats& cb, const Floats& sb) {
    return back ? std::make_pair(a * ca + b * sb, b * cb - a * sa) : std::make_pair(a * ca - b * sa, b * cb + a * sb);
  };
  at::parallel_for(0, T, rows_a_task(heads * D), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t j = 0; j < half; j += 2 * LANES) {
        const auto [ca0, ca1] = widened(c + t * D + j);
        const auto [cb0, cb1] = widened(c + t * D + j + half);
        const auto [sa0, sa1] = widened(s + t * D + j);
        const auto [sb0, sb1] = widened(s + t * D + j + half);
        for (int64_t h = 0; h < heads; ++h) {
          const BFloat16* from = in + t * row + h * head + j;
          const auto [a0, a1] = widened(from);
          const auto [b0, b1] = widened(from + half);
          const auto [low0, high0] = turn(a0, b0, ca0, sa0, cb0, sb0);
          const auto [low1, high1] = turn(a1, b1, ca1, sa1, cb1, sb1);
          store(low0, low1, out + (t * heads + h) * D + j);
          store(high0, high1, out + (t * heads + h) * D + j + half);
        }
      }
  });
  return y;
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

// softmax of each row of logits minus 1 at its token, (N, V): of rows `row` of `in`. `out` may be `in`, where row n is n.
void pull_rows(const BFloat16* in, const float* lse, const int64_t* row, const int64_t* token, int64_t N, int64_t V, BFloat16* out) {
  const int64_t whole = V / (2 * LANES) * (2 * LANES);
  at::parallel_for(0, N, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t r = row == nullptr ? n : row[n];
      const BFloat16* from = in + r * V;
      BFloat16* to = out + n * V;
      const float base = lse[r], own = std::exp(static_cast<float>(from[token[n]]) - base) - 1.f;  // in fp32: little is left of what nearly cancels
      const Floats bases(base);
      for (int64_t j = 0; j < whole; j += 2 * LANES) {
        const auto [a, b] = widened(from + j);
        store((a - bases).exp_u20(), (b - bases).exp_u20(), to + j);
      }
      for (int64_t j = whole; j < V; ++j) to[j] = std::exp(static_cast<float>(from[j]) - base);
      to[token[n]] = own;
    }
  });
}

// the same for rows of logits (U, V) by `row_N`: new (N, V)
Tensor pull(const Tensor& logits, const Tensor& lse, const Tensor& row_N, const Tensor& token_N) {
  Tensor result = at::empty({row_N.size(0), logits.size(1)}, logits.options());
  pull_rows(logits.const_data_ptr<BFloat16>(), lse.const_data_ptr<float>(), row_N.const_data_ptr<int64_t>(), token_N.const_data_ptr<int64_t>(),
            row_N.size(0), logits.size(1), result.mutable_data_ptr<BFloat16>());
  return result;
}

// the same where each row of logits has one token, written over the logits
Tensor pull_in_place(Tensor logits, const Tensor& lse, const Tensor& token_N) {
  BFloat16* both = logits.mutable_data_ptr<BFloat16>();
  pull_rows(both, lse.const_data_ptr<float>(), nullptr, token_N.const_data_ptr<int64_t>(), logits.size(0), logits.size(1), both);
  return logits;
}

}  // namespace
