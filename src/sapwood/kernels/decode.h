// Attention of a decode step: one new token a sequence, to its own row of keys and values, and to the nodes that it shares with others.
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

constexpr int64_t LINE = 64;       // bytes that come from memory together
constexpr int64_t AHEAD = 32;      // keys between the one that is read and the one that is asked for
constexpr int64_t RANGE = 512;     // keys of a kept node that are taken together

// Ask memory for a key that is read soon and for a value that is read after all keys. Without, the processor's own guesses bring a third
// to a half of what memory can give: a row is over before they pay.
template <typename T>
inline void ask_for(const T* key, const T* value, int64_t width) {
  for (int64_t at = 0; at < width * static_cast<int64_t>(sizeof(T)); at += LINE) {
    _mm_prefetch(reinterpret_cast<const char*>(key) + at, _MM_HINT_T0);
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

// Keys and values of one head, `ld` numbers from one token to the next.
template <typename T>
struct Seen {
  const T *keys, *values;
  int64_t ld_keys, ld_values, length;
};

// `Q` queries, side by side in fp32 and scaled, `V` registers wide: out[Q][D] and lse[Q]
template <typename T, int V, int Q>
void few_queries(const float* query, const Seen<T>& seen, float* scores, float* out, float* lse) {
  constexpr int64_t D = V * LANES;
  const int64_t length = seen.length, whole = length / LANES * LANES;
  const auto dots = [&](int64_t s, __m512* dot, int64_t stride) {
    const T* from = seen.keys + s * seen.ld_keys;
    ask_for(from + LANES * seen.ld_keys, seen.values + s * seen.ld_values, D);
    __m512 key[V];
    for (int j = 0; j < V; ++j) key[j] = wide(from + j * LANES);
    for (int q = 0; q < Q; ++q) {
      __m512 sum = _mm512_mul_ps(key[0], _mm512_loadu_ps(query + q * D));
      for (int j = 1; j < V; ++j) sum = _mm512_fmadd_ps(key[j], _mm512_loadu_ps(query + q * D + j * LANES), sum);
      dot[q * stride] = sum;
    }
  };
  __m512 block[Q * LANES];
  for (int64_t s = 0; s < whole; s += LANES) {
    for (int64_t i = 0; i < LANES; ++i) dots(s + i, block + i, LANES);
    for (int q = 0; q < Q; ++q) _mm512_storeu_ps(scores + q * length + s, sums_of(block + q * LANES));
  }
  for (int64_t s = whole; s < length; ++s) {
    dots(s, block, 1);
    for (int q = 0; q < Q; ++q) scores[q * length + s] = _mm512_reduce_add_ps(block[q]);
  }
  for (int q = 0; q < Q; ++q) {
    float* row = scores + q * length;
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
      const __m512 value = wide(seen.values + s * seen.ld_values + j * LANES);
      for (int q = 0; q < Q; ++q) sums[q][j] = _mm512_fmadd_ps(value, _mm512_set1_ps(scores[q * length + s]), sums[q][j]);
    }
  for (int q = 0; q < Q; ++q)
    for (int j = 0; j < V; ++j) _mm512_storeu_ps(out + q * D + j * LANES, sums[q][j]);
}

#ifdef __AVX512BF16__
// The same where keys and values stay bf16: scores are sums of products of pairs, and so is what is gathered, by weights that are rounded
// as in training (attention_forward.h). Queries are not scaled, `V` is even.
template <int V, int Q>
void few_pairs(const BFloat16* query, const Seen<BFloat16>& seen, float scale, float* scores, uint16_t* weights, float* out, float* lse) {
  constexpr int W = V / 2;  // registers of 32 numbers
  constexpr int64_t D = V * LANES;
  const int64_t length = seen.length, whole = length / LANES * LANES;
  __m512i asked[Q][W];
  for (int q = 0; q < Q; ++q)
    for (int j = 0; j < W; ++j) asked[q][j] = _mm512_loadu_si512(query + q * D + 2 * j * LANES);
  const auto dots = [&](int64_t s, __m512* dot) {
    const BFloat16* from = seen.keys + s * seen.ld_keys;
    ask_for(from + AHEAD * seen.ld_keys, seen.values + s * seen.ld_values, D);
    __m512i key[W];
    for (int j = 0; j < W; ++j) key[j] = _mm512_loadu_si512(from + 2 * j * LANES);
    for (int q = 0; q < Q; ++q) {
      dot[q] = _mm512_setzero_ps();
      for (int j = 0; j < W; ++j) dot[q] = dot_pairs(dot[q], asked[q][j], key[j]);
    }
  };
  __m512 tops[Q];
  float top[Q];
  for (int q = 0; q < Q; ++q) tops[q] = _mm512_set1_ps(-INFINITY);
  for (int64_t s = 0; s < whole; s += LANES) {
    __m512 block[Q][LANES], dot[Q];
    for (int64_t i = 0; i < LANES; ++i) {
      dots(s + i, dot);
      for (int q = 0; q < Q; ++q) block[q][i] = dot[q];
    }
    for (int q = 0; q < Q; ++q) {
      const __m512 sums = sums_of(block[q]);
      tops[q] = _mm512_max_ps(tops[q], sums);
      _mm512_storeu_ps(scores + q * length + s, sums);
    }
  }
  for (int q = 0; q < Q; ++q) top[q] = _mm512_reduce_max_ps(tops[q]);
  for (int64_t s = whole; s < length; ++s) {
    __m512 dot[Q];
    dots(s, dot);
    for (int q = 0; q < Q; ++q) top[q] = std::max(top[q], scores[q * length + s] = _mm512_reduce_add_ps(dot[q]));
  }
  const int64_t even = (length + 1) / 2 * 2;  // of weights, which go by pairs too
  float share[Q];
  for (int q = 0; q < Q; ++q) {
    float* row = scores + q * length;
    uint16_t* to = weights + q * even;
    const Floats by(scale * LOG2E), base(top[q] * scale * LOG2E);
    Floats totals(0.f);
    for (int64_t s = 0; s < length; s += LANES) {
      const __mmask16 there = length - s < LANES ? static_cast<__mmask16>((1u << (length - s)) - 1) : 0xffff;
      const Floats one = power_of_two(at::vec::fmsub(Floats(_mm512_maskz_loadu_ps(there, row + s)), by, base));
      const __m512 weight = _mm512_maskz_mov_ps(there, one);
      totals = totals + Floats(weight);
      _mm256_mask_storeu_epi16(to + s, there, (__m256i)_mm512_cvtneps_pbh(weight));
    }
    if (even > length) to[length] = 0;
    const float total = sum(totals);
    lse[q] = top[q] * scale + std::log(total);
    share[q] = 1.f / total;
  }
  __m512 sums[Q][V];
  for (int q = 0; q < Q; ++q)
    for (int j = 0; j < V; ++j) sums[q][j] = _mm512_setzero_ps();
  for (int64_t s = 0; s < length; s += 2) {
    const BFloat16 *first = seen.values + s * seen.ld_values, *second = s + 1 < length ? first + seen.ld_values : first;
    __m512i pair[Q];
    for (int q = 0; q < Q; ++q) {
      int32_t both;
      std::memcpy(&both, weights + q * even + s, 4);
      pair[q] = _mm512_set1_epi32(both);
    }
    for (int j = 0; j < W; ++j) {
      const __m512i a = _mm512_loadu_si512(first + 2 * j * LANES), b = _mm512_loadu_si512(second + 2 * j * LANES);
      const __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
      for (int q = 0; q < Q; ++q) {
        sums[q][2 * j] = dot_pairs(sums[q][2 * j], pair[q], low);
        sums[q][2 * j + 1] = dot_pairs(sums[q][2 * j + 1], pair[q], high);
      }
    }
  }
  // an unpacked half holds four numbers of each eight
  const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i back = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int q = 0; q < Q; ++q)
    for (int j = 0; j < W; ++j) {
      const __m512 by = _mm512_set1_ps(share[q]);
      const __m512 low = _mm512_mul_ps(sums[q][2 * j], by), high = _mm512_mul_ps(sums[q][2 * j + 1], by);
      _mm512_storeu_ps(out + q * D + 2 * j * LANES, _mm512_permutex2var_ps(low, front, high));
      _mm512_storeu_ps(out + q * D + (2 * j + 1) * LANES, _mm512_permutex2var_ps(low, back, high));
    }
}
#endif

// What one thread works in.
struct Work {
  Buffer<float> scores, query, found, sums;
  Buffer<BFloat16> pairs;
  Buffer<uint16_t> weights;
  Work(int64_t longest, int64_t D)
      : scores(QUERIES * longest), query(QUERIES * D), found(QUERIES * D), sums(QUERIES), pairs(QUERIES * D), weights(QUERIES * (longest + 1)) {}
};

// `count` queries at `query_of(i)`, not scaled -> work.found and work.sums
template <typename T, int V, int Q, typename QueryOf>
void attend(const QueryOf& query_of, const Seen<T>& seen, float scale, Work& work) {
  constexpr int64_t D = V * LANES;
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, BFloat16> && V % 2 == 0) {
    for (int64_t i = 0; i < Q; ++i) std::memcpy(work.pairs.data() + i * D, query_of(i), D * sizeof(T));
    few_pairs<V, Q>(work.pairs.data(), seen, scale, work.scores.data(), work.weights.data(), work.found.data(), work.sums.data());
    return;
  }
#endif
  for (int64_t i = 0; i < Q; ++i)
    for (int64_t j = 0; j < D; j += LANES) _mm512_storeu_ps(work.query.data() + i * D + j, _mm512_mul_ps(wide(query_of(i) + j), _mm512_set1_ps(scale)));
  few_queries<T, V, Q>(work.query.data(), seen, work.scores.data(), work.found.data(), work.sums.data());
}

