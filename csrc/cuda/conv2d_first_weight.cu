// The first convolution's gradients, of filters and biases, from bytes: bound by reading dy, and y
// where it masks (docs/math/conv2d.md).
//
// Rows of a product are a window's 27 numbers, columns filters, and pixels the summed index. dy
// goes from global memory to the registers that hold it as an operand, without a stop in shared
// memory: a thread loads 16 bytes of each of four pixels, eight filters (float32: four), and which
// filter a product's column stands for is ours to say.
#include <algorithm>

#include "conv2d_first.cuh"
#include "partial_sums.h"

namespace pycap::gpu {
namespace {

using namespace first;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kPixels = 16;  // of a step
constexpr int kStepsOfRow = kColumns / kPixels;
constexpr int kSteps = kRows * kStepsOfRow / kWarps;  // of a warp, in a tile

// How windows lie in shared memory: (row, colour, column), so that neighbouring pixels, which a
// product sums over, are neighbours. 16-bit numbers are read in pairs of pixels; for the middle
// column of windows, whose pairs begin amid a word, there is a second copy, one number further.
template <class T>
struct Planes {
  static constexpr bool kPairs = sizeof(T) == 2;
  static constexpr int kPitch = kPairs ? 20 : 37;  // words of a row of one colour
  static constexpr int kRow = 3 * kPitch;
  static constexpr int kCopy = (kRows + 2) * kRow;
  static constexpr int kWords = (kPairs ? 2 : 1) * kCopy;
  static constexpr int kPixelWords = kPairs ? kPixels / 2 : kPixels;
};

// The word of number `at` of the window of a tile's first pixel.
template <class T>
__device__ __forceinline__ int word_of_window(int at) {
  using P = Planes<T>;
  const int known = min(at, 26);  // rows 27 to 31 of the product are not looked at
  const int r = known / 9, s = known / 3 % 3, colour = known % 3;
  const int line = r * P::kRow + colour * P::kPitch;
  if constexpr (P::kPairs) return line + (s == 1 ? P::kCopy : 0) + (s + 1) / 2;
  return line + s;
}

// A thread's part of a step of dy: the filters of its chunk, of four pixels; and the same of y.
struct Gradient {
  uint4 dy[4], y[4];
};

// Which pixel of a step a thread's i-th is: as the operand of a product wants them.
template <class T>
__device__ __forceinline__ int pixel_of(int pair, int i) {
  return sizeof(T) == 2 ? pair * 2 + i % 2 + i / 2 * 8 : pair + i * 4;
}

__device__ __forceinline__ uint32_t& word(uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// dy where y > 0, else 0: one word of each.
template <class T>
__device__ __forceinline__ uint32_t masked(uint32_t dy, uint32_t y) {
  if constexpr (sizeof(T) == 2) {
    const bool low = to_float(bits<T>(static_cast<uint16_t>(y))) > 0;
    const bool high = to_float(bits<T>(static_cast<uint16_t>(y >> 16))) > 0;
    return (low ? dy & 0xffff : 0) | (high ? dy & 0xffff0000 : 0);
  } else {
    return bits<float>(y) > 0 ? dy : 0;
  }
}

template <class T, bool three>
__global__ void __launch_bounds__(kThreads, 3)
    weight_kernel(float* partials,    // [splits,k,27]
                  float* partials_b,  // [splits,k] or null
                  const T* dy,        // [n,p,q,k]
                  const T* y,         // [n,p,q,k] or null
                  Bytes images, FirstLayer s) {
  using P = Planes<T>;
  constexpr int kFragments = kFilters<T> / 8;
  constexpr int kHalves = sizeof(T) / 2;  // products over a step's pixels: of 16, or twice of 8
  // Row 27 of the products is ours to fill: with ones, in 16 bits, for the sums of dy. Products in
  // TensorFloat-32 would round dy, so in float32 it is added up beside them.
  constexpr bool kOnes = sizeof(T) == 2;
  PYCAP_SHARED(uint32_t, windows, [2][P::kWords]);
  PYCAP_SHARED(float, totals, [28][kFilters<T> + 1]);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int group = lane / 4, pair = lane % 4, first_filter = blockIdx.y * kFilters<T>;
  const int chunk = first_filter + group * kChunk<T>;  // column `group` of fragment f: chunk + f
  const int tiles = count_tiles(s), split = blockIdx.x, splits = gridDim.x;

  int at[2][2];  // of a product's rows group and group + 8, and those 16 further
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) at[m][i] = word_of_window<T>(m * 16 + i * 8 + group) + pair;

  const auto fetch = [&](Gradient& g, const Tile& tile, int step) {
    const int mine = warp * kSteps + step;
    const int row = tile.row + mine / kStepsOfRow;
    const int column = tile.column + mine % kStepsOfRow * kPixels;
    const int64_t line = (int64_t{tile.image} * s.p + row) * s.q;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int pixel = column + pixel_of<T>(pair, i);
      const bool inside = row < s.p && pixel < s.q && chunk < s.k;
      const int64_t from = (line + pixel) * s.k + chunk;
      g.dy[i] = inside ? *reinterpret_cast<const uint4*>(dy + from) : make_uint4(0, 0, 0, 0);
      if (y) g.y[i] = inside ? *reinterpret_cast<const uint4*>(y + from) : make_uint4(0, 0, 0, 0);
    }
  };

