// Windows of pixels times 3x3 filters: the sums of one tile in registers, which forward and data
// gradient share.
//
// A block of four warps makes 128 pixels x 128 channels or 256 x 64, each warp 64 x 64 of them. The
// sum runs over blocks of 128 bytes of channels, within them over rows of taps, and within those
// over the three taps. Pixels of a tile are neighbours in memory, so what the three taps of a row
// read is one slab of them, two longer than the tile: it is copied once, and a tap reads its rows
// one further. Where a window sticks out over the image's left or right edge, a lane reads zeros in
// place of the slab's row; rows of the slab above or below the image are zeros themselves.
//
// Both operands lie in shared memory in rows of 128 bytes, whose 16-byte pieces are permuted by
// (row mod 8), so that any eight successive rows can be read at one piece without bank conflicts.
#pragma once
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "conv2d.h"
#include "launch.h"
#include "tensor_cores.h"

namespace pycap::gpu::conv {

constexpr int kThreads = 128;
constexpr int kWarpTile = 64;   // a warp's pixels, and its channels
constexpr int kRowBytes = 128;  // of both operands in shared memory
constexpr int kTileSums = kThreads / kWarp * kWarpTile * kWarpTile;
constexpr int kTaps = 9;

template <Products products>
using Element = std::conditional_t<products == Products::bfloat16, bf16,
                                   std::conditional_t<products == Products::float16, half, float>>;

// c: channels summed over; k: channels made.
struct Sizes {
  int n, h, w, c, k;

  __host__ __device__ int pixels() const { return n * h * w; }
};

// A tile and its shared memory, in bytes: slab rows, zeros, two slabs, and `stages` taps' filters.
template <Products products, int columns, bool pooled>
struct Tile {
  using T = Element<products>;
  static constexpr int kColumns = columns;
  static constexpr int kPixels = kTileSums / columns;
  static constexpr int kWarpsDown = kPixels / kWarpTile;
  static constexpr int kPiece = 16 / sizeof(T);         // numbers in 16 bytes
  static constexpr int kDepth = kRowBytes / sizeof(T);  // channels summed in one step

  // Pooled, the slab is two: of the windows' upper pixels and of the lower ones.
  static constexpr int kParts = pooled ? 2 : 1;
  static constexpr int kPart = kPixels / kParts + 2;
  static constexpr int kSlab = kParts * kPart;
  static constexpr int kPlaced = kPixels / kParts;  // positions of the map that a tile advances

  static constexpr int kZeros = (kSlab * 8 + kRowBytes - 1) / kRowBytes * kRowBytes;
  static constexpr int kSlabs = kZeros + kRowBytes;
  static constexpr int kSlabBytes = kSlab * kRowBytes;
  static constexpr int kFilters = kSlabs + 2 * kSlabBytes;
  static constexpr int kFilterBytes = columns * kRowBytes;
  static constexpr int kStaged = kSlabs;  // the results on their way out take the operands' place

  static_assert(2 * (kSlabBytes + kFilterBytes) >= kTileSums * sizeof(float));

  static constexpr size_t shared(int stages) { return kFilters + stages * kFilterBytes; }
};

// A row of the slab. pixel: its number in x. inside: bit r: whether tap row r reads a pixel that is
// there, for an output at this place; kLeft, kRight: whether it is the first, the last of its line.
struct SlabRow {
  int pixel, inside;
};
constexpr int kLeft = 8, kRight = 16;

// Positions are pixels or, pooled, pixels of lines of 2x2 windows, an odd line made longer by one.
template <class Tile>
__device__ __forceinline__ SlabRow slab_row(const Sizes& sizes, int tile, int row) {
  constexpr bool pooled = Tile::kParts == 2;
  const int part = row / Tile::kPart;
  const int width = pooled ? (sizes.w + 1) / 2 * 2 : sizes.w;
  const int height = pooled ? sizes.h / 2 : sizes.h;
  const int position = tile * Tile::kPlaced + row % Tile::kPart - 1;  // never beyond 32 bits
  if (position < 0 || position >= sizes.n * height * width) return {0, 0};
  const int line = position / width, column = position - line * width;
  const int y = pooled ? line % height * 2 + part : line % height;
  const int edges = (column == 0 ? kLeft : 0) | (column == width - 1 ? kRight : 0);
  if (column >= sizes.w) return {0, edges};
  return {(line / height * sizes.h + y) * sizes.w + column,
          edges | (y > 0 ? 1 : 0) | 2 | (y < sizes.h - 1 ? 4 : 0)};
}

// sums += a b over 32 bytes of channels: a: four fragments of 16 pixels, b: eight of 8 channels.
template <Products products>
__device__ __forceinline__ void multiply(float (&sums)[4][8][4], const uint32_t (&a)[4][4],
                                         const uint32_t (&b)[8][2]) {
  if constexpr (products == Products::tf32x3) {
    uint32_t high[8][2], low[8][2];
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) split_tf32(bits<float>(b[j][e]), high[j][e], low[j][e]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t a_high[4], a_low[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) split_tf32(bits<float>(a[i][e]), a_high[e], a_low[e]);
#pragma unroll
      for (int j = 0; j < 8; ++j) mma_1688_tf32(sums[i][j], a_low, high[j]);
#pragma unroll
      for (int j = 0; j < 8; ++j) mma_1688_tf32(sums[i][j], a_high, low[j]);
#pragma unroll
      for (int j = 0; j < 8; ++j) mma_1688_tf32(sums[i][j], a_high, high[j]);
    }
  } else if constexpr (products == Products::tf32) {
    uint32_t rounded[8][2];
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) rounded[j][e] = tf32(bits<float>(b[j][e]));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t a_rounded[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) a_rounded[e] = tf32(bits<float>(a[i][e]));
#pragma unroll
      for (int j = 0; j < 8; ++j) mma_1688_tf32(sums[i][j], a_rounded, rounded[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) mma_16816<Element<products>>(sums[i][j], a[i], b[j]);
  }
}