// A row's own tokens, or a range of a kept node's, and what the queries of its rows find there.
struct Piece {
  int64_t node, begin, length;  // node -1: the own ones of each row
  int64_t rows;
  const int64_t* row_of;        // of each; none: they are all rows, in order
  int64_t at;                   // of its outputs (rows, H, D) and log-sum-exps (rows, H) among all
};

struct Nodes {
  at::TensorList keys, values, rows;
};

std::vector<Piece> pieces_of(const Nodes& nodes, int64_t N) {
  std::vector<Piece> pieces{{-1, 0, 0, N, nullptr, 0}};
  int64_t at = N;
  for (size_t i = 0; i < nodes.keys.size(); ++i) {
    const int64_t length = nodes.keys[i].size(1), rows = nodes.rows[i].numel();
    for (int64_t begin = 0; begin < length; begin += RANGE, at += rows)
      pieces.push_back({static_cast<int64_t>(i), begin, std::min(RANGE, length - begin), rows, nodes.rows[i].const_data_ptr<int64_t>(), at});
  }
  return pieces;
}

// The outputs of a row's pieces, weighted by what they hold of the whole: in the order of the pieces.
void join_pieces(const std::vector<std::vector<int64_t>>& places, int64_t H, int64_t D, const float* outs, const float* lses, float* out,
                 float* lse) {
  const int64_t N = places.size();
  at::parallel_for(0, N * H, 16, [&](int64_t begin, int64_t end) {
    for (int64_t one = begin; one < end; ++one) {
      const int64_t n = one / H, h = one % H;
      float top = -INFINITY, total = 0;
      for (int64_t place : places[n]) top = std::max(top, lses[place * H + h]);
      for (int64_t place : places[n]) total += std::exp(lses[place * H + h] - top);
      lse[one] = top + std::log(total);
      float* to = out + one * D;
      for (int64_t place : places[n]) {
        const Floats share(std::exp(lses[place * H + h] - lse[one]));
        const float* from = outs + (place * H + h) * D;
        for (int64_t j = 0; j < D; j += LANES) {
          const Floats before = place == places[n][0] ? Floats(0.f) : Floats::loadu(to + j);
          at::vec::fmadd(share, Floats::loadu(from + j), before).store(to + j);
        }
      }
    }
  });
}

