// Between bfloat16 and float32, one at a time and in vectors. Rounding is to nearest, ties to even;
// NaN stays NaN.
#pragma once
#include "pycap/bf16.h"
#include "simd.h"

namespace {

using pycap::bf16;

typedef uint32_t VecU __attribute__((vector_size(VL * 4)));
typedef uint16_t VecHalf __attribute__((vector_size(VL * 2)));
typedef uint16_t VecHalfUnaligned __attribute__((vector_size(VL * 2), aligned(2), may_alias));

inline float widen(bf16 v) {
  const uint32_t bits = (uint32_t)v.bits << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

inline bf16 narrow(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if (f != f) return {(uint16_t)(bits >> 16 | 0x40)};
  return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline Vec load(const bf16* p) {
  const VecHalf half = *reinterpret_cast<const VecHalfUnaligned*>(p);
  return (Vec)(__builtin_convertvector(half, VecU) << 16);
}

// The bits of VL rounded numbers, each in the lower half of its lane.
inline VecU narrow_bits(Vec v) {
  const VecU bits = (VecU)v;
  const VecU rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return v == v ? rounded : (bits >> 16 | 0x40);
}

inline void store(bf16* p, Vec v) {
  *reinterpret_cast<VecHalfUnaligned*>(p) = __builtin_convertvector(narrow_bits(v), VecHalf);
}

}  // namespace
