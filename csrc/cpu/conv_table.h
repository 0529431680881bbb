// Which block sizes serve which convolution: measured (benchmarks/tune_conv.py), not derived.
//
// Measured on a Xeon with AVX-512 (48 KiB L1 and 2 MiB L2 cache a core, 14 GB/s a core from
// beyond), 2 threads, as ratios of runs that alternated.
#pragma once
#include "common.h"

namespace {

struct WinogradBlocks {
  int64_t filters;  // this row serves layers of at least so many pairs of channels
  int64_t at_most;  // and at most so many tiles of 4x4 outputs
  bool shared;      // threads share a chunk of transformed tiles; else each has its own
  int64_t tiles, inputs, outputs;  // a block of the product, at most
};

// Shared, with products 64 deep: a thread's sums [36][64][64] and filters stay in its L2 cache, and
// filters are transformed for one block at a time. Against private blocks 1.2 times as fast at
// 28x28x512 and 1.5 times at 14x14x512. Private, with products as deep as there are inputs: where
// the tiles are many and all filters fit the caches, 1.1 to 1.3 times as fast as shared ones
// (112x112x128, 224x224x64); on maps of 56x56 the two are equal at batch 1, and private ones are
// 1.15 times as fast at batch 8. Taller blocks (96) and wider ones (96, 128) were slower or equal.
constexpr WinogradBlocks kWinogradBlocks[] = {
    {int64_t{1} << 17, INT64_MAX, true, 64, 64, 64},
    {int64_t{1} << 15, 256, true, 64, 64, 64},
    {0, INT64_MAX, false, 48, 256, 256},
};

constexpr int64_t kWinogradChunkFloats = int64_t{8} << 20;  // transformed tiles in common: 32 MiB

inline const WinogradBlocks& winograd_blocks(int64_t tiles, int64_t filters) {
  const WinogradBlocks* row = kWinogradBlocks;
  while (filters < row->filters || tiles > row->at_most) ++row;
  return *row;
}

}  // namespace