template <typename T, int V>
void row_attention(const Tensor& q, const Tensor& k, const Tensor& v, Tensor& keys, Tensor& values, const Tensor& length_N, int64_t window,
                   float scale, const Nodes& nodes, const std::vector<Piece>& pieces, float* outs, float* lses) {
  constexpr int64_t D = V * LANES;
  const int64_t H = q.size(0), N = q.size(1), G = k.size(0), each = H / G, S = keys.size(2);
  const int64_t* lengths = length_N.const_data_ptr<int64_t>();
  const auto at = [](const Tensor& x, int64_t head, int64_t n) { return x.const_data_ptr<T>() + head * x.stride(0) + n * x.stride(1); };
  T *all_keys = keys.mutable_data_ptr<T>(), *all_values = values.mutable_data_ptr<T>();
  struct Task {
    const Piece* piece;
    int64_t g, first, count;  // queries of the piece: each row's heads that share a head of keys, one row behind the other
  };
  std::vector<Task> tasks;  // the long ones first
  for (size_t i = pieces.size(); i-- > 0;)
    for (int64_t g = 0; g < G; ++g) {
      const int64_t all = pieces[i].rows * each, most = pieces[i].node < 0 ? each : QUERIES;
      for (int64_t first = 0; first < all; first += most) tasks.push_back({&pieces[i], g, first, std::min(most, all - first)});
    }
  int64_t longest = RANGE;
  for (int64_t n = 0; n < N; ++n) longest = std::max(longest, lengths[n] + 1);
  share_out(tasks.size(), [&](const auto& next) {
    Work work(longest, D);
    for (int64_t place = next(); place < static_cast<int64_t>(tasks.size()); place = next()) {
      const Task& task = tasks[place];
      const Piece& piece = *task.piece;
      Seen<T> seen;
      if (piece.node < 0) {
        const int64_t n = task.first / each, length = lengths[n], from = window > 0 ? std::max<int64_t>(0, length + 1 - window) : 0;
        T *row_keys = all_keys + (n * G + task.g) * S * D, *row_values = all_values + (n * G + task.g) * S * D;
        std::memcpy(row_keys + length * D, at(k, task.g, n), D * sizeof(T));
        std::memcpy(row_values + length * D, at(v, task.g, n), D * sizeof(T));
        seen = {row_keys + from * D, row_values + from * D, D, D, length + 1 - from};
      } else {
        const Tensor &key = nodes.keys[piece.node], &value = nodes.values[piece.node];
        seen = {at(key, task.g, piece.begin), at(value, task.g, piece.begin), key.stride(1), value.stride(1), piece.length};
      }
      for (int64_t first = task.first; first < task.first + task.count; first += QUERIES) {
        const int64_t some = std::min(QUERIES, task.first + task.count - first);
        const auto query_of = [&](int64_t i) {
          const int64_t row = (first + i) / each, n = piece.row_of == nullptr ? row : piece.row_of[row];
          return at(q, task.g * each + (first + i) % each, n);
        };
        switch (some) {
          case 1: attend<T, V, 1>(query_of, seen, scale, work); break;
          case 2: attend<T, V, 2>(query_of, seen, scale, work); break;
          case 3: attend<T, V, 3>(query_of, seen, scale, work); break;
          default: attend<T, V, 4>(query_of, seen, scale, work);
        }
        for (int64_t i = 0; i < some; ++i) {
          const int64_t one = (piece.at + (first + i) / each) * H + task.g * each + (first + i) % each;
          std::memcpy(outs + one * D, work.found.data() + i * D, D * sizeof(float));
          lses[one] = work.sums[i];
        }
      }
    }
  });
}

