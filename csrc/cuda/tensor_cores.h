// Tensor-core products of a warp, and the loads that feed them (sm_80 and newer): thin names for
// PTX.
//
// Fragments, for lane = 4*group + pair (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//   A [16 x 16] row-major, a[0..3]: rows group, group+8, group, group+8; columns 2*pair + {0,1},
//   the
//     last two words 8 further.
//   B [16 x 8], b[0..1]: rows (of K) 2*pair + {0,1}, the second word 8 further; column group.
//   C, D [16 x 8] float, d[0..3]: row group columns 2*pair + {0,1}, then row group+8.
// With TensorFloat-32 (m16n8k8) a word is one number: A [16 x 8], a[0..3]: rows group, group+8,
// group, group+8; columns pair, pair, pair+4, pair+4; B [8 x 8]: rows pair, pair+4; column group.
#pragma once
#include "types.h"

namespace pycap::gpu {

// d += a b, 16 x 8 x 16, T being bf16 or half.
template <class T>
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4],
                                          const uint32_t (&b)[2]) {
#ifdef PYCAP_EMU
  emu::mma_16816<T>(d, a, b);
#else
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// d += a b, 16 x 8 x 8, of float32 numbers that are TensorFloat-32 already (`tf32`).
__device__ __forceinline__ void mma_1688_tf32(float (&d)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[2]) {
#ifdef PYCAP_EMU
  emu::mma_1688_tf32(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// x rounded to TensorFloat-32 (10 bits of mantissa), as the bits of a float.
__device__ __forceinline__ uint32_t tf32(float x) {
#ifdef PYCAP_EMU
  return emu::tf32(x);
#else
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
#endif
}

// x as the sum of two TensorFloat-32 numbers, to 21 bits.
__device__ __forceinline__ void split_tf32(float x, uint32_t& high, uint32_t& low) {
  high = tf32(x);
  low = tf32(x - bits<float>(high));
}

// x, hidden from the compiler: what follows from it is computed here, and not kept in registers
// from before a loop.
__device__ __forceinline__ uint32_t here(uint32_t x) {
#ifndef PYCAP_EMU
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// Four 8 x 8 matrices of 16-bit numbers from shared memory; lanes 8i..8i+7 give the addresses (of
// 16 aligned bytes) of matrix i's rows. r[i]: row `group`, columns 2*pair + {0,1} of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
#ifdef PYCAP_EMU
  emu::ldmatrix_x4(r, shared, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared)))
               : "memory");
#endif
}

// The same, each matrix transposed: r[i]: rows 2*pair + {0,1}, column `group`.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* shared) {
#ifdef PYCAP_EMU
  emu::ldmatrix_x4(r, shared, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared)))
               : "memory");
#endif
}

// Begin to copy 16 aligned bytes to shared memory, or zeros where `inside` is false (`global` is
// not read then, but must be a valid address).
__device__ __forceinline__ void copy_async_16(void* shared, const void* global,
                                              bool inside = true) {
#ifdef PYCAP_EMU
  emu::copy_async(shared, global, 16, inside);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(inside ? 16 : 0)
               : "memory");
#endif
}

// The same for 4 aligned bytes.
__device__ __forceinline__ void copy_async_4(void* shared, const void* global, bool inside = true) {
#ifdef PYCAP_EMU
  emu::copy_async(shared, global, 4, inside);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(inside ? 4 : 0)
               : "memory");
#endif
}

// Ends a group of this thread's copies.
__device__ __forceinline__ void copy_async_commit() {
#ifdef PYCAP_EMU
  emu::copy_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `pending` of this thread's groups are under way. A barrier must follow before
// other threads read what was copied.
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
#ifdef PYCAP_EMU
  emu::copy_async_wait(pending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

}  // namespace pycap::gpu