// Where a thread stands in its block's tile.
template <class Tile>
struct Place {
  int lane = threadIdx.x % kWarp;
  int down = threadIdx.x / kWarp % Tile::kWarpsDown * kWarpTile;    // its warp's first pixel
  int across = threadIdx.x / kWarp / Tile::kWarpsDown * kWarpTile;  // its warp's first channel
};

// The sums of tile `tile`'s pixels by channels from `first` on: sums[i][j] is a fragment (see
// tensor_cores.h) of the warp's pixels 16i.. by channels 8j... Pooled, bits 2 and 3 of a pixel's
// number say which of its 2x2 window it is. Afterwards shared memory is free, from kStaged on and
// before.
template <Products products, class Tile, class T = typename Tile::T>
__device__ __forceinline__ void window_products(float (&sums)[4][8][4], unsigned char* shared,
                                                const T* x, const T* filters, const Sizes& sizes,
                                                int tile, int first, int stages) {
  constexpr int kRowsAtOnce = kThreads / 8;  // eight threads copy a row
  const int thread = threadIdx.x;
  const Place<Tile> place;
  SlabRow* rows = reinterpret_cast<SlabRow*>(shared);
#pragma unroll 1
  for (int row = thread; row < Tile::kSlab; row += kThreads)
    rows[row] = slab_row<Tile>(sizes, tile, row);
  if (thread < 8)
    *reinterpret_cast<uint4*>(shared + Tile::kZeros + thread * 16) = make_uint4(0, 0, 0, 0);
  __syncthreads();

  // A thread's rows differ by multiples of eight, so its place in each row is the same.
  const int piece = thread % 8, top = thread / 8;
  unsigned char* const target = shared + top * kRowBytes + (piece ^ top % 8) * 16;
  const auto copy_slab = [&](int number) {
    constexpr int kCopies = (Tile::kSlab + kRowsAtOnce - 1) / kRowsAtOnce;
    const int r = number % 3, channel = number / 3 * Tile::kDepth + piece * Tile::kPiece;
    const auto there = [&](int i) {
      return (i + 1) * kRowsAtOnce <= Tile::kSlab || top + i * kRowsAtOnce < Tile::kSlab;
    };
    SlabRow from[kCopies];  // all at once: each takes its time
#pragma unroll
    for (int i = 0; i < kCopies; ++i)
      if (there(i)) from[i] = rows[top + i * kRowsAtOnce];
    // In bytes, so that an address is one multiplication and addition.
    const int64_t start = (int64_t{r - 1} * sizes.w * sizes.c + channel) * int{sizeof(T)};
    const char* const shifted = reinterpret_cast<const char*>(x) + start;
    const int bytes = sizes.c * int{sizeof(T)};
    unsigned char* const slab = target + Tile::kSlabs + number % 2 * Tile::kSlabBytes;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (!there(i)) continue;
      const bool inside = (from[i].inside >> r & 1) && channel < sizes.c;
      const void* const pixel = shifted + int64_t{from[i].pixel} * bytes;
      copy_async_16(slab + i * kRowsAtOnce * kRowBytes, inside ? pixel : x, inside);
    }
  };
  unsigned known = 0;  // of a thread's filters
