// The first convolution from bytes, forward, on tensor cores: bound by writing the output, which
// leaves in 16-byte pieces, whole lines of 128 bytes a pixel (docs/math/conv2d.md).
//
// Rows of a product are pixels, columns filters, and a window's 27 numbers the summed index. Blocks
// stay, keep their filters in registers and take tile after tile; the bytes of the next one are
// under way while this one is multiplied.
#include <algorithm>

#include "conv2d_first.cuh"

namespace pycap::gpu {
namespace {

using namespace first;

constexpr int kThreads = 256;  // eight warps, a row of the tile each
static_assert(kThreads == kRows * kWarp);

// How windows lie in shared memory: rows of numbers, (column, colour). A row of a window is nine
// numbers in a line, so 16-bit ones are read in pairs, the tenth with a weight of 0; and since a
// window of an odd column begins amid a word, there are two copies, one a number further.
template <class T>
struct Rows {
  static constexpr bool kPairs = sizeof(T) == 2;
  static constexpr int kCopies = kPairs ? 2 : 1;
  static constexpr int kWordsOfWindow = kPairs ? 5 : 9;  // of one of its three rows
  // Words of a row: room for all numbers, and, modulo the 32 banks, where the row before left off.
  static constexpr int kPitch = kPairs ? 64 + 5 : 128 + 9;
  static constexpr int kCopy = (kRows + 2) * kPitch;
  static constexpr int kWords = kCopies * kCopy;
  static constexpr int kEight = 24 * sizeof(T) / 4;  // words from a column to the eighth after it
  static_assert(kPitch * 4 >= (Pixels<kThreads>::kNumbers + 1) * static_cast<int>(sizeof(T)));
};

// One word of the summed index: `at` 0..15 pairs of 16-bit numbers, or 0..31 numbers.
template <class T>
__device__ __forceinline__ int word_of_window(int at) {
  using R = Rows<T>;
  const int known = min(at, 3 * R::kWordsOfWindow - 1);  // past the last: any number will do
  return known / R::kWordsOfWindow * R::kPitch + known % R::kWordsOfWindow;
}

template <class T>
__device__ __forceinline__ uint32_t word_of_filter(const float* w, int at) {
  using R = Rows<T>;
  const int row = at / R::kWordsOfWindow, word = at % R::kWordsOfWindow;
  if constexpr (R::kPairs)
    return row > 2 ? 0
                   : pack<T>(w[row * 9 + word * 2], word < 4 ? w[row * 9 + word * 2 + 1] : 0.0f);
  else
    return row > 2 ? 0 : bits<uint32_t>(w[row * 9 + word]);
}

template <class T, bool three>
__global__ void __launch_bounds__(kThreads, three ? 1 : 2)
    forward_kernel(T* y,  // [n,p,q,k]
                   Bytes images,
                   const float* w,  // [k,27]
                   const float* b,  // [k] or null
                   FirstLayer s, int with_relu) {
  using R = Rows<T>;
  constexpr int kSteps = sizeof(T);              // of 16 (float32: 8) numbers of the summed index
  constexpr int kFragments = kFilters<T> / 8;    // columns of eight filters
  constexpr int kJoined = kChunk<T> / 2;         // fragments that a 16-byte piece comes from
  constexpr int kPieces = kFragments / kJoined;  // of a pixel, in a thread
  PYCAP_SHARED(uint32_t, windows, [2][R::kWords]);
  PYCAP_SHARED(float, bias, [kFilters<T>]);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int group = lane / 4, pair = lane % 4, first_filter = blockIdx.y * kFilters<T>;

  // Which filter a fragment's column stands for is ours to say: so that the sums that a thread gets
  // of kJoined fragments, two columns of each, are neighbours in y.
  const auto filter_at = [&](int fragment, int column) {
    return first_filter + fragment / kJoined * 4 * kChunk<T> + column / 2 * kChunk<T> +
           fragment % kJoined * 2 + column % 2;
  };
  uint32_t filters[kSteps][kFragments][2];
#pragma unroll
  for (int f = 0; f < kFragments; ++f) {
    const int filter = filter_at(f, group);
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        filters[step][f][i] =
            filter < s.k ? word_of_filter<T>(w + int64_t{filter} * 27, step * 8 + i * 4 + pair) : 0;
  }
  for (int i = threadIdx.x; i < kFilters<T>; i += kThreads)
    bias[i] = b && first_filter + i < s.k ? b[first_filter + i] : 0.0f;
  int word[kSteps][2];
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int copy = R::kPairs ? group % 2 : 0;
      word[step][i] = copy * R::kCopy + warp * R::kPitch +
                      (R::kPairs ? (3 * group + copy) / 2 : 3 * group) +
                      word_of_window<T>(step * 8 + i * 4 + pair);
    }

