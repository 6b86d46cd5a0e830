// Attention of a decode step: one new token a sequence, to its own row of keys and values.
//
// The products are of a few queries with one key each, far too small for a product of blocks: keys are read once, widened to fp32 in
// registers, and used for all query heads that share them. In bf16 or fp32; sums in fp32, each made by one thread in a fixed order.

#pragma once

#include <immintrin.h>

constexpr int64_t QUERIES = 4;  // query heads that are taken together: their sums stay in registers

inline __m512 wide(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 wide(const BFloat16* from) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))), 16));
}

constexpr int64_t LINE = 64, AHEAD = 2048;  // bytes: of a line of the cache, and between the key that is read and the one that is asked for

// Ask memory for a key that is read soon and for the value that is read after all keys. Without, its own guesses bring a third to a
// half of what it can give: a row is over before they pay.
template <typename T>
inline void ask_for(const T* key, const T* value, int64_t width) {
  for (int64_t at = 0; at < width * static_cast<int64_t>(sizeof(T)); at += LINE) {
    _mm_prefetch(reinterpret_cast<const char*>(key) + AHEAD + at, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(value) + at, _MM_HINT_T1);
  }
}

// The sums of sixteen registers in one: halves are added while they are interleaved, which takes a third of the steps of sixteen sums.
inline __m512 sums_of(const __m512* r) {
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i) a[i] = _mm512_add_ps(_mm512_unpacklo_ps(r[i], r[i + 8]), _mm512_unpackhi_ps(r[i], r[i + 8]));
  for (int i = 0; i < 4; ++i) b[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[i], a[i + 4]), _mm512_unpackhi_ps(a[i], a[i + 4]));
  const auto joined = [](__m512 x, __m512 y) { return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xDD)); };
  for (int i = 0; i < 2; ++i) c[i] = joined(b[i], b[i + 2]);
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15), joined(c[0], c[1]));
}

// `Q` queries, side by side in fp32 and scaled, to keys [0, length), `V` registers wide: out[Q][D] and lse[Q]
template <typename T, int V, int Q>
void few_queries(const float* query, const T* keys, const T* values, int64_t length, float* scores, float* out, float* lse) {
  constexpr int64_t D = V * LANES;
  const auto dots = [&](int64_t s, __m512* dot, int64_t stride) {
    __m512 key[V];
    ask_for(keys + s * D, values + s * D, D);
    for (int j = 0; j < V; ++j) key[j] = wide(keys + s * D + j * LANES);
    for (int q = 0; q < Q; ++q) {
      __m512 sum = _mm512_mul_ps(key[0], _mm512_loadu_ps(query + q * D));
      for (int j = 1; j < V; ++j) sum = _mm512_fmadd_ps(key[j], _mm512_loadu_ps(query + q * D + j * LANES), sum);
      dot[q * stride] = sum;
    }
  };
  const int64_t sixteens = length / LANES * LANES;
  __m512 block[Q * LANES];
  for (int64_t s = 0; s < sixteens; s += LANES) {
    for (int64_t i = 0; i < LANES; ++i) dots(s + i, block + i, LANES);
    for (int q = 0; q < Q; ++q) _mm512_storeu_ps(scores + q * length + s, sums_of(block + q * LANES));
  }
  for (int64_t s = sixteens; s < length; ++s) {
    dots(s, block, 1);
    for (int q = 0; q < Q; ++q) scores[q * length + s] = _mm512_reduce_add_ps(block[q]);
  }
  for (int q = 0; q < Q; ++q) {
    float* row = scores + q * length;
    const int64_t whole = length / LANES * LANES;
    Floats tops(-INFINITY);
    for (int64_t s = 0; s < whole; s += LANES) tops = at::vec::maximum(tops, Floats::loadu(row + s));
    float top = largest(tops);
    for (int64_t s = whole; s < length; ++s) top = std::max(top, row[s]);
    Floats totals(0.f);
    for (int64_t s = 0; s < whole; s += LANES) {
      const Floats weight = (Floats::loadu(row + s) - Floats(top)).exp();
      totals = totals + weight;
      weight.store(row + s);
    }
    float total = sum(totals);
    for (int64_t s = whole; s < length; ++s) total += row[s] = std::exp(row[s] - top);
    lse[q] = top + std::log(total);
    const Floats share(1.f / total);
    for (int64_t s = 0; s < whole; s += LANES) (Floats::loadu(row + s) * share).store(row + s);
    for (int64_t s = whole; s < length; ++s) row[s] /= total;
  }
  __m512 sums[Q][V];
  for (int q = 0; q < Q; ++q)
    for (int j = 0; j < V; ++j) sums[q][j] = _mm512_setzero_ps();
  for (int64_t s = 0; s < length; ++s)
    for (int j = 0; j < V; ++j) {
      const __m512 value = wide(values + s * D + j * LANES);
      for (int q = 0; q < Q; ++q) sums[q][j] = _mm512_fmadd_ps(value, _mm512_set1_ps(scores[q * length + s]), sums[q][j]);
    }
  for (int q = 0; q < Q; ++q)
    for (int j = 0; j < V; ++j) _mm512_storeu_ps(out + q * D + j * LANES, sums[q][j]);
}

