// Convolution forward: bias and ReLU, or bias, ReLU and 2x2 max-pooling, on the sums of
// conv2d_products.cuh.
#include "conv2d_products.cuh"

namespace pycap::gpu {
namespace conv {
namespace {

// A thread's two columns of eight fragments: b[first + 8j + {0, 1}], or zeros.
__device__ __forceinline__ void load_bias(float (&bias)[8][2], const float* b, int first, int k) {
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int channel = first + 8 * j + e;
      bias[j][e] = b != nullptr && channel < k ? b[channel] : 0.f;
    }
}

template <Products products, int columns>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(Element<products>* y, const Element<products>* x,
                   const Element<products>* filters, const float* b, Sizes sizes, bool relu,
                   int stages) {
  using Tile = conv::Tile<products, columns, false>;
  using T = typename Tile::T;
  PYCAP_DYNAMIC_SHARED(shared);
  const int tiles = (sizes.k + columns - 1) / columns;
  const int tile = blockIdx.x / tiles, first = blockIdx.x % tiles * columns;
  float sums[4][8][4];
  window_products<products, Tile>(sums, shared, x, filters, sizes, tile, first, stages);

  const Place<Tile> place;
  const int group = place.lane / 4, pair = place.lane % 4, start = first + place.across;
  float bias[8][2];
  load_bias(bias, b, start + 2 * pair, sizes.k);
  const Staged<T> staged(shared + Tile::kStaged);
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        float v[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          v[e] = sums[i][j][2 * lower + e] + bias[j][e];
          if (relu) v[e] = gpu::relu(v[e]);
        }
        staged.put(16 * i + 8 * lower + group, 8 * j + 2 * pair, v[0], v[1]);
      }
  __syncwarp();

  constexpr int kPieces = Staged<T>::kPieces;
  const int64_t pixel = int64_t{tile} * Tile::kPixels + place.down + place.lane / kPieces;
  const int piece = place.lane % kPieces, channel = start + piece * Tile::kPiece;
#pragma unroll
  for (int i = 0; i < 2 * kPieces; ++i) {
    const int row = i * (kWarp / kPieces);
    if (pixel + row < sizes.pixels() && channel < sizes.k)
      *reinterpret_cast<uint4*>(y + (pixel + row) * sizes.k + channel) =
          *reinterpret_cast<const uint4*>(staged.piece(row + place.lane / kPieces, piece));
  }
}

// A number, after ReLU, for comparisons: of numbers that are not negative the bits, as integers,
// have the same order, and NaN is above infinity. The sign's place goes to a bit below that says
// which of two rows: of equals the upper one is the larger.
__device__ __forceinline__ uint32_t ordered(float v, bool upper) {
  return bits<uint32_t>(relu(v)) << 1 | (upper ? 1u : 0u);
}

// Sums of a window's upper and lower pixel of one column are in one thread: of the left pixels in
// lane l < 16, of the right ones in lane l + 16. Of two channels l finishes the first, l + 16 the
// second.
template <Products products, int columns>
__global__ void __launch_bounds__(kThreads, 2)
    forward_pool_kernel(Element<products>* y, uint8_t* argmax, const Element<products>* x,
                        const Element<products>* filters, const float* b, Sizes sizes, int stages) {
  using Tile = conv::Tile<products, columns, true>;
  using T = typename Tile::T;
  constexpr int kWindows = kWarpTile / 4;  // of a warp
  PYCAP_DYNAMIC_SHARED(shared);
  const int tiles = (sizes.k + columns - 1) / columns;
  const int tile = blockIdx.x / tiles, first = blockIdx.x % tiles * columns;
  float sums[4][8][4];
  window_products<products, Tile>(sums, shared, x, filters, sizes, tile, first, stages);

  const Place<Tile> place;
  const int pair = place.lane % 4, right = place.lane / 16, start = first + place.across;
  float bias[8][2];
  load_bias(bias, b, start + 2 * pair, sizes.k);
  const Staged<T> staged(shared + Tile::kStaged);
  unsigned char* const winners = staged.piece(kWindows, 0);  // behind the values: [window][channel]
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      uint32_t best[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const uint32_t upper = ordered(sums[i][j][e] + bias[j][e], true);
        const uint32_t lower = ordered(sums[i][j][2 + e] + bias[j][e], false);
        best[e] = upper > lower ? upper : lower;
      }
      const uint32_t other = __shfl_xor_sync(kAllLanes, right ? best[0] : best[1], 16);
      const uint32_t at_left = right ? other : best[0], at_right = right ? best[1] : other;
      const bool from_right = at_right > at_left;  // of equals the left one wins
      const uint32_t winner = from_right ? at_right : at_left;
      const int window = 4 * i + place.lane / 4 % 4, channel = 8 * j + 2 * pair + right;
      staged.put(window, channel, bits<float>(winner >> 1));
      winners[window * kWarpTile + channel] = (winner & 1 ? 0 : 2) + (from_right ? 1 : 0);
    }
  __syncwarp();

