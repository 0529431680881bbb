// Order between blocks: counters and flags in global memory, with release and acquire at the scope
// of the GPU, and loads that skip the first-level cache.
#pragma once
#include "types.h"

namespace pycap::gpu {

// *counter += n, after all that this thread wrote or saw before (a barrier first extends that to
// its block).
__device__ __forceinline__ void add_release(int* counter, int n) {
#ifdef PYCAP_EMU
  emu::add_release(counter, n);
#else
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(counter), "r"(n) : "memory");
#endif
}

__device__ __forceinline__ void store_release(int* flag, int value) {
#ifdef PYCAP_EMU
  emu::store_release(flag, value);
#else
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
#endif
}

// *counter; what its writers released before is visible to this thread afterwards. Loops that poll
// must call this: the emulation lets other threads run here.
__device__ __forceinline__ int load_acquire(const int* counter) {
#ifdef PYCAP_EMU
  return emu::load_acquire(counter);
#else
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
#endif
}

// Loads from the second-level cache, where other blocks' writes of this launch arrive: the first
// level of this multiprocessor may hold what was there before.
template <class V>
__device__ __forceinline__ V load_shared_by_blocks(const V* data) {
#ifdef PYCAP_EMU
  return *data;
#else
  return __ldcg(data);
#endif
}

}  // namespace pycap::gpu
