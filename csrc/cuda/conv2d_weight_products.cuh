// The weight gradient's products: what a warp makes of the pixels in shared memory.
#pragma once
#include "conv2d_weight_strips.cuh"

namespace pycap::gpu::wgrad {

constexpr int kFilters = 32;  // of a warp
constexpr int kChannels = 16;

// A warp's sums, d[r][s]: 32 filters by 16 channels a tap; and of dz alone, sums[i] over this
// lane's pixels for filter 8i + group.
struct Sums {
  float d[3][3][2][2][4] = {};
  float dz[4] = {};
};

// Adds up the products of a pair of rows: `before` and `now` are the slots of dz's four rows, `now`
// that of x's two.
template <class T, bool three>
struct Multiply;

// 16 bits. Of the 16 pixels that a product sums over, 8 are of the upper row and 8 below them, so
// that the three vertical taps take rows 0 and 1, 1 and 2, 2 and 3 of dz's four.
template <class T>
struct Multiply16 {
  using S = Slot<T>;
  int at_dz[2], at_x[3];  // this lane's addresses for ldmatrix

  __device__ Multiply16(int filter, int channel) {
    const int lane = threadIdx.x % kWarp, column = lane % 8, matrix = lane / 8;
#pragma unroll
    for (int m = 0; m < 2; ++m)
      at_dz[m] =
          2 * S::kRowX + matrix / 2 * S::kRow + S::place(column, filter / 8 + 2 * m + matrix % 2);
#pragma unroll
    for (int s = 0; s < 3; ++s)
      at_x[s] = matrix % 2 * S::kRowX + S::place(column + s, channel / 8 + matrix / 2);
  }

  static __device__ __forceinline__ float both(uint32_t x) {
    return to_float(bits<T>(static_cast<uint16_t>(x & 0xffff))) +
           to_float(bits<T>(static_cast<uint16_t>(x >> 16)));
  }

  // The address of the fragment of the two rows between, the lower of `before` and the upper of
  // `now`.
  static __device__ __forceinline__ const unsigned char* between(const unsigned char* before,
                                                                 const unsigned char* now) {
    return threadIdx.x % kWarp < kWarp / 2 ? before + S::kRow : now - S::kRow;
  }

  __device__ __forceinline__ void operator()(Sums& sums, const unsigned char* before,
                                             const unsigned char* now) const {
    const unsigned char* const rows[3] = {now, between(before, now), before};
#pragma unroll
    for (int along = 0; along < S::kRow; along += 8 * S::kPixel) {
      uint32_t dz[3][2][4];
#pragma unroll
      for (int r = 0; r < 3; ++r)
#pragma unroll
        for (int m = 0; m < 2; ++m) ldmatrix_x4_transposed(dz[r][m], rows[r] + at_dz[m] + along);
#pragma unroll
      for (int s = 0; s < 3; ++s) {
        uint32_t x[4];
        ldmatrix_x4_transposed(x, now + at_x[s] + along);
#pragma unroll
        for (int r = 0; r < 3; ++r)
#pragma unroll
          for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < 2; ++n) {
              const uint32_t b[2] = {x[2 * n], x[2 * n + 1]};
              mma_16816<T>(sums.d[r][s][m][n], dz[r][m], b);
            }
      }
    }
  }

  __device__ __forceinline__ void add_dz(Sums& sums, const unsigned char* before,
                                         const unsigned char* now) const {
    const unsigned char* const rows = between(before, now);
#pragma unroll 1
    for (int along = 0; along < S::kRow; along += 8 * S::kPixel)
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        uint32_t dz[4];
        ldmatrix_x4_transposed(dz, rows + at_dz[m] + along);
#pragma unroll
        for (int i = 0; i < 4; ++i) sums.dz[2 * m + i % 2] += both(dz[i]);
      }
  }
};

template <>
struct Multiply<bf16, false> : Multiply16<bf16> {
  using Multiply16::Multiply16;
};
template <>
struct Multiply<half, false> : Multiply16<half> {
  using Multiply16::Multiply16;
};

// Float32, in fragments of 8 pixels of one row. With `three`, a product of two numbers is that of
// their leading parts and two of a leading part and a rest, the small ones first.
template <bool three>
struct Multiply<float, three> {
  using S = Slot<float>;
  static constexpr int kParts = three ? 2 : 1;
  int at_dz, at_x[3];  // this lane's first number of a fragment
  int flip_dz, flip_x[3];

  __device__ Multiply(int filter, int channel) {
    const int lane = threadIdx.x % kWarp, group = lane / 4, pair = lane % 4;
    at_dz = (2 * S::kRowX + pair * S::kPixel) / 4;
    flip_dz = (filter + group) ^ pair * 8;
#pragma unroll
    for (int s = 0; s < 3; ++s) {
      at_x[s] = (pair + s) * S::kPixel / 4;
      flip_x[s] = (channel + group) ^ (pair + s) % 4 * 8;
    }
  }

  static __device__ __forceinline__ void split(float x, uint32_t (&parts)[kParts]) {
    if constexpr (three)
      split_tf32(x, parts[0], parts[1]);
    else
      parts[0] = tf32(x);
  }

  __device__ __forceinline__ void operator()(Sums& sums, const unsigned char* before,
                                             const unsigned char* now) const {
#pragma unroll 1
    for (int step = 0; step < 2 * (S::kColumns / 8); ++step) {
      const int row = step % 2, along = step / 2 * 8 * S::kPixel / 4;
      uint32_t b[kParts][3][2][2];
      const float* x = reinterpret_cast<const float*>(now + row * S::kRowX) + along;
#pragma unroll
      for (int s = 0; s < 3; ++s)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            uint32_t parts[kParts];
            split(x[at_x[s] + i * 4 * S::kPixel / 4 + (flip_x[s] ^ n * 8)], parts);
#pragma unroll
            for (int part = 0; part < kParts; ++part) b[part][s][n][i] = parts[part];
          }
#pragma unroll
      for (int r = 0; r < 3; ++r) {
        const int i = row + 2 - r;  // of dz's four rows
        const float* dz = reinterpret_cast<const float*>((i < 2 ? before : now) + i % 2 * S::kRow) +
                          along + at_dz;
        uint32_t a[kParts][2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float value = dz[j / 2 * 4 * S::kPixel / 4 + (flip_dz ^ (m * 16 + j % 2 * 8))];
            uint32_t parts[kParts];
            split(value, parts);
#pragma unroll
            for (int part = 0; part < kParts; ++part) a[part][m][j] = parts[part];
          }
#pragma unroll
        for (int term = 0; term < 2 * kParts - 1; ++term)
#pragma unroll
          for (int s = 0; s < 3; ++s)
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
              for (int n = 0; n < 2; ++n) {
                const bool last = term == 2 * kParts - 2;
                mma_1688_tf32(sums.d[r][s][m][n], a[last || term ? 0 : kParts - 1][m],
                              b[last || !term ? 0 : kParts - 1][s][n]);
              }
      }
    }
  }

  __device__ __forceinline__ void add_dz(Sums& sums, const unsigned char* before,
                                         const unsigned char* now) const {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float* dz = reinterpret_cast<const float*>(row ? now : before + S::kRow) + at_dz;
#pragma unroll 1
      for (int along = 0; along < S::kRow / 4; along += 4 * S::kPixel / 4)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums.dz[i] += dz[along + (flip_dz ^ i * 8)];
    }
  }
};

}  // namespace pycap::gpu::wgrad
