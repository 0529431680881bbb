// What kernels call in the emulation in place of CUDA's instructions.
#pragma once
#include <cstddef>
#include <cstdint>

#include "vector_types.h"

namespace pycap::emu {

// Constant for each thread, so that the compiler may keep what they return.
uint3 thread_index() __attribute__((const));
uint3 block_index() __attribute__((const));
dim3 block_shape() __attribute__((const));
dim3 grid_shape() __attribute__((const));
unsigned cluster_rank() __attribute__((const));
unsigned cluster_size() __attribute__((const));

// Shared memory. key: an address that stands for the declaration.
void* shared_array(const void* key, size_t bytes, size_t alignment) __attribute__((const));
void* dynamic_shared() __attribute__((const));
void* shared_of_rank(const void* mine, unsigned rank);

// Barriers. A wait must follow each arrival. file, line: the barrier in the source, which all
// threads of a block must come to.
enum class Scope { kCluster, kGrid };
void barrier_block(const char* file, int line);
void barrier_warp(uint32_t mask);
void barrier_arrive(Scope scope);
void barrier_wait(Scope scope);

// 32-bit words exchanged within a warp: lane i gets the word of lane from(i). Outside of 0..31, or
// of its segment of `width` lanes, its own.
enum class Shuffle { kIndex, kUp, kDown, kXor };
uint32_t shuffle(uint32_t mask, uint32_t word, Shuffle how, int amount, int width);
// The lanes of mask whose predicate holds.
uint32_t ballot(uint32_t mask, bool predicate);

// Atomic updates of 32 bits, relaxed. update: the new word from the old one and the operand.
uint32_t atomic(void* address, uint32_t operand, uint32_t (*update)(uint32_t, uint32_t));
uint32_t compare_and_swap(void* address, uint32_t expected, uint32_t desired);
void add_release(int* counter, int n);
void store_release(int* flag, int value);
int load_acquire(const int* counter);

// cp.async: the bytes arrive at a drawn moment between the call and the end of the wait for their
// group.
void copy_async(void* shared, const void* global, int bytes, bool inside);
void copy_async_commit();
void copy_async_wait(int pending);

// Tensor cores (csrc/cuda/tensor_cores.h says which lane holds what).
template <class T>
void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_1688_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void ldmatrix_x4(uint32_t (&r)[4], const void* shared, bool transposed);
uint32_t tf32(float x);

// The lanes of a warp give `input`, and the last one to come runs compute(inputs, outputs) for all.
// Without compute, the accesses of all lanes so far are ordered before their next ones.
void together(const char* what, uint32_t mask, const void* input, void* output,
              void (*compute)(const void* const* inputs, void* const* outputs), void* where);

}  // namespace pycap::emu
