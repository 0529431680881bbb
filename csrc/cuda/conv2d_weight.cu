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

#include "conv2d_weight.h"
#include "launch.h"
#include "partial_sums.h"
#include "tensor_cores.h"

namespace pycap::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 64;     // filters of a block, and channels
constexpr int kSlots = 4;     // pairs of rows in shared memory: one before, one at work, two coming
constexpr int kAhead = 2;     // pairs of rows under way
constexpr int kFilters = 32;  // of a warp
constexpr int kChannels = 16;

// What a slot holds: rows 2t and 2t+1 of x, with a column more on each side, and rows 2t+1 and 2t+2
// of dz; those before it, 2t-1 and 2t, came with the slot before. A pixel's 64 channels are
// `kPixel` bytes, whose 16-byte chunks are permuted by the column so that eight (16 bits) or four
// (float32) neighbouring columns lie in different banks.
template <class T>
struct Slot {
  static constexpr int kColumns = 64 / sizeof(T);
  static constexpr int kPixel = kTile * sizeof(T);
  static constexpr int kChunk = 16 / sizeof(T);  // numbers in a chunk
  static constexpr int kChunks = kTile / kChunk;
  static constexpr int kRow = kColumns * kPixel;         // bytes of a row of dz
  static constexpr int kRowX = (kColumns + 2) * kPixel;  // bytes of a row of x
  static constexpr int kBytes = 2 * kRowX + 2 * kRow;    // x, then dz
  static_assert(kThreads == kChunks * kColumns);

  static __device__ __forceinline__ int place(int column, int chunk) {
    const int mask = sizeof(T) == 2 ? column & 7 : (column & 3) * 2;
    return column * kPixel + (chunk ^ mask) * 16;
  }
};

// Where in the pixels a block is: `left` pairs of rows to go, the next being `pair` of `strip`.
// Before the first pair of a strip come the rows of dz above it (`fresh`), as a step of their own.
struct Walk {
  int left, strip, pair;
  bool fresh = true;

  __device__ Walk(int64_t first, int64_t last, int pairs)
      : left(static_cast<int>(last - first)),
        strip(static_cast<int>(first / pairs)),
        pair(static_cast<int>(first % pairs)) {}

  __device__ __forceinline__ void advance(int pairs) {
    if (fresh) {
      fresh = false;
      return;
    }
    --left;
    if (++pair == pairs) {
      pair = 0;
      ++strip;
      fresh = true;
    }
  }
};

// A thread's part in filling slots: one chunk of one column, both rows of x and dz; some threads
// also one of the two columns more that x has.
template <class T>
struct Loader {
  using S = Slot<T>;
  const T *x, *dz;
  Conv3x3 s;
  int column, chunk, first_filter, first_channel;
  int64_t at_x = -1, at_edge = -1, at_dz = -1;  // of row 0, in numbers; -1: there is nothing

  __device__ __forceinline__ int64_t locate(int position, int channel, int channels) const {
    const int image = position / (s.width + 1), v = position % (s.width + 1);
    if (position < 0 || image >= s.n || v == s.width || channel >= channels) return -1;
    return (int64_t{image} * s.h * s.width + v) * channels + channel;
  }

  __device__ __forceinline__ void enter(int strip) {
    const int position = strip * S::kColumns + column, channel = first_channel + chunk * S::kChunk;
    at_dz = locate(position, first_filter + chunk * S::kChunk, s.k);
    at_x = locate(position - 1, channel, s.c);
    at_edge = locate((strip + 1) * S::kColumns - 1 + column % 2, channel, s.c);
  }

  static __device__ __forceinline__ void copy(unsigned char* shared, const T* data, int64_t at,
                                              int row, int rows, int64_t pitch) {
    const bool inside = at >= 0 && row >= 0 && row < rows;
    copy_async_16(shared, inside ? data + at + row * pitch : data, inside);
  }

  __device__ __forceinline__ void load(unsigned char* slot, const Walk& walk) const {
    const int pair = walk.fresh ? walk.pair - 1 : walk.pair;
    const int64_t pitch_x = int64_t{s.width} * s.c, pitch_dz = int64_t{s.width} * s.k;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      copy(slot + 2 * S::kRowX + i * S::kRow + S::place(column, chunk), dz, at_dz, 2 * pair + 1 + i,
           s.h, pitch_dz);
    if (walk.fresh) return;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      copy(slot + i * S::kRowX + S::place(column, chunk), x, at_x, 2 * pair + i, s.h, pitch_x);
    if (column < 4)
      copy(slot + column / 2 * S::kRowX + S::place(S::kColumns + column % 2, chunk), x, at_edge,
           2 * pair + column / 2, s.h, pitch_x);
  }
};

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
// that a half of each fragment serves three vertical taps.
template <class T>
struct Multiply16 {
  using S = Slot<T>;
  int at_dz, at_x[3];  // this lane's addresses for ldmatrix

  __device__ Multiply16(int filter, int channel) {
    const int lane = threadIdx.x % kWarp, column = lane % 8, matrix = lane / 8;
    at_dz = 2 * S::kRowX + S::place(column, filter / 8 + matrix);
#pragma unroll
    for (int s = 0; s < 3; ++s)
      at_x[s] = matrix % 2 * S::kRowX + S::place(column + s, channel / 8 + matrix / 2);
  }

  static __device__ __forceinline__ float both(uint32_t x) {
    return to_float(bits<T>(static_cast<uint16_t>(x & 0xffff))) +
           to_float(bits<T>(static_cast<uint16_t>(x >> 16)));
  }

  __device__ __forceinline__ void operator()(Sums& sums, const unsigned char* before,
                                             const unsigned char* now, bool with_dz) const {
#pragma unroll
    for (int g = 0; g < S::kColumns / 8; ++g) {
      const int along = g * 8 * S::kPixel;
      uint32_t dz[4][4];  // four rows; 8 filters a word
#pragma unroll
      for (int i = 0; i < 4; ++i)
        ldmatrix_x4_transposed(dz[i], (i < 2 ? before : now) + at_dz + i % 2 * S::kRow + along);
      if (with_dz)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums.dz[i] += both(dz[1][i]) + both(dz[2][i]);
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
              const uint32_t a[4] = {dz[2 - r][2 * m], dz[2 - r][2 * m + 1], dz[3 - r][2 * m],
                                     dz[3 - r][2 * m + 1]};
              const uint32_t b[2] = {x[2 * n], x[2 * n + 1]};
              mma_16816<T>(sums.d[r][s][m][n], a, b);
            }
      }
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
                                             const unsigned char* now, bool with_dz) const {
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
            if (r == 1 && with_dz) sums.dz[2 * m + j % 2] += value;
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
};

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
      if (loading.fresh) loader.enter(loading.strip);
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
    __syncthreads();  // all of this slot is there, and nobody reads the one before the last any
                      // more
    load(slot + kAhead);
    if (!walk.fresh)
      multiply(sums, slots + (slot + kSlots - 1) % kSlots * S::kBytes,
               slots + slot % kSlots * S::kBytes, with_dz);
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

int element_size(Products products) {
  return products == Products::bfloat16 || products == Products::float16 ? 2 : 4;
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
  // A multiprocessor holds one block. A wave of blocks takes as long as one block's steps, and as
  // many more as it takes to fill the pipeline and to write the sums down.
  constexpr int64_t kOverhead = 4;
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
