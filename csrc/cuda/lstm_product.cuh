// The product of every LSTM step: a block's weights, which stay in registers from the first step to
// the last, times what the other blocks sent.
//
// Weights are A of the tensor cores' products (rows: gates of units, or units) and the batch is B:
// eight sequences a product. The warps of a block divide K. Four lanes share 64 bytes of a row of
// K, a "chunk": each loads 16 contiguous bytes, which are its words of two products. So K is
// permuted within a chunk, alike in A and in B, which leaves the sum as it is.
#pragma once
#include "tensor_cores.h"

namespace pycap::gpu {

// Two tensor-core products for each tile of sequences, over one chunk of K. low, high: the weights'
// words of rows `group` and `group` + 8 (null: zeros). exact (float32): as three products of
// TensorFloat-32, else as one.
template <class T, int kTiles>
__device__ __forceinline__ void multiply_chunk(float (&sums)[kTiles][4], const uint32_t* low,
                                               const uint32_t* high,
                                               const uint32_t (&operand)[kTiles][4], bool exact) {
#pragma unroll
  for (int word = 0; word < 4; word += 2) {
    const uint32_t a[4] = {low[word], high ? high[word] : 0, low[word + 1],
                           high ? high[word + 1] : 0};
    if constexpr (std::is_same_v<T, float>) {
      uint32_t a_high[4], a_low[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) split_tf32(bits<float>(here(a[j])), a_high[j], a_low[j]);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        uint32_t b_high[2], b_low[2];
#pragma unroll
        for (int j = 0; j < 2; ++j)
          split_tf32(bits<float>(operand[tile][word + j]), b_high[j], b_low[j]);
        if (exact) {
          mma_1688_tf32(sums[tile], a_low, b_high);
          mma_1688_tf32(sums[tile], a_high, b_low);
        }
        mma_1688_tf32(sums[tile], a_high, b_high);
      }
    } else {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        mma_16816<T>(sums[tile], a, {operand[tile][word], operand[tile][word + 1]});
    }
  }
}

// kGates: the weights' rows are gates, four a unit, or else units. kRows: how many a block has.
// kLength: K. kTiles: tiles of eight sequences at a time.
template <class T, bool kGates, int kRows, int kLength, int kWarps, int kTiles>
struct Product {
  static constexpr int kPack = 16 / sizeof(T);               // numbers in 16 bytes
  static constexpr int kChunk = 4 * kPack;                   // numbers of K in a chunk
  static constexpr int kChunks = kLength / kChunk / kWarps;  // of a warp
  static constexpr int kHigh = kRows < 16 ? 1 : kRows / 16;  // tiles of 16 rows
  static constexpr int kWords = kRows < 16 ? 4 : 8;          // of a lane, tile and chunk
  static constexpr int kAhead = kChunks < 8 ? kChunks : 8;   // chunks loaded before products
  static constexpr int kColumns = 8 * kTiles;                // sequences
  static constexpr int kStride = kRows + 4;                  // frees `store` of bank conflicts
  static constexpr int kSums = kWarps * kColumns * kStride;  // floats of shared memory
  static_assert(kLength % (kChunk * kWarps) == 0 && kChunks % kAhead == 0);
  static_assert(kRows == 8 || kRows % 16 == 0);

  uint32_t held[kHigh][kChunks][kWords];

  static __device__ __forceinline__ int lane() { return threadIdx.x % kWarp; }
  static __device__ __forceinline__ int group() { return lane() / 4; }
  // The first number of K that this lane loads of its warp's chunk.
  static __device__ __forceinline__ int inner(int chunk) {
    return (static_cast<int>(threadIdx.x) / kWarp * kChunks + chunk) * kChunk + lane() % 4 * kPack;
  }

