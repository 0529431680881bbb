// CUDA for g++, as far as csrc/cuda uses it: csrc/cuda/platform.h includes this in place of
// CUDA's own headers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "device.h"
#include "emu.h"
#include "numbers.h"
#include "vector_types.h"

#define threadIdx (::pycap::emu::thread_index())
#define blockIdx (::pycap::emu::block_index())
#define blockDim (::pycap::emu::block_shape())
#define gridDim (::pycap::emu::grid_shape())

#define PYCAP_SHARED(type, name, dimensions)                                                 \
  typedef type pycap_shared_##name dimensions;                                               \
  static const char pycap_key_##name = 0;                                                    \
  pycap_shared_##name& name = *static_cast<pycap_shared_##name*>(::pycap::emu::shared_array( \
      &pycap_key_##name, sizeof(pycap_shared_##name), alignof(pycap_shared_##name)))
#define PYCAP_DYNAMIC_SHARED(name) \
  unsigned char* const name = static_cast<unsigned char*>(::pycap::emu::dynamic_shared())

namespace pycap::emu {

// A kernel with its arguments.
template <class... P>
struct Call {
  void (*kernel)(P...);
  std::tuple<P...> arguments;
};

// Runs it once for each thread of the grid.
template <class... P>
void run(const Grid& grid, const Call<P...>& call) {
  run(grid, &call, sizeof(call), [](const void* c) {
    const auto& call = *static_cast<const Call<P...>*>(c);
    std::apply(call.kernel, call.arguments);
  });
}

template <class To, class From>
To as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  memcpy(&y, &x, sizeof(To));
  return y;
}

}  // namespace pycap::emu

// Barriers and votes ---------------------------------------------------------------------------

#define PYCAP_EMU_INLINE inline __attribute__((always_inline))

PYCAP_EMU_INLINE void __syncthreads(const char* file = __builtin_FILE(),
                                    int line = __builtin_LINE()) {
  pycap::emu::barrier_block(file, line);
}
PYCAP_EMU_INLINE void __syncwarp(unsigned mask = 0xffffffffu) { pycap::emu::barrier_warp(mask); }
PYCAP_EMU_INLINE unsigned __ballot_sync(unsigned mask, int predicate) {
  return pycap::emu::ballot(mask, predicate != 0);
}
PYCAP_EMU_INLINE int __any_sync(unsigned mask, int predicate) {
  return pycap::emu::ballot(mask, predicate != 0) != 0;
}
PYCAP_EMU_INLINE int __all_sync(unsigned mask, int predicate) {
  return pycap::emu::ballot(mask, predicate == 0) == 0;
}

// 32-bit words only: what the kernels exchange.
#define PYCAP_EMU_SHUFFLE(name, how)                                                        \
  template <class T>                                                                        \
  PYCAP_EMU_INLINE T name(unsigned mask, T value, int amount, int width = 32) {             \
    return pycap::emu::as<T>(pycap::emu::shuffle(mask, pycap::emu::as<uint32_t>(value),     \
                                                 pycap::emu::Shuffle::how, amount, width)); \
  }
PYCAP_EMU_SHUFFLE(__shfl_sync, kIndex)
PYCAP_EMU_SHUFFLE(__shfl_up_sync, kUp)
PYCAP_EMU_SHUFFLE(__shfl_down_sync, kDown)
PYCAP_EMU_SHUFFLE(__shfl_xor_sync, kXor)
#undef PYCAP_EMU_SHUFFLE

PYCAP_EMU_INLINE void __threadfence() {}
PYCAP_EMU_INLINE void __threadfence_block() {}

// Atomic updates -------------------------------------------------------------------------------

#define PYCAP_EMU_ATOMIC(name, type, expression)                                            \
  PYCAP_EMU_INLINE type name(type* address, type operand) {                                 \
    return pycap::emu::as<type>(pycap::emu::atomic(                                         \
        address, pycap::emu::as<uint32_t>(operand), [](uint32_t before, uint32_t operand) { \
          const type a = pycap::emu::as<type>(before), b = pycap::emu::as<type>(operand);   \
          (void)a;                                                                          \
          return pycap::emu::as<uint32_t>(static_cast<type>(expression));                   \
        }));                                                                                \
  }
#define PYCAP_EMU_ATOMICS(type)            \
  PYCAP_EMU_ATOMIC(atomicAdd, type, a + b) \
  PYCAP_EMU_ATOMIC(atomicExch, type, b)
PYCAP_EMU_ATOMICS(int)
PYCAP_EMU_ATOMICS(unsigned)
PYCAP_EMU_ATOMICS(float)
PYCAP_EMU_ATOMIC(atomicMax, int, a > b ? a : b)
PYCAP_EMU_ATOMIC(atomicMax, unsigned, a > b ? a : b)
PYCAP_EMU_ATOMIC(atomicMin, int, a < b ? a : b)
PYCAP_EMU_ATOMIC(atomicMin, unsigned, a < b ? a : b)
#undef PYCAP_EMU_ATOMICS
#undef PYCAP_EMU_ATOMIC

PYCAP_EMU_INLINE unsigned atomicCAS(unsigned* address, unsigned expected, unsigned desired) {
  return pycap::emu::compare_and_swap(address, expected, desired);
}
PYCAP_EMU_INLINE int atomicCAS(int* address, int expected, int desired) {
  return static_cast<int>(pycap::emu::compare_and_swap(address, static_cast<uint32_t>(expected),
                                                       static_cast<uint32_t>(desired)));
}

// Arithmetic -----------------------------------------------------------------------------------

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline unsigned __float_as_uint(float x) { return pycap::emu::as<unsigned>(x); }
inline int __float_as_int(float x) { return pycap::emu::as<int>(x); }
inline float __uint_as_float(unsigned x) { return pycap::emu::as<float>(x); }
inline float __int_as_float(int x) { return pycap::emu::as<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }

#define PYCAP_EMU_ORDERED(type)                                \
  constexpr type min(type a, type b) { return b < a ? b : a; } \
  constexpr type max(type a, type b) { return a < b ? b : a; }
PYCAP_EMU_ORDERED(int)
PYCAP_EMU_ORDERED(unsigned)
PYCAP_EMU_ORDERED(long)
PYCAP_EMU_ORDERED(unsigned long)
PYCAP_EMU_ORDERED(float)
#undef PYCAP_EMU_ORDERED

// Loads and stores with hints to the caches, which do nothing here.
template <class T>
PYCAP_EMU_INLINE T __ldg(const T* p) {
  return *p;
}
template <class T>
PYCAP_EMU_INLINE T __ldcg(const T* p) {
  return *p;
}
template <class T>
PYCAP_EMU_INLINE T __ldcs(const T* p) {
  return *p;
}
template <class T>
PYCAP_EMU_INLINE void __stcg(T* p, T value) {
  *p = value;
}
template <class T>
PYCAP_EMU_INLINE void __stcs(T* p, T value) {
  *p = value;
}

#include "groups.h"
#include "wmma.h"
