// Weight gradient of 3x3 convolutions on tensor cores, dW[k,r,s,c] = sum over pixels of
// dz[pixel,k] x[pixel + tap,c] (docs/math/conv2d.md).
//
// A block keeps the sums of 64 filters by 64 channels by all nine taps in registers and walks over
// pixels: down a strip of columns, two rows of the map a step, strip after strip. So each number is
// loaded into shared memory once for nine products (twice at the edges of strips). Eight warps have
// 32 filters by 16 channels each.
//
// Columns are numbered through the whole batch, each image's followed by one that is zero in dz and
// x alike: the padding between neighbours. A strip then needs no cases at the borders of images,
// and maps of any width fill it.
#include <algorithm>

#include "conv2d_weight_products.cuh"
#include "launch.h"
#include "partial_sums.h"

namespace pycap::gpu {
namespace {

using namespace wgrad;

template <class V>
__device__ __forceinline__ void write(float* target, V value, float beta);
template <>
__device__ __forceinline__ void write(float* target, float value, float beta) {
  *target = beta == 0 ? value : value + beta * *target;
}
template <>
__device__ __forceinline__ void write(float* target, float2 value, float beta) {
  float2* at = reinterpret_cast<float2*>(target);
  if (beta != 0) {
    const float2 old = *at;
    value.x += beta * old.x;
    value.y += beta * old.y;
  }
  *at = value;
}

// Grid: tiles of filters by tiles of channels by splits; the blocks of one split, which read the
// same pixels, lie side by side.
template <class T, bool three>
__global__ void __launch_bounds__(kThreads, 1)
    weight_kernel(float* dw,    // [splits,k,3,3,c]
                  float* db,    // [splits,k] or null
                  const T* dz,  // [n,h,width,k]
                  const T* x,   // [n,h,width,c]
                  Conv3x3 s, float beta_w, float beta_b) {
  using S = Slot<T>;
  PYCAP_DYNAMIC_SHARED(slots);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first_filter = blockIdx.x * kTile, first_channel = blockIdx.y * kTile;
  const int filter = warp % 2 * kFilters, channel = warp / 2 * kChannels;
  const int pairs = (s.h + 1) / 2;
  const int64_t strips = (int64_t{s.n} * (s.width + 1) + S::kColumns - 1) / S::kColumns;
  const int64_t steps = strips * pairs, split = blockIdx.z, splits = gridDim.z;
  const bool with_dz = db && blockIdx.y == 0 && channel == 0;

  Walk loading(steps * split / splits, steps * (split + 1) / splits, pairs), walk = loading;
  Loader<T> loader{x,
                   dz,
                   s,
                   static_cast<int>(threadIdx.x) / S::kChunks,
                   static_cast<int>(threadIdx.x) % S::kChunks,
                   first_filter,
                   first_channel};
  const auto load = [&](int slot) {
    if (loading.left > 0) {
      loader.load(slots + slot % kSlots * S::kBytes, loading);
      loading.advance(pairs);
    }
    copy_async_commit();
  };
  for (int slot = 0; slot < kAhead; ++slot) load(slot);

  Sums sums;
  const Multiply<T, three> multiply(filter, channel);
  for (int slot = 0; walk.left > 0; ++slot) {
    copy_async_wait<kAhead - 1>();
    __syncthreads();  // this slot is complete, and nobody reads the one before the last any more
    load(slot + kAhead);
    if (!walk.fresh) {
      const unsigned char* const before = slots + (slot + kSlots - 1) % kSlots * S::kBytes;
      const unsigned char* const now = slots + slot % kSlots * S::kBytes;
      multiply(sums, before, now);
      if (with_dz) multiply.add_dz(sums, before, now);
    }
    walk.advance(pairs);
  }

  const int group = lane / 4, pair = lane % 4;
  dw += split * s.k * 9 * s.c;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int k = first_filter + filter + m * 16 + i * 8 + group;
      if (k >= s.k) continue;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int c = first_channel + channel + n * 8 + pair * 2;
        if (c >= s.c) continue;
#pragma unroll
        for (int tap = 0; tap < 9; ++tap) {
          const float(&d)[4] = sums.d[tap / 3][tap % 3][m][n];
          write(dw + (int64_t{k} * 9 + tap) * s.c + c, make_float2(d[2 * i], d[2 * i + 1]), beta_w);
        }
      }
    }
  if (!with_dz) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float sum = sums.dz[i];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    const int k = first_filter + filter + i * 8 + group;
    if (pair == 0 && k < s.k) write(db + split * s.k + k, sum, beta_b);
  }
}

