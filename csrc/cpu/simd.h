// The widest float vector of the instruction set at hand, in GCC's and clang's portable notation.
#pragma once
#include "common.h"
#include "watched.h"

namespace {

#if defined(PYCAP_V4)
constexpr int64_t VL = 16;
#elif defined(__AVX__)
constexpr int64_t VL = 8;
#else
constexpr int64_t VL = 4;
#endif

typedef float Vec __attribute__((vector_size(VL * 4)));
typedef int32_t VecI __attribute__((vector_size(VL * 4)));
typedef float VecUnaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));

inline Vec load(const float* p) {
  wide_read(p, sizeof(Vec));
  return *reinterpret_cast<const VecUnaligned*>(p);
}
inline void store(float* p, Vec v) {
  wide_write(p, sizeof(Vec));
  *reinterpret_cast<VecUnaligned*>(p) = v;
}
inline Vec broadcast(float v) { return v - Vec{}; }
inline Vec select(VecI mask, Vec a, Vec b) { return mask ? a : b; }

// The winners of VL channels from their packed bits (two a channel).
inline VecI unpack_winners(const uint8_t* p) {
  uint32_t word = 0;
  memcpy(&word, p, VL / 4);
  VecI lanes;
  for (int64_t l = 0; l < VL; ++l) lanes[l] = (int32_t)(2 * l);
  return (((int32_t)word - VecI{}) >> lanes) & 3;
}

inline void pack_winners(uint8_t* p, VecI at) {
  uint32_t word = 0;
#pragma omp simd reduction(| : word)
  for (int64_t l = 0; l < VL; ++l) word |= (uint32_t)at[l] << (uint32_t)(2 * l);
  memcpy(p, &word, VL / 4);
}

// Transposes a VL x VL block held in VL vectors.
inline void transpose(Vec* v) {
#pragma GCC unroll 4
  for (int64_t s = 1; s < VL; s *= 2) {
    VecI low, high;  // lanes of the pair (a, b): b's are numbered from VL
#pragma GCC unroll 16
    for (int64_t l = 0; l < VL; ++l) {
      low[l] = (int32_t)(l & s ? VL + l - s : l);
      high[l] = (int32_t)(l & s ? VL + l : l + s);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < VL; ++i) {
      if (i & s) continue;
      const Vec a = v[i], b = v[i + s];
#if defined(__clang__)
      for (int64_t l = 0; l < VL; ++l) {
        v[i][l] = l & s ? b[l - s] : a[l];
        v[i + s][l] = l & s ? b[l] : a[l + s];
      }
#else
      v[i] = __builtin_shuffle(a, b, low);
      v[i + s] = __builtin_shuffle(a, b, high);
#endif
    }
  }
}

}  // namespace