#pragma unroll
  for (int i = 0; i < Tile::kColumns / kRowsAtOnce; ++i)
    known |= first + top + i * kRowsAtOnce < sizes.k ? 1u << i : 0;
  const auto copy_filters = [&](int step, int stage) {
    const int channel = step / kTaps * Tile::kDepth + piece * Tile::kPiece;
    const unsigned here = channel < sizes.c ? known : 0;
    const unsigned apart = unsigned{kRowsAtOnce * kTaps} * sizes.c;  // 32 bits count all weights
    const unsigned start = (unsigned(first + top) * kTaps + step % kTaps) * sizes.c + channel;
    unsigned char* const to = target + Tile::kFilters + stage * Tile::kFilterBytes;
#pragma unroll
    for (int i = 0; i < Tile::kColumns / kRowsAtOnce; ++i) {
      const bool inside = here >> i & 1;
      copy_async_16(to + i * kRowsAtOnce * kRowBytes, filters + (inside ? start + i * apart : 0),
                    inside);
    }
  };

  // ldmatrix: lanes 0..15 name a fragment's sixteen pixels, lanes 16..31 the same 16 bytes further;
  // of filters, lanes 0..7 and 16..23 name sixteen channels, the others the same 16 bytes further.
  // Pooled, a fragment's eight upper pixels are eight successive rows of the slab's first part.
  constexpr bool pooled = Tile::kParts == 2;
  constexpr int kApart = pooled ? 8 : 16;  // slab rows between fragments
  const int row = place.lane % 16;
  const int slab_lane = pooled
                            ? row / 8 * Tile::kPart + place.down / 2 + 2 * (row % 4) + row / 4 % 2
                            : place.down + row;
  int edges = 0;  // two bits a fragment: the lane's pixel is the first, the last of its line
#pragma unroll
  for (int i = 0; i < 4; ++i) edges |= rows[slab_lane + i * kApart + 1].inside / kLeft << 2 * i;
  const int filter_row = place.across + place.lane % 8 + place.lane / 16 * 8;
  const int filter_lane = filter_row * kRowBytes;
  const int filter_swizzle = (place.lane / 8 % 2 ^ filter_row % 8) * 16;

#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;

  const int steps = (sizes.c + Tile::kDepth - 1) / Tile::kDepth * kTaps;
  copy_slab(0);
  copy_filters(0, 0);
  copy_async_commit();
  if (stages == 3) {
    copy_filters(1, 1);
    copy_async_commit();
  }
  int stage = 0;
  for (int step = 0; step < steps; ++step) {
    if (stages == 3)
      copy_async_wait<1>();
    else
      copy_async_wait<0>();
    __syncthreads();  // all have read what the next copies overwrite
    const int s = step % 3, slab_row = slab_lane + s;
    const int slab_swizzle = (place.lane / 16 ^ slab_row % 8) * 16;
    const int slab_start = Tile::kSlabs + step / 3 % 2 * Tile::kSlabBytes + slab_row * kRowBytes;
    const int edge = s == 0 ? 1 : s == 2 ? 2 : 0;
    int slab_from[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      slab_from[i] = edges >> 2 * i & edge ? Tile::kZeros : slab_start + i * kApart * kRowBytes;
    const int filter_from = Tile::kFilters + stage * Tile::kFilterBytes + filter_lane;

    // Fragments of 32 bytes of channels. In 16 bits the next ones are read while these multiply;
    // those of float32 are split in registers, which leaves none for that.
    constexpr int kBuffers = sizeof(T) == 2 ? 2 : 1;
    uint32_t a[kBuffers][4][4], b[kBuffers][8][2];
    const auto read = [&](int part, int buffer) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        ldmatrix_x4(a[buffer][i], shared + slab_from[i] + (part * 32 ^ slab_swizzle));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t two[4];
        ldmatrix_x4(two, shared + filter_from + j * 16 * kRowBytes + (part * 32 ^ filter_swizzle));
        b[buffer][2 * j][0] = two[0], b[buffer][2 * j][1] = two[1];
        b[buffer][2 * j + 1][0] = two[2], b[buffer][2 * j + 1][1] = two[3];
      }
    };
    if constexpr (kBuffers == 2) read(0, 0);

    // The next slab three steps ahead, filters one or two; groups that are empty keep the count.
    if (step % 3 == 0 && step + 3 < steps) copy_slab(step / 3 + 1);
    const int free_stage = stage == 0 ? stages - 1 : stage - 1;
    if (step + stages - 1 < steps) copy_filters(step + stages - 1, free_stage);
    copy_async_commit();

    if constexpr (kBuffers == 2) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        if (part < 3) read(part + 1, (part + 1) % 2);
        multiply<products>(sums, a[part % 2], b[part % 2]);
      }
    } else {
#pragma unroll 1
      for (int part = 0; part < 4; ++part) {
        read(part, 0);
        multiply<products>(sums, a[0], b[0]);
      }
    }
    stage = stage == stages - 1 ? 0 : stage + 1;
  }
  __syncthreads();  // all have read their operands; no copy is under way
}