  Pixels<kThreads> pixels;
  const int tiles = count_tiles(s), blocks = gridDim.x;
  Tile next = tile_at(blockIdx.x, s);
  pixels.fetch(images, next, s);
  int buffer = 0;
  for (int number = blockIdx.x; number < tiles; number += blocks, buffer ^= 1) {
    const Tile tile = next;
    pixels.store(images, [&](int row, int column, int colour, float value) {
      T* const numbers = reinterpret_cast<T*>(windows[buffer] + row * R::kPitch);
      const T rounded = from_float<T>(value);
      numbers[column * 3 + colour] = rounded;
      if constexpr (R::kPairs) numbers[R::kCopy * 2 + column * 3 + colour + 1] = rounded;
    });
    __syncthreads();  // and nobody reads the other buffer any more, which is written next
    if (number + blocks < tiles) {
      next = tile_at(number + blocks, s);
      pixels.fetch(images, next, s);
    }
    if (tile.row + warp >= s.p) continue;
    const int64_t line = (int64_t{tile.image} * s.p + tile.row + warp) * s.q;
#pragma unroll 1
    for (int m = 0; m < kColumns / 16; ++m) {
      float sums[kFragments][4];
#pragma unroll
      for (int f = 0; f < kFragments; ++f)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums[f][i] = bias[filter_at(f, pair * 2 + i % 2) - first_filter];
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[i] = windows[buffer][word[step][i / 2] + (2 * m + i % 2) * R::kEight];
#pragma unroll
        for (int f = 0; f < kFragments; ++f) multiply<T, three>(sums[f], a, filters[step][f]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = tile.column + m * 16 + half * 8 + group;
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
          const int filter = filter_at(piece * kJoined, pair * 2);
          if (column >= s.q || filter >= s.k) continue;
          uint32_t out[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            constexpr int kOf = sizeof(T) == 2 ? 2 : 1;  // numbers in a word
            float value[kOf];
#pragma unroll
            for (int j = 0; j < kOf; ++j) {
              const int at = i * kOf + j;
              const float sum = sums[piece * kJoined + at / 2][half * 2 + at % 2];
              value[j] = with_relu ? relu(sum) : sum;
            }
            if constexpr (kOf == 2)
              out[i] = pack<T>(value[0], value[1]);
            else
              out[i] = bits<uint32_t>(value[0]);
          }
          *reinterpret_cast<uint4*>(y + (line + column) * s.k + filter) =
              make_uint4(out[0], out[1], out[2], out[3]);
        }
      }
    }
  }
}

template <class T, bool three>
void run(void* y, const Bytes& images, const float* w, const float* b, const FirstLayer& s,
         bool relu, cudaStream_t stream) {
  const auto kernel = forward_kernel<T, three>;
  const int64_t tiles = count_tiles(s);
  if (!tiles) return;
  const int64_t resident = int64_t{multiprocessors()} * resident_blocks(kernel, kThreads, 0);
  const dim3 grid(static_cast<unsigned>(std::min(tiles, resident)), blocks_for(s.k, kFilters<T>));
  launch("conv2d_first_forward", kernel, {grid, kThreads, 0, stream}, static_cast<T*>(y), images, w,
         b, s, static_cast<int>(relu));
}

}  // namespace

void conv2d_first_forward(void* y, const Bytes& images, const float* w, const float* b,
                          Products products, const FirstLayer& s, bool relu, cudaStream_t stream) {
  check("conv2d_first_forward", products, s);
  switch (products) {
    case Products::tf32x3:
      run<float, true>(y, images, w, b, s, relu, stream);
      break;
    case Products::tf32:
      run<float, false>(y, images, w, b, s, relu, stream);
      break;
    case Products::bfloat16:
      run<bf16, false>(y, images, w, b, s, relu, stream);
      break;
    case Products::float16:
      run<half, false>(y, images, w, b, s, relu, stream);
      break;
  }
}

}  // namespace pycap::gpu
