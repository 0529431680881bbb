// What the kernels of the first convolution share: tiles of its output, and the bytes that they
// see.
#pragma once
#include "conv2d_first.h"
#include "launch.h"
#include "tensor_cores.h"

namespace pycap::gpu::first {

constexpr int kRows = 8;      // of the output, in a tile
constexpr int kColumns = 32;  // multiples of 16: the products' pixels

// The filters of a block: 128 bytes of a pixel of the output.
template <class T>
constexpr int kFilters = 128 / sizeof(T);
template <class T>
constexpr int kChunk = 16 / sizeof(T);  // numbers that are loaded and stored at once

// A tile of the output, by its upper left pixel.
struct Tile {
  int image, row, column;
};

__host__ __device__ inline int count_tiles(const FirstLayer& s) {
  return s.n * ((s.p + kRows - 1) / kRows) * ((s.q + kColumns - 1) / kColumns);
}

__device__ __forceinline__ Tile tile_at(int number, const FirstLayer& s) {
  const int across = (s.q + kColumns - 1) / kColumns, down = (s.p + kRows - 1) / kRows;
  const int line = number / across;
  return {line / down, line % down * kRows, number % across * kColumns};
}

// A thread's part of the bytes around a tile, on the way from global memory to its place in shared
// memory as numbers: one column and colour of every other row, or of every row. A row has a column
// more on the left, one on the right, and one that products with weights of 0 may read.
template <int threads>
struct Pixels {
  static constexpr int kNumbers = (kColumns + 3) * 3;
  static constexpr int kGroup = 128;  // threads of a row
  static constexpr int kStride = threads / kGroup;
  static constexpr int kCount = (kRows + 2) / kStride;
  static_assert(kNumbers <= kGroup && (kRows + 2) % kStride == 0);

  int value[kCount];  // negative: outside the window

  static __device__ __forceinline__ int column() { return threadIdx.x % kGroup / 3; }
  static __device__ __forceinline__ int colour() { return threadIdx.x % kGroup % 3; }
  static __device__ __forceinline__ int row(int i) { return threadIdx.x / kGroup + i * kStride; }

  __device__ __forceinline__ void fetch(const Bytes& images, const Tile& tile,
                                        const FirstLayer& s) {
    const int v = tile.column - 1 + column();
    const bool inside = column() < kColumns + 3 && v >= 0 && v < s.q;
    const int* crop = images.crops + int64_t{tile.image} * 3;
    const int left = crop[1] + (crop[2] ? s.q - 1 - v : v), top = crop[0];
    int u = tile.row - 1 + row(0);
    int64_t at = ((int64_t{tile.image} * s.h + top + u) * s.width + left) * 3 + colour();
    const int pitch = kStride * s.width * 3;
#pragma unroll
    for (int i = 0; i < kCount; ++i, u += kStride, at += pitch)
      value[i] = inside && u >= 0 && u < s.p ? images.x[at] : -1;
  }

  // put(row, column, colour, number) for each, all counted from the tile's upper left neighbour.
  template <class Put>
  __device__ __forceinline__ void store(const Bytes& images, const Put& put) const {
    if (column() >= kColumns + 3) return;
    const float scale = images.scale[colour()], shift = images.shift[colour()];
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      put(row(i), column(), colour(),
          value[i] < 0 ? 0.0f : fmaf(static_cast<float>(value[i]), scale, shift));
  }
};

// d += a b, over 16 of the summed index in 16 bits; over 8 in float32, a and b being its bits, as
// one product in TensorFloat-32 or three.
template <class T, bool three>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 2) {
    mma_16816<T>(d, a, b);
  } else if constexpr (three) {
    uint32_t high_a[4], low_a[4], high_b[2], low_b[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) split_tf32(bits<float>(a[i]), high_a[i], low_a[i]);
#pragma unroll
    for (int i = 0; i < 2; ++i) split_tf32(bits<float>(b[i]), high_b[i], low_b[i]);
    mma_1688_tf32(d, low_a, high_b);
    mma_1688_tf32(d, high_a, low_b);
    mma_1688_tf32(d, high_a, high_b);
  } else {
    uint32_t rounded_a[4], rounded_b[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) rounded_a[i] = tf32(bits<float>(a[i]));
#pragma unroll
    for (int i = 0; i < 2; ++i) rounded_b[i] = tf32(bits<float>(b[i]));
    mma_1688_tf32(d, rounded_a, rounded_b);
  }
}

inline void check(const char* name, Products products, const FirstLayer& s) {
  const int whole = 16 / element_size(products);
  if (s.k % whole)
    throw std::invalid_argument(std::string(name) + ": " + std::to_string(s.k) +
                                " filters must be a multiple of " + std::to_string(whole));
  if (s.p > s.h || s.q > s.width)
    throw std::invalid_argument(std::string(name) + ": windows of " + std::to_string(s.p) + "x" +
                                std::to_string(s.q) + " do not fit images of " +
                                std::to_string(s.h) + "x" + std::to_string(s.width));
}

}  // namespace pycap::gpu::first