template <typename T>
void of_type(const Tensor& q, const Tensor& k, const Tensor& v, Tensor& keys, Tensor& values, const Tensor& length_N, int64_t window,
             float scale, const Nodes& nodes, const std::vector<Piece>& pieces, float* outs, float* lses) {
  switch (q.size(2) / LANES) {
#define WIDTH(V) \
  case V: return row_attention<T, V>(q, k, v, keys, values, length_N, window, scale, nodes, pieces, outs, lses)
    WIDTH(1); WIDTH(2); WIDTH(3); WIDTH(4); WIDTH(5); WIDTH(6); WIDTH(8); WIDTH(12); WIDTH(16);
#undef WIDTH
    default: TORCH_CHECK(false, "heads of this width are not served");
  }
}

void check_decode(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keys, const Tensor& values, const Tensor& length_N,
                  const Nodes& nodes) {
  const int64_t H = q.size(0), N = q.size(1), D = q.size(2), G = k.size(0);
  TORCH_CHECK(H % G == 0 && v.sizes() == k.sizes() && k.size(1) == N && keys.sizes() == values.sizes() && keys.size(0) >= N &&
                  length_N.numel() == N && keys.size(1) == G && keys.size(3) == D && q.stride(2) == 1 && k.stride(2) == 1 && v.stride(2) == 1,
              "queries, keys, values and rows belong together");
  const int64_t* lengths = length_N.const_data_ptr<int64_t>();
  TORCH_CHECK(length_N.is_contiguous() && std::all_of(lengths, lengths + N, [&](int64_t length) { return length >= 0 && length < keys.size(2); }),
              "each row has room for one token more");
  TORCH_CHECK(keys.is_contiguous() && values.is_contiguous() && D % LANES == 0, "rows of keys are contiguous, heads fill registers");
  TORCH_CHECK(nodes.keys.size() == nodes.values.size() && nodes.keys.size() == nodes.rows.size(), "nodes, their values and rows belong together");
  for (size_t i = 0; i < nodes.keys.size(); ++i) {
    const Tensor &key = nodes.keys[i], &value = nodes.values[i], &rows = nodes.rows[i];
    const int64_t* row = rows.const_data_ptr<int64_t>();
    TORCH_CHECK(key.sizes() == value.sizes() && key.size(0) == G && key.size(2) == D && key.stride(2) == 1 && value.stride(2) == 1 &&
                    key.scalar_type() == q.scalar_type() && value.scalar_type() == q.scalar_type() && rows.is_contiguous() &&
                    std::all_of(row, row + rows.numel(), [&](int64_t n) { return n >= 0 && n < N; }),
                "nodes and rows belong together");
  }
}