int64_t count_steps(Products products, const Conv3x3& s) {
  const int columns = 64 / element_size(products);
  return (int64_t{s.n} * (s.width + 1) + columns - 1) / columns * ((s.h + 1) / 2);
}

dim3 tiles(const Conv3x3& s) { return dim3(blocks_for(s.k, kTile), blocks_for(s.c, kTile)); }

template <class T, bool three>
void run(float* dw, float* db, const void* dz, const void* x, const Conv3x3& s, int splits,
         float beta_w, float beta_b, cudaStream_t stream) {
  dim3 grid = tiles(s);
  grid.z = splits;
  launch("conv2d_weight", weight_kernel<T, three>,
         {grid, kThreads, kSlots * Slot<T>::kBytes, stream}, dw, db, static_cast<const T*>(dz),
         static_cast<const T*>(x), s, beta_w, beta_b);
}

}  // namespace

int conv2d_weight_splits(Products products, const Conv3x3& s) {
  // A multiprocessor holds one block. A wave of blocks takes as long as one block's steps and, by
  // estimate, eight more: to fill the pipeline, to write the 144 KB of sums, and to read them
  // again.
  constexpr int64_t kOverhead = 8;
  const dim3 grid = tiles(s);
  const int64_t here = multiprocessors(), blocks = int64_t{grid.x} * grid.y,
                steps = count_steps(products, s);
  const int64_t most = std::min(std::max<int64_t>(steps, 1), (4 * here + blocks - 1) / blocks);
  int64_t best = 1, least = INT64_MAX;
  for (int64_t splits = 1; splits <= most; ++splits) {
    const int64_t waves = (splits * blocks + here - 1) / here;
    const int64_t time = waves * ((steps + splits - 1) / splits + kOverhead);
    if (time < least) {
      least = time;
      best = splits;
    }
  }
  return static_cast<int>(best);
}

void conv2d_weight(float* dw, float* db, float* partials, float* partials_b, const void* dz,
                   const void* x, Products products, const Conv3x3& s, int splits, float beta_w,
                   float beta_b, cudaStream_t stream) {
  const int whole = 16 / element_size(products);
  if (s.c % whole || s.k % whole)
    throw std::invalid_argument("conv2d_weight: " + std::to_string(s.c) + " channels and " +
                                std::to_string(s.k) + " filters must be multiples of " +
                                std::to_string(whole));
  if (splits < 1 || splits > std::max<int64_t>(count_steps(products, s), 1))
    throw std::invalid_argument("conv2d_weight: " + std::to_string(splits) +
                                " splits of the pixels; ask conv2d_weight_splits");
  const bool parts = splits > 1;
  float* const target = parts ? partials : dw;
  float* const target_b = parts && db ? partials_b : db;
  const auto call = [&](auto run_one) {
    run_one(target, target_b, dz, x, s, splits, parts ? 0 : beta_w, parts ? 0 : beta_b, stream);
  };
  switch (products) {
    case Products::tf32x3:
      call(run<float, true>);
      break;
    case Products::tf32:
      call(run<float, false>);
      break;
    case Products::bfloat16:
      call(run<bf16, false>);
      break;
    case Products::float16:
      call(run<half, false>);
      break;
  }
  if (!parts) return;
  sum_partials(dw, partials, int64_t{s.k} * 9 * s.c, splits, beta_w, stream);
  if (db) sum_partials(db, partials_b, s.k, splits, beta_b, stream);
}

}  // namespace pycap::gpu
