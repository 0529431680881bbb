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
  // Whether this thread's columns are there, and where its next chunks are, in numbers.
  bool live_x = false, live_edge = false, live_dz = false;
  int64_t at_x = 0, at_edge = 0, at_dz = 0;

  __device__ __forceinline__ bool locate(int64_t& at, int position, int row, int channel,
                                         int channels) const {
    const int image = position / (s.width + 1), v = position % (s.width + 1);
    at = ((int64_t{image} * s.h + row) * s.width + v) * channels + channel;
    return position >= 0 && image < s.n && v < s.width && channel < channels;
  }

  __device__ __forceinline__ void enter(const Walk& walk) {
    const int first = walk.strip * S::kColumns, row = 2 * walk.pair;
    const int channel = first_channel + chunk * S::kChunk;
    live_dz = locate(at_dz, first + column, row - 1, first_filter + chunk * S::kChunk, s.k);
    live_x = locate(at_x, first + column - 1, row, channel, s.c);
    live_edge =
        locate(at_edge, first + S::kColumns - 1 + column % 2, row + column / 2, channel, s.c);
  }

  __device__ __forceinline__ void copy(unsigned char* shared, const T* data, int64_t at, bool live,
                                       int row) const {
    const bool inside = live && row >= 0 && row < s.h;
    copy_async_16(shared, inside ? data + at : data, inside);
  }

  __device__ __forceinline__ void load(unsigned char* slot, const Walk& walk) {
    if (walk.fresh) enter(walk);
    const int row = 2 * walk.pair, pitch_x = s.width * s.c, pitch_dz = s.width * s.k;
#pragma unroll
    for (int i = 0; i < 2; ++i, at_dz += pitch_dz)
      copy(slot + 2 * S::kRowX + i * S::kRow + S::place(column, chunk), dz, at_dz, live_dz,
           row + (walk.fresh ? i - 1 : i + 1));
    if (walk.fresh) return;
#pragma unroll
    for (int i = 0; i < 2; ++i, at_x += pitch_x)
      copy(slot + i * S::kRowX + S::place(column, chunk), x, at_x, live_x, row + i);
    if (column < 4)
      copy(slot + column / 2 * S::kRowX + S::place(S::kColumns + column % 2, chunk), x, at_edge,
           live_edge, row + column / 2);
    at_edge += 2 * pitch_x;
  }
};

}  // namespace pycap::gpu::wgrad
