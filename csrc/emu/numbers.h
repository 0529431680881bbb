// bfloat16 and float16 as CUDA names them, for g++: 16 bits, and conversions that round to nearest.
#pragma once
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
  __half x, y;
};

namespace pycap::emu {

template <class T>
float widen(uint16_t bits);
template <>
inline float widen<__nv_bfloat16>(uint16_t bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}
template <>
inline float widen<__half>(uint16_t bits) {
  _Float16 h;
  std::memcpy(&h, &bits, 2);
  return static_cast<float>(h);
}

template <class T>
uint16_t narrow(float x);
template <>
inline uint16_t narrow<__nv_bfloat16>(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // NaN
  word += 0x7fffu + (word >> 16 & 1);                     // to nearest, ties to even
  return static_cast<uint16_t>(word >> 16);
}
template <>
inline uint16_t narrow<__half>(float x) {
  const auto h = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &h, 2);
  return bits;
}

}  // namespace pycap::emu

inline float __bfloat162float(__nv_bfloat16 x) { return pycap::emu::widen<__nv_bfloat16>(x.bits); }
inline float __half2float(__half x) { return pycap::emu::widen<__half>(x.bits); }
inline __nv_bfloat16 __float2bfloat16(float x) { return {pycap::emu::narrow<__nv_bfloat16>(x)}; }
inline __half __float2half(float x) { return {pycap::emu::narrow<__half>(x)}; }
