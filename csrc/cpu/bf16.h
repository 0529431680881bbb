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

// The bits of VL numbers, each in the lower half of its lane.
inline VecU load_bits(const bf16* p) {
  wide_read(p, sizeof(VecHalf));
  return __builtin_convertvector(*reinterpret_cast<const VecHalfUnaligned*>(p), VecU);
}

inline void store_bits(bf16* p, VecU bits) {
  wide_write(p, sizeof(VecHalf));
  *reinterpret_cast<VecHalfUnaligned*>(p) = __builtin_convertvector(bits, VecHalf);
}

inline Vec load(const bf16* p) { return (Vec)(load_bits(p) << 16); }

// As load_bits, of rounded numbers.
inline VecU narrow_bits(Vec v) {
  const VecU bits = (VecU)v;
  const VecU rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return v == v ? rounded : (bits >> 16 | 0x40);
}

inline void store(bf16* p, Vec v) { store_bits(p, narrow_bits(v)); }

}  // namespace