  // Rows: the gates of units first_unit.., of w [4H, H]; row 4*unit + gate of the sums. Tiles come
  // in pairs for eight units: gates i and f, then g and o.
  __device__ __forceinline__ void load_gates(const T* w, int hidden, int first_unit) {
    static_assert(kGates && kWords == 8 && kHigh % 2 == 0);
#pragma unroll
    for (int tile = 0; tile < kHigh; ++tile)
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk)
#pragma unroll
        for (int below = 0; below < 2; ++below) {
          const int64_t row = static_cast<int64_t>(tile % 2 * 2 + below) * hidden + first_unit +
                              tile / 2 * 8 + group();
          const uint4 words = *reinterpret_cast<const uint4*>(w + row * hidden + inner(chunk));
          held[tile][chunk][4 * below + 0] = words.x;
          held[tile][chunk][4 * below + 1] = words.y;
          held[tile][chunk][4 * below + 2] = words.z;
          held[tile][chunk][4 * below + 3] = words.w;
        }
  }

  // Rows: units first_unit.. as columns of w [4H, H]. Rows `group` and `group` + 8 of a tile are
  // neighbouring columns, which are read at once.
  __device__ __forceinline__ void load_units(const T* w, int hidden, int first_unit) {
    static_assert(!kGates);
    w += first_unit + (kWords == 4 ? 1 : 2) * group();
#pragma unroll
    for (int tile = 0; tile < kHigh; ++tile)
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk)
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const T* from =
              w + static_cast<int64_t>(inner(chunk) + word * (kPack / 4)) * hidden + tile * 16;
          uint32_t* to = held[tile][chunk] + word;
          if constexpr (kWords == 4) {
            const float one = *from;  // whole: `bits` of what a pointer shows would load bytes
            to[0] = bits<uint32_t>(one);
          } else if constexpr (std::is_same_v<T, float>) {
            const float2 both = *reinterpret_cast<const float2*>(from);
            to[0] = bits<uint32_t>(both.x), to[4] = bits<uint32_t>(both.y);
          } else {
            const uint32_t above = *reinterpret_cast<const uint32_t*>(from);
            const uint32_t below = *reinterpret_cast<const uint32_t*>(from + hidden);
            to[0] = (above & 0xffff) | below << 16, to[4] = above >> 16 | (below & 0xffff0000);
          }
        }
  }

  // The sums of this warp's part of K, to `partial` [kWarps][kColumns][kStride].
  // load(column, k): 16 bytes of the operand.
  template <class Load>
  __device__ __forceinline__ void multiply(float* partial, const Load& load, bool exact) const {
    float sums[kHigh][kTiles][4] = {};
#pragma unroll
    for (int ahead = 0; ahead < kChunks; ahead += kAhead) {
      uint32_t operand[kAhead][kTiles][4];
#pragma unroll
      for (int chunk = 0; chunk < kAhead; ++chunk)
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const uint4 words = load(8 * tile + group(), inner(ahead + chunk));
          operand[chunk][tile][0] = words.x, operand[chunk][tile][1] = words.y;
          operand[chunk][tile][2] = words.z, operand[chunk][tile][3] = words.w;
        }
#pragma unroll
      for (int chunk = 0; chunk < kAhead; ++chunk)
#pragma unroll
        for (int high = 0; high < kHigh; ++high) {
          const uint32_t* words = held[high][ahead + chunk];
          multiply_chunk<T>(sums[high], words, kWords == 8 ? words + 4 : nullptr, operand[chunk],
                            exact);
        }
    }
    store(partial, sums);
  }

  // The sum over all warps of row `row` and of the `kCount` - 1 that follow.
  template <int kCount>
  static __device__ __forceinline__ void total(float (&sum)[kCount], const float* partial,
                                               int column, int row) {
    static_assert(kCount == 1 || kCount == 4);
    const float* from = partial + column * kStride + row;
#pragma unroll
    for (int j = 0; j < kCount; ++j) sum[j] = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp, from += kColumns * kStride) {
      if constexpr (kCount == 4) {
        const float4 part = *reinterpret_cast<const float4*>(from);
        sum[0] += part.x, sum[1] += part.y, sum[2] += part.z, sum[3] += part.w;
      } else {
        sum[0] += *from;
      }
    }
  }

 private:
  // Where a lane holds neighbouring rows it stores them at once. The stride puts the four columns
  // of a quarter of the warp into different banks.
  __device__ __forceinline__ void store(float* partial,
                                        const float (&sums)[kHigh][kTiles][4]) const {
    partial += (threadIdx.x / kWarp) * (kColumns * kStride) + lane() % 4 * 2 * kStride;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        float* column = partial + (8 * tile + odd) * kStride;
        if constexpr (kWords == 4) {
          column[group()] = sums[0][tile][odd];
        } else if constexpr (kGates) {
#pragma unroll
          for (int high = 0; high < kHigh; high += 2)
            *reinterpret_cast<float4*>(column + 16 * high + 4 * group()) =
                make_float4(sums[high][tile][odd], sums[high][tile][odd + 2],
                            sums[high + 1][tile][odd], sums[high + 1][tile][odd + 2]);
        } else {
#pragma unroll
          for (int high = 0; high < kHigh; ++high)
            *reinterpret_cast<float2*>(column + 16 * high + 2 * group()) =
                make_float2(sums[high][tile][odd], sums[high][tile][odd + 2]);
        }
      }
  }
};

}  // namespace pycap::gpu