// q (H, N, D), k and v (G, N, D) of the new tokens, numbers of a head side by side; keys and values (rows, G, S, D) contiguous, rows
// [0, N) in use; length_N (N) tokens in each row before. Writes k and v behind them. A token sees keys less than `window` above it
// (0: all), and all keys (G, L, D) of each node above its row: `node_rows` names the rows below each. -> output (N, H, D) and log-sum-exp
// (N, H), fp32
std::tuple<Tensor, Tensor> decode_attention(const Tensor& q, const Tensor& k, const Tensor& v, Tensor keys, Tensor values,
                                            const Tensor& length_N, int64_t window, double scale, at::TensorList node_keys,
                                            at::TensorList node_values, at::TensorList node_rows) {
  const Nodes nodes{node_keys, node_values, node_rows};
  check_decode(q, k, v, keys, values, length_N, nodes);
  const int64_t H = q.size(0), N = q.size(1), D = q.size(2);
  const std::vector<Piece> pieces = pieces_of(nodes, N);
  const int64_t all = pieces.back().at + pieces.back().rows;
  const auto fp32 = q.options().dtype(at::kFloat);
  Tensor outs = at::empty({all, H, D}, fp32), lses = at::empty({all, H}, fp32);
  float *to = outs.mutable_data_ptr<float>(), *sums = lses.mutable_data_ptr<float>();
  const auto run = q.scalar_type() == at::kFloat ? of_type<float> : of_type<BFloat16>;
  run(q, k, v, keys, values, length_N, window, static_cast<float>(scale), nodes, pieces, to, sums);
  if (pieces.size() == 1) return {outs, lses};
  std::vector<std::vector<int64_t>> places(N);
  for (const Piece& piece : pieces)
    for (int64_t row = 0; row < piece.rows; ++row) places[piece.row_of == nullptr ? row : piece.row_of[row]].push_back(piece.at + row);
  Tensor out = at::empty({N, H, D}, fp32), lse = at::empty({N, H}, fp32);
  join_pieces(places, H, D, to, sums, out.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>());
  return {out, lse};
}
