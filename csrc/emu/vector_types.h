// CUDA's small vectors and the qualifiers of its functions, for g++.
#pragma once
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#define PYCAP_EMU_VECTORS(element, name)                                         \
  struct alignas(2 * sizeof(element)) name##2 { element x, y; };                 \
  struct alignas(4 * sizeof(element) < 16 ? 4 * sizeof(element) : 16) name##4 {  \
    element x, y, z, w;                                                          \
  };                                                                             \
  constexpr name##2 make_##name##2(element x, element y) { return {x, y}; }      \
  constexpr name##4 make_##name##4(element x, element y, element z, element w) { \
    return {x, y, z, w};                                                         \
  }

PYCAP_EMU_VECTORS(float, float)
PYCAP_EMU_VECTORS(int, int)
PYCAP_EMU_VECTORS(unsigned, uint)
PYCAP_EMU_VECTORS(short, short)
PYCAP_EMU_VECTORS(unsigned short, ushort)
PYCAP_EMU_VECTORS(signed char, char)
PYCAP_EMU_VECTORS(unsigned char, uchar)

#undef PYCAP_EMU_VECTORS

using cudaStream_t = void*;
