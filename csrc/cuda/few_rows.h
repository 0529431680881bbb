// Products of few rows, which take as long as reading the other factor: it goes straight from
// memory into the registers of the tensor cores.
//
// A warp multiplies 16 rows of one factor by 8 of the other over a chunk of 64 bytes of both at a
// time. Lane 4*group + pair reads 16 bytes of row `group` (and `group + 8`), beginning at 16*pair,
// and takes their four words as if they stood where the fragments of two mma want them: both
// factors are out of order in the same way, and a sum has no order.
#pragma once
#include <utility>

#include "products.h"
#include "tensor_cores.h"

namespace pycap::gpu {

__device__ __forceinline__ uint4 load_16(const void* aligned) {
  return __ldg(static_cast<const uint4*>(aligned));
}

__device__ __forceinline__ uint32_t word(const uint4& four, int i) {
  return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
}

// Numbers of T in 16 bytes, which a lane holds of a row, and in a chunk.
template <class T>
constexpr int kVector = 16 / sizeof(T);
template <class T>
constexpr int kChunk = 4 * kVector<T>;

// The 16 x 8 products of a chunk: sums[m][n] += left[m] right[n]^T. left: rows `group` and
// `group + 8`. split: float32 numbers as two each.
template <class T, bool split, int M, int N>
__device__ __forceinline__ void multiply(float (&sums)[M][N][4], const uint4 (&left)[M][2],
                                         const uint4 (&right)[N]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    if constexpr (!split) {
      uint32_t b[N][2];
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          b[n][j] = word(right[n], i + j);
          if constexpr (std::is_same_v<T, float>) b[n][j] = tf32(bits<float>(b[n][j]));
        }
#pragma unroll
      for (int m = 0; m < M; ++m) {
        uint32_t a[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          a[j] = word(left[m][j % 2], i + j / 2);
          if constexpr (std::is_same_v<T, float>) a[j] = tf32(bits<float>(a[j]));
        }
#pragma unroll
        for (int n = 0; n < N; ++n) {
          if constexpr (std::is_same_v<T, float>)
            mma_1688_tf32(sums[m][n], a, b[n]);
          else
            mma_16816<T>(sums[m][n], a, b[n]);
        }
      }
    } else {
      uint32_t high_b[N][2], low_b[N][2];
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          split_tf32(bits<float>(word(right[n], i + j)), high_b[n][j], low_b[n][j]);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        uint32_t high_a[4], low_a[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          split_tf32(bits<float>(word(left[m][j % 2], i + j / 2)), high_a[j], low_a[j]);
#pragma unroll
        for (int n = 0; n < N; ++n) {
          mma_1688_tf32(sums[m][n], low_a, high_b[n]);
          mma_1688_tf32(sums[m][n], high_a, low_b[n]);
          mma_1688_tf32(sums[m][n], high_a, high_b[n]);
        }
      }
    }
  }
}

// A warp's sums to shared memory, transposed: place[row of right][row of left], `stride` numbers
// apart. A stride of 4 more than a multiple of 16 keeps the lanes in different banks.
template <int M, int N>
__device__ __forceinline__ void put_sums(float* place, int stride, const float (&sums)[M][N][4]) {
  const int group = threadIdx.x % kWarp / 4, pair = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        place[(8 * n + 2 * pair + j % 2) * stride + 16 * m + group + j / 2 * 8] = sums[m][n][j];
}

// A type and whether its products are split, as types.
template <class T_, bool split_>
struct Kind {
  using T = T_;
  static constexpr bool split = split_;
};

// Calls `function` with the Kind of `products`.
template <class Function>
void with(Products products, const Function& function) {
  switch (products) {
    case Products::tf32x3:
      return function(Kind<float, true>{});
    case Products::tf32:
      return function(Kind<float, false>{});
    case Products::bfloat16:
      return function(Kind<bf16, false>{});
    case Products::float16:
      return function(Kind<half, false>{});
  }
}

}  // namespace pycap::gpu
