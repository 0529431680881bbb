// Numbers in float32, bfloat16 and float16: conversions that nvcc and the emulation share.
#pragma once
#include <cstring>
#include <type_traits>

#include "platform.h"

namespace pycap::gpu {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(half x) { return __half2float(x); }

// x rounded to the nearest T, ties to even.
template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>)
    return x;
  else if constexpr (std::is_same_v<T, bf16>)
    return __float2bfloat16(x);
  else
    return __float2half(x);
}

// max(x, 0), where a NaN stays one.
__device__ __forceinline__ float relu(float x) {
#ifdef PYCAP_EMU
  return x < 0 ? 0.0f : x;
#else
  float y;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// The bits of one type as another of the same size.
template <class To, class From>
__device__ __forceinline__ To bits(const From& x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  memcpy(&y, &x, sizeof(To));
  return y;
}

// Two numbers of 16 bits in one word, the first in its low half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
#ifdef PYCAP_EMU
  return bits<uint16_t>(from_float<T>(low)) | uint32_t{bits<uint16_t>(from_float<T>(high))} << 16;
#else  // one instruction
  if constexpr (std::is_same_v<T, bf16>)
    return bits<uint32_t>(__floats2bfloat162_rn(low, high));
  else
    return bits<uint32_t>(__floats2half2_rn(low, high));
#endif
}
__device__ __forceinline__ uint32_t pack_bits(uint16_t low, uint16_t high) {
  return low | uint32_t{high} << 16;
}

}  // namespace pycap::gpu
