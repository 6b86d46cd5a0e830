// What all kernels stand on: registers of fp32 and bf16, and the layouts that products of bf16 want.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using at::BFloat16;
using at::Tensor;
using Floats = at::vec::Vectorized<float>;
using Halves = at::vec::Vectorized<BFloat16>;
namespace blas = at::native::cpublas;

// Numbers that begin where a line of the cache does, each buffer of a thread at another place of its page: buffers whose addresses end
// alike (large ones of malloc do) make the processor take a read of one for a read of what was just written to another, and wait.
template <typename T>
struct Apart {
  using value_type = T;
  static constexpr size_t LINE = 64, PAGE = 4096, STEP = 13 * LINE;
  Apart() = default;
  template <typename Other>
  Apart(const Apart<Other>&) {}
  T* allocate(size_t count) {
    static thread_local size_t made = 0;
    char* whole = static_cast<char*>(::operator new(count * sizeof(T) + 2 * PAGE, std::align_val_t(PAGE)));
    char* begin = whole + LINE + made++ * STEP % PAGE;
    reinterpret_cast<char**>(begin)[-1] = whole;
    return reinterpret_cast<T*>(begin);
  }
  void deallocate(T* begin, size_t) { ::operator delete(reinterpret_cast<char**>(begin)[-1], std::align_val_t(PAGE)); }
  template <typename Other>
  bool operator==(const Apart<Other>&) const { return true; }
  template <typename Other>
  bool operator!=(const Apart<Other>&) const { return false; }
};
template <typename T>
using Buffer = std::vector<T, Apart<T>>;

constexpr int64_t LANES = Floats::size();
constexpr int64_t PAD = 32;  // shapes of products are multiples of this, so that few of them are ever compiled
constexpr int64_t ELEMENTS_A_TASK = 1 << 15;

int64_t padded(int64_t size) { return (size + PAD - 1) / PAD * PAD; }

int64_t rows_a_task(int64_t width) { return std::max<int64_t>(1, ELEMENTS_A_TASK / width); }

std::tuple<Floats, Floats> widened(const BFloat16* from) { return at::vec::convert_to_float<BFloat16>(Halves::loadu(from)); }

// 32 numbers in bf16, nearest even: one instruction where the processor has it, some fifteen elsewhere
inline __m512i narrowed(const Floats& low, const Floats& high) {
#ifdef __AVX512BF16__
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
#else
  return at::vec::convert_from_float<BFloat16>(low, high);
#endif
}

inline void store(const Floats& low, const Floats& high, BFloat16* to) { _mm512_storeu_si512(to, narrowed(low, high)); }

// 2^x within 4e-6 of itself, what is smaller than any number as 0: a polynomial on [-1/2, 1/2], then the exponent
inline Floats power_of_two(const Floats& x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), rest = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_fmadd_ps(rest, _mm512_set1_ps(0.00958285299f), _mm512_set1_ps(0.0559064247f));
  y = _mm512_fmadd_ps(rest, y, _mm512_set1_ps(0.240240986f));
  y = _mm512_fmadd_ps(rest, y, _mm512_set1_ps(0.693124193f));
  y = _mm512_fmadd_ps(rest, y, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(y, whole);
}

constexpr float LOG2E = 1.44269504f;

float sum(const Floats& values) {
  return at::vec::vec_reduce_all<float>([](Floats& x, Floats& y) { return x + y; }, values);
}

float largest(const Floats& values) {
  return at::vec::vec_reduce_all<float>([](Floats& x, Floats& y) { return at::vec::maximum(x, y); }, values);
}

// Do each task once, whoever is free takes the next: what a task makes must not depend on who does it, or when.
template <typename Worker>
void share_out(int64_t tasks, const Worker& worker) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    worker([&] { return std::min(tasks, next.fetch_add(1)); });
  });
}

// (rows, columns) -> (columns, `all`), by tiles; behind the rows, zeros
template <typename T, int TILE>
void transpose(const T* from, int64_t ld, int64_t rows, int64_t columns, int64_t all, T* to) {
  for (int64_t i = 0; i < rows; i += TILE)
    for (int64_t j = 0; j < columns; j += TILE)
      at::vec::transpose_mxn<T>(from + i * ld + j, ld, to + j * all + i, all, static_cast<int>(std::min<int64_t>(TILE, rows - i)),
                                static_cast<int>(std::min<int64_t>(TILE, columns - j)));
  for (int64_t j = 0; j < columns; ++j) std::fill(to + j * all + rows, to + (j + 1) * all, T(0));
}

// (rows, width) -> pairs of columns, transposed: [width / 2][all][2]. Two neighbours move as one fp32, whose value nothing reads.
void pack_transposed(const BFloat16* from, int64_t ld, int64_t rows, int64_t all, int64_t width, BFloat16* to) {
  transpose<float, 16>(reinterpret_cast<const float*>(from), ld / 2, rows, width / 2, all, reinterpret_cast<float*>(to));
}

// (rows, width) -> pairs of rows: [all / 2][width][2]
void pack_pairs(const BFloat16* from, int64_t ld, int64_t rows, int64_t all, int64_t width, BFloat16* to) {
  auto* out = reinterpret_cast<uint32_t*>(to);
  for (int64_t row = 0; row < all; row += 2) {
    const auto* even = reinterpret_cast<const uint16_t*>(from + row * ld);
    const auto* odd = even + ld;
    uint32_t* pairs = out + row / 2 * width;
    if (row + 1 < rows)
      for (int64_t column = 0; column < width; ++column) pairs[column] = even[column] | static_cast<uint32_t>(odd[column]) << 16;
    else
      for (int64_t column = 0; column < width; ++column) pairs[column] = row < rows ? even[column] : 0u;
  }
}

void copy_rows(const BFloat16* from, int64_t ld, int64_t rows, int64_t all, int64_t width, BFloat16* to) {
  for (int64_t row = 0; row < rows; ++row) std::memcpy(to + row * width, from + row * ld, width * sizeof(BFloat16));
  std::fill(to + rows * width, to + all * width, BFloat16(0));
}

// to bf16, nearest even, in the upper half of 32 bits; NaN stays NaN
inline uint32_t rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t near = bits + 0x7fffu + ((bits >> 16) & 1u);
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : near;
}

}  // namespace
