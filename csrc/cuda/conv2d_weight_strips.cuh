// The weight gradient's pixels in shared memory: how a block walks over them, and what it holds of
// them at a time.
#pragma once
#include "conv2d_weight.h"
#include "tensor_cores.h"

namespace pycap::gpu::wgrad {

constexpr int kThreads = 256;
constexpr int kTile = 64;  // filters of a block, and channels
constexpr int kSlots = 4;  // pairs of rows in shared memory: one before, one at work, two coming
constexpr int kAhead = 2;  // pairs of rows under way

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

}  // namespace pycap::gpu::wgrad