template <typename T, int V>
void row_attention(const Tensor& q, const Tensor& k, const Tensor& v, Tensor& keys, Tensor& values, const Tensor& length_N, int64_t window,
                   float scale, Tensor& out, Tensor& lse) {
  constexpr int64_t D = V * LANES;
  const int64_t H = q.size(0), N = q.size(1), G = k.size(0), each = H / G, S = keys.size(2);
  const int64_t* lengths = length_N.const_data_ptr<int64_t>();
  const auto at = [](const Tensor& x, int64_t head, int64_t n) { return x.const_data_ptr<T>() + head * x.stride(0) + n * x.stride(1); };
  T *all_keys = keys.mutable_data_ptr<T>(), *all_values = values.mutable_data_ptr<T>();
  float *outs = out.mutable_data_ptr<float>(), *lses = lse.mutable_data_ptr<float>();
  at::parallel_for(0, N * G, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scores(QUERIES * S), query(QUERIES * D);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / G, g = task % G, length = lengths[n], first = window > 0 ? std::max<int64_t>(0, length + 1 - window) : 0;
      T *row_keys = all_keys + (n * G + g) * S * D, *row_values = all_values + (n * G + g) * S * D;
      std::memcpy(row_keys + length * D, at(k, g, n), D * sizeof(T));
      std::memcpy(row_values + length * D, at(v, g, n), D * sizeof(T));
      for (int64_t head = g * each; head < (g + 1) * each; head += QUERIES) {
        const int64_t some = std::min(QUERIES, (g + 1) * each - head), seen = length + 1 - first;
        for (int64_t i = 0; i < some; ++i)
          for (int64_t j = 0; j < D; j += LANES)
            _mm512_storeu_ps(query.data() + i * D + j, _mm512_mul_ps(wide(at(q, head + i, n) + j), _mm512_set1_ps(scale)));
        const auto attend = some == 1 ? few_queries<T, V, 1> : some == 2 ? few_queries<T, V, 2> : some == 3 ? few_queries<T, V, 3> : few_queries<T, V, 4>;
        attend(query.data(), row_keys + first * D, row_values + first * D, seen, scores.data(), outs + (n * H + head) * D, lses + n * H + head);
      }
    }
  });
}

// q (H, N, D), k and v (G, N, D) of the new tokens, numbers of a head side by side; keys and values (rows, G, S, D) contiguous, rows
// [0, N) in use; length_N (N) tokens in each row before. Writes k and v behind them. A token sees keys less than `window` above it
// (0: all). -> output (N, H, D) and log-sum-exp (N, H), fp32
template <typename T>
void of_type(const Tensor& q, const Tensor& k, const Tensor& v, Tensor& keys, Tensor& values, const Tensor& length_N, int64_t window,
             float scale, Tensor& out, Tensor& lse) {
  switch (q.size(2) / LANES) {
#define WIDTH(V) \
  case V: return row_attention<T, V>(q, k, v, keys, values, length_N, window, scale, out, lse)
    WIDTH(1); WIDTH(2); WIDTH(3); WIDTH(4); WIDTH(5); WIDTH(6); WIDTH(8); WIDTH(12); WIDTH(16);
#undef WIDTH
    default: TORCH_CHECK(false, "heads of this width are not served");
  }
}

std::tuple<Tensor, Tensor> decode_attention(const Tensor& q, const Tensor& k, const Tensor& v, Tensor keys, Tensor values,
                                            const Tensor& length_N, int64_t window, double scale) {
  const int64_t H = q.size(0), N = q.size(1), D = q.size(2);
  TORCH_CHECK(H % k.size(0) == 0 && v.sizes() == k.sizes() && keys.sizes() == values.sizes() && keys.size(0) >= N && length_N.numel() == N &&
                  keys.size(1) == k.size(0) && keys.size(3) == D && q.stride(2) == 1 && k.stride(2) == 1 && v.stride(2) == 1,
              "queries, keys, values and rows belong together");
  const int64_t* lengths = length_N.const_data_ptr<int64_t>();
  TORCH_CHECK(length_N.is_contiguous() && std::all_of(lengths, lengths + N, [&](int64_t length) { return length >= 0 && length < keys.size(2); }),
              "each row has room for one token more");
  TORCH_CHECK(keys.is_contiguous() && values.is_contiguous() && D % LANES == 0, "rows of keys are contiguous, heads fill registers");
  Tensor out = at::empty({N, H, D}, q.options().dtype(at::kFloat)), lse = at::empty({N, H}, q.options().dtype(at::kFloat));
  const auto run = q.scalar_type() == at::kFloat ? of_type<float> : of_type<BFloat16>;
  run(q, k, v, keys, values, length_N, window, static_cast<float>(scale), out, lse);
  return {out, lse};
}