  float sums[2][kFragments][4] = {}, sums_b[kOnes ? 1 : kChunk<T>] = {};
  Pixels<kThreads> pixels;
  Gradient coming{};
  Tile next{};
  if (split < tiles) {
    next = tile_at(split, s);
    pixels.fetch(images, next, s);
    fetch(coming, next, 0);
  }
  int buffer = 0;
  for (int number = split; number < tiles; number += splits, buffer ^= 1) {
    pixels.store(images, [&](int row, int column, int colour, float value) {
      T* const line = reinterpret_cast<T*>(windows[buffer] + row * P::kRow + colour * P::kPitch);
      const T rounded = from_float<T>(value);
      line[column] = rounded;
      if constexpr (P::kPairs) line[P::kCopy * 2 + column + 1] = rounded;
    });
    __syncthreads();  // and nobody reads the other buffer any more, which is written next
    const bool more = number + splits < tiles;
    const Tile tile = next;
    if (more) {
      next = tile_at(number + splits, s);
      pixels.fetch(images, next, s);
    }
#pragma unroll 1
    for (int step = 0; step < kSteps; ++step) {
      uint32_t dz[4][4];  // of each pixel
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t value = word(coming.dy[i], j);
          dz[i][j] = y ? masked<T>(value, word(coming.y[i], j)) : value;
        }
      const bool last = step + 1 == kSteps;
      if (!last || more) fetch(coming, last ? next : tile, last ? 0 : step + 1);

      uint32_t b[kHalves][kFragments][2];
#pragma unroll
      for (int f = 0; f < kFragments; ++f)
#pragma unroll
        for (int i = 0; i < 2 * kHalves; ++i) {
          if constexpr (sizeof(T) == 2) {
            const uint32_t first = dz[2 * i][f / 2], second = dz[2 * i + 1][f / 2];
            b[0][f][i] =
                f % 2 ? first >> 16 | (second & 0xffff0000) : (first & 0xffff) | second << 16;
          } else {
            b[i / 2][f][i % 2] = dz[i][f];
            sums_b[f] += bits<float>(dz[i][f]);
          }
        }
      const int mine = warp * kSteps + step;
      const uint32_t* here =
          windows[buffer] + mine / kStepsOfRow * P::kRow + mine % kStepsOfRow * P::kPixelWords;
#pragma unroll
      for (int half = 0; half < kHalves; ++half)
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          uint32_t a[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            a[i] = here[at[m][i % 2] + i / 2 * 4 + half * 8];
            if constexpr (kOnes)
              if (m * 16 + i % 2 * 8 + group == 27) a[i] = pack<T>(1, 1);
          }
#pragma unroll
          for (int f = 0; f < kFragments; ++f) multiply<T, three>(sums[m][f], a, b[half][f]);
        }
    }
  }

  if constexpr (!kOnes) {
#pragma unroll
    for (int f = 0; f < kChunk<T>; ++f) {
      sums_b[f] += __shfl_xor_sync(kAllLanes, sums_b[f], 1);
      sums_b[f] += __shfl_xor_sync(kAllLanes, sums_b[f], 2);
    }
  }
  for (int turn = 0; turn < kWarps; ++turn) {  // one warp's sums after the other's
    const auto add = [&](float& total, float sum) { total = sum + (turn ? total : 0.0f); };
    if (warp == turn) {
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int row = m * 16 + i / 2 * 8 + group;
            if (row < 27 + kOnes)
              add(totals[row][(pair * 2 + i % 2) * kChunk<T> + f], sums[m][f][i]);
          }
        if constexpr (!kOnes)
          if (pair == 0) add(totals[27][group * kChunk<T> + f], sums_b[f]);
      }
    }
    __syncthreads();
  }
  partials += (int64_t{split} * s.k + first_filter) * 27;
  const int filters = min(kFilters<T>, s.k - first_filter);
  for (int i = threadIdx.x; i < filters * 27; i += kThreads) partials[i] = totals[i % 27][i / 27];
  if (partials_b)
    for (int i = threadIdx.x; i < filters; i += kThreads)
      partials_b[int64_t{split} * s.k + first_filter + i] = totals[27][i];
}