  // Lane l knows where window l % 16 goes, -1 for one that is not there: lines of windows are one
  // longer than those of the pooled map where w is odd.
  const int wide = (sizes.w + 1) / 2, high = sizes.h / 2;
  const int64_t window =
      int64_t{tile} * (Tile::kPixels / 4) + place.down / 4 + place.lane % kWindows;
  const int64_t line = window / wide;
  const int column = static_cast<int>(window - line * wide);
  const bool there = line < int64_t{sizes.n} * high && column < sizes.w / 2;
  const int goes = there ? static_cast<int>(line * (sizes.w / 2) + column) : -1;
  constexpr int kPieces = Staged<T>::kPieces, kQuads = kWarpTile / 4;
  const int piece = place.lane % kPieces, channel = start + piece * Tile::kPiece;
#pragma unroll
  for (int i = 0; i < kWindows; i += kWarp / kPieces) {
    const int row = i + place.lane / kPieces;
    const int64_t at = __shfl_sync(kAllLanes, goes, row);
    if (at >= 0 && channel < sizes.k)
      *reinterpret_cast<uint4*>(y + at * sizes.k + channel) =
          *reinterpret_cast<const uint4*>(staged.piece(row, piece));
  }
  const int quads = sizes.k / 4, quad = place.lane % kQuads;
#pragma unroll
  for (int i = 0; i < kWindows; i += kWarp / kQuads) {
    const int row = i + place.lane / kQuads;
    const int64_t at = __shfl_sync(kAllLanes, goes, row);
    const uint32_t four = *reinterpret_cast<const uint32_t*>(winners + row * kWarpTile + 4 * quad);
    if (at >= 0 && start / 4 + quad < quads)
      argmax[at * quads + start / 4 + quad] =
          static_cast<uint8_t>(four | four >> 6 | four >> 12 | four >> 18);
  }
}

}  // namespace
}  // namespace conv

void conv2d_forward(void* y, const void* x, const void* filters, const float* b, int n, int h,
                    int w, int c, int k, bool relu, Products products, cudaStream_t stream) {
  const conv::Sizes sizes{n, h, w, c, k};
  conv::check("conv2d_forward", sizes, products);
  if (n == 0) return;
  conv::dispatch(products, conv::columns_for(k), [&](auto p, auto columns) {
    using Tile = conv::Tile<p, columns, false>;
    using T = typename Tile::T;
    const int stages = conv::stages_for<Tile>();
    const unsigned grid = blocks_for(sizes.pixels(), Tile::kPixels) * blocks_for(k, Tile::kColumns);
    launch("conv2d_forward", conv::forward_kernel<p, columns>,
           {grid, conv::kThreads, Tile::shared(stages), stream}, static_cast<T*>(y),
           static_cast<const T*>(x), static_cast<const T*>(filters), b, sizes, relu, stages);
  });
}

void conv2d_forward_pool(void* y, uint8_t* argmax, const void* x, const void* filters,
                         const float* b, int n, int h, int w, int c, int k, Products products,
                         cudaStream_t stream) {
  const conv::Sizes sizes{n, h, w, c, k};
  conv::check("conv2d_forward_pool", sizes, products);
  const int64_t windows = int64_t{n} * (h / 2) * ((w + 1) / 2);
  if (windows == 0) return;
  conv::dispatch(products, conv::columns_for(k), [&](auto p, auto columns) {
    using Tile = conv::Tile<p, columns, true>;
    using T = typename Tile::T;
    const int stages = conv::stages_for<Tile>();
    const unsigned grid = blocks_for(windows, Tile::kPixels / 4) * blocks_for(k, Tile::kColumns);
    launch("conv2d_forward_pool", conv::forward_pool_kernel<p, columns>,
           {grid, conv::kThreads, Tile::shared(stages), stream}, static_cast<T*>(y), argmax,
           static_cast<const T*>(x), static_cast<const T*>(filters), b, sizes, stages);
  });
}

}  // namespace pycap::gpu
