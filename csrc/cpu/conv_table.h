// Which algorithm and block sizes serve which convolution: measured (python -m benchmarks.tune_conv
// prints it again), not derived.
//
// Measured on a Xeon with AVX-512 (48 KiB L1 and 2 MiB L2 cache a core, 14 GB/s a core from
// beyond), 2 threads, as ratios of runs that alternated.
#pragma once
#include "common.h"

namespace {

// Winograd F(4x4,3x3) multiplies a quarter as often. On a map smaller than a tile most of what it
// computes is thrown away: at 2x2x512 im2col is 1.2 times as fast for one image, but Winograd 1.5
// times for 8 (forward and data gradient together), when there are pixels enough for its products.
// Few inputs are convolved directly, 1.1 to 2.6 times as fast as through patches.
constexpr int64_t kWinogradLeastPixels = 9;        // of one map
constexpr int64_t kWinogradLeastSmallPixels = 32;  // of all maps of 2x2 and up
constexpr int64_t kDirectMostInputs = 15;

struct WinogradBlocks {
  int64_t filters;  // this row serves layers of at least so many pairs of channels
  int64_t at_most;  // and at most so many tiles of 4x4 outputs
  bool shared;      // threads share a chunk of transformed tiles; else each has its own
  int64_t tiles, inputs, outputs;  // a block of the product, at most
};

// Shared, with products 64 deep: a thread's sums [36][64][64] and filters stay in its L2 cache, and
// filters are transformed for one block at a time. As against private blocks 1.2 times as fast at
// 28x28x512 and batch 8, 1.7 at batch 1; 1.5 and 3.1 at 14x14x512; 2.2 at 4x4x256. Private, with
// products as deep as there are inputs: where the tiles are many and the filters fit the caches,
// 1.1 times as fast as shared ones at 56x56x256 and batch 8 (equal at batch 1), 1.3 at 112x112x128,
// 1.4 at 224x224x64. Taller blocks (96) and wider ones (128) were equal or up to 1.1 times slower.
constexpr WinogradBlocks kWinogradBlocks[] = {
    {int64_t{1} << 17, INT64_MAX, true, 64, 64, 64},
    {int64_t{1} << 16, 256, true, 64, 64, 64},
    {0, INT64_MAX, false, 48, 256, 256},
};

constexpr int64_t kWinogradChunkFloats = int64_t{8} << 20;  // transformed tiles in common: 32 MiB

inline const WinogradBlocks& winograd_blocks(int64_t tiles, int64_t filters) {
  const WinogradBlocks* row = kWinogradBlocks;
  while (filters < row->filters || tiles > row->at_most) ++row;
  return *row;
}

}  // namespace
