// Winograd's filters: gathered from w into streams of taps once, transformed block by block.
//
// taps [out/VL][in][9][VL]: the nine taps of an input and VL outputs stand together, so that
// transforming a block of filters reads memory in order. This form is as large as w and can be kept
// while w does not change; the transformed filters are 4 times as large, and making them costs less
// than reading them from memory.
#pragma once
#include "micro_gemm.h"
#include "winograd_tiles.h"

namespace {

// u[xi*xs] [VL] = G g G^T of the nine taps in [9].
inline void filter_tile(float* u, int64_t xs, const Vec* in) {
  Vec t[18];
#pragma GCC unroll 3
  for (int l = 0; l < 3; ++l) transform_filter(t + l, 3, in + l, 3);
#pragma GCC unroll 6
  for (int r = 0; r < 6; ++r) {
    Vec o[6];
    transform_filter(o, 1, t + 3 * r, 1);
#pragma GCC unroll 6
    for (int l = 0; l < 6; ++l) store(u + (6 * r + l) * xs, o[l]);
  }
}

// VL outputs k0 .. of w [K,3,3,C]: to [C][9][VL]. The outputs lie far apart in w, so blocks of
// VL x VL are transposed.
inline void gather_taps(float* to, const float* w, int64_t C, int64_t k0) {
  for (int64_t c = 0; c < C; c += VL)
    for (int64_t rs = 0; rs < 9; ++rs) {
      Vec block[VL];
      const int64_t next = c + VL < C ? c + VL : 0;
      for (int64_t l = 0; l < VL; ++l) {
        const float* row = w + ((k0 + l) * 9 + rs) * C;
        block[l] = load(row + c);
        __builtin_prefetch(row + (next ? next : VL * 9 * C));
      }
      transpose(block);
      for (int64_t l = 0; l < VL; ++l) store(to + ((c + l) * 9 + rs) * VL, block[l]);
    }
}

// The data gradient's: filters rotated by 180 degrees, w's outputs k as inputs, VL of its inputs
// c0 .. as outputs: to [K][9][VL].
inline void gather_taps_rotated(float* to, const float* w, int64_t K, int64_t C, int64_t c0) {
  for (int64_t k = 0; k < K; ++k)
    for (int64_t rs = 0; rs < 9; ++rs)
      store(to + (k * 9 + rs) * VL, load(w + (k * 9 + 8 - rs) * C + c0));
}

// u [36] positions xs apart, each [panels of NR outputs][ins][NR] (the last panel may be VL wide):
// the transformed filters of inputs `ins` and outputs `outs`, from taps of `in` inputs.
inline void transform_filters(float* u, int64_t xs, const float* taps, int64_t in, Range ins,
                              Range outs) {
  const int64_t depth = ins.end - ins.begin;
  for (int64_t j = outs.begin; j < outs.end; j += VL) {
    const int64_t panel = (j - outs.begin) / NR * NR,
                  width = min64(NR, outs.end - outs.begin - panel);
    float* to = u + panel * depth + (j - outs.begin - panel);
    const float* from = taps + (j * in + ins.begin * VL) * 9;
    for (int64_t c = 0; c < depth; ++c, from += 9 * VL) {
      Vec g[9];
#pragma GCC unroll 9
      for (int rs = 0; rs < 9; ++rs) g[rs] = load(from + rs * VL);
      filter_tile(to + c * width, xs, g);
    }
  }
}

}  // namespace