// A warp's 64 x 64 numbers in shared memory, from where they leave in 16-byte pieces of rows.
// Pieces are permuted so that neither fragments nor pieces conflict, nor float32's every other
// piece.
template <class S>
struct Staged {
  static constexpr int kPieces = kWarpTile * sizeof(S) / 16;  // of a row
  unsigned char* base;

  // staged: where the block's numbers begin.
  __device__ explicit Staged(unsigned char* staged)
      : base(staged + threadIdx.x / kWarp * kWarpTile * kPieces * 16) {}

  __device__ __forceinline__ unsigned char* piece(int row, int number) const {
    const int mixed = sizeof(S) == 4 ? number ^ number / 8 ^ row % 8 * 2 : number ^ row % 8;
    return base + (row * kPieces + mixed) * 16;
  }
  // Two numbers of a row, from an even column on.
  __device__ __forceinline__ void put(int row, int column, float first, float second) const {
    constexpr int kPiece = 16 / sizeof(S);
    unsigned char* const to = piece(row, column / kPiece) + column % kPiece * sizeof(S);
    if constexpr (sizeof(S) == 4)
      *reinterpret_cast<float2*>(to) = make_float2(first, second);
    else
      *reinterpret_cast<uint32_t*>(to) = pack<S>(first, second);
  }
  __device__ __forceinline__ void put(int row, int column, float number) const {
    constexpr int kPiece = 16 / sizeof(S);
    unsigned char* const to = piece(row, column / kPiece) + column % kPiece * sizeof(S);
    *reinterpret_cast<S*>(to) = from_float<S>(number);
  }
};

// Host ------------------------------------------------------------------------------------------

// Wide tiles, but where narrow ones leave less of them empty.
inline int columns_for(int k) { return (k + 63) / 64 % 2 == 1 && k < 256 ? 64 : 128; }
inline int pixels_for(int k) { return kTileSums / columns_for(k); }

// Three stages of filters, but where only two let two blocks share a multiprocessor, which has
// 1 KB more than a block may have and keeps 1 KB for each block.
template <class Tile>
int stages_for() {
  const size_t limit = shared_limit() + 1024;
  const auto two_blocks = [&](int stages) { return 2 * (Tile::shared(stages) + 1024) <= limit; };
  return two_blocks(2) && !two_blocks(3) ? 2 : 3;
}

inline void check(const char* name, const Sizes& sizes, Products products) {
  const int piece = products == Products::bfloat16 || products == Products::float16 ? 8 : 4;
  const int64_t most = std::numeric_limits<int>::max();
  if (sizes.n < 0 || sizes.h < 1 || sizes.w < 1)
    throw std::invalid_argument(std::string(name) + ": " + std::to_string(sizes.n) + " images of " +
                                std::to_string(sizes.h) + " x " + std::to_string(sizes.w) +
                                " pixels");
  if (sizes.c < piece || sizes.k < piece || sizes.c % piece || sizes.k % piece)
    throw std::invalid_argument(std::string(name) + ": " + std::to_string(sizes.c) + " and " +
                                std::to_string(sizes.k) + " channels must be multiples of " +
                                std::to_string(piece));
  if (int64_t{sizes.n} * sizes.h * sizes.w > most - 65536 ||
      int64_t{sizes.c} * sizes.k * kTaps > most)
    throw std::invalid_argument(std::string(name) + ": more pixels or weights than 32 bits count");
}

// Calls go(products, columns) with both as types that hold constants.
template <class Go>
void dispatch(Products products, int columns, const Go& go) {
  const auto with = [&](auto p) {
    if (columns == 64)
      go(p, std::integral_constant<int, 64>());
    else
      go(p, std::integral_constant<int, 128>());
  };
  switch (products) {
    case Products::bfloat16:
      return with(std::integral_constant<Products, Products::bfloat16>());
    case Products::float16:
      return with(std::integral_constant<Products, Products::float16>());
    case Products::tf32:
      return with(std::integral_constant<Products, Products::tf32>());
    case Products::tf32x3:
      return with(std::integral_constant<Products, Products::tf32x3>());
  }
}

}  // namespace pycap::gpu::conv