template <class T, bool three>
struct Weight {
  static int splits(const FirstLayer& s) {
    const int64_t resident =
        int64_t{multiprocessors()} * resident_blocks(weight_kernel<T, three>, kThreads, 0);
    const int64_t most = std::max<int64_t>(resident / blocks_for(s.k, kFilters<T>), 1);
    return static_cast<int>(std::max<int64_t>(std::min<int64_t>(count_tiles(s), most), 1));
  }

  static void run(float* partials, float* partials_b, const void* dy, const void* y,
                  const Bytes& images, const FirstLayer& s, int splits, cudaStream_t stream) {
    const dim3 grid(splits, blocks_for(s.k, kFilters<T>));
    launch("conv2d_first_weight", weight_kernel<T, three>, {grid, kThreads, 0, stream}, partials,
           partials_b, static_cast<const T*>(dy), static_cast<const T*>(y), images, s);
  }
};

// Calls body(Weight<T, three>{}) for what `products` names.
template <class Body>
auto choose(Products products, const Body& body) {
  switch (products) {
    case Products::tf32x3:
      return body(Weight<float, true>{});
    case Products::tf32:
      return body(Weight<float, false>{});
    case Products::bfloat16:
      return body(Weight<bf16, false>{});
    default:
      return body(Weight<half, false>{});
  }
}

}  // namespace

int conv2d_first_splits(Products products, const FirstLayer& s) {
  return choose(products, [&](auto weight) { return weight.splits(s); });
}

void conv2d_first_weight(float* dw, float* db, float* partials, float* partials_b, const void* dy,
                         const void* y, const Bytes& images, Products products, const FirstLayer& s,
                         int splits, float beta_w, float beta_b, cudaStream_t stream) {
  check("conv2d_first_weight", products, s);
  if (splits < 1)
    throw std::invalid_argument("conv2d_first_weight: " + std::to_string(splits) +
                                " splits; ask conv2d_first_splits");
  choose(products, [&](auto weight) {
    weight.run(partials, db ? partials_b : nullptr, dy, y, images, s, splits, stream);
  });
  sum_partials(dw, partials, int64_t{s.k} * 27, splits, beta_w, stream);
  if (db) sum_partials(db, partials_b, s.k, splits, beta_b, stream);
}

}  // namespace pycap::gpu
