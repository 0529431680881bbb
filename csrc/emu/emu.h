// CUDA kernels on the CPU, for tests: what the host's side of a launch sees of the emulation.
//
// Every thread of a grid is a fiber; one operating-system thread runs them all, in an order that a
// seed draws. The kernels are compiled with -fsanitize=thread, whose calls before each access to
// memory come here instead of to ThreadSanitizer (hooks.cpp), so that each access is checked:
// whether it lies in a tracked array or in shared memory, is aligned, reads shared memory that was
// written, and is ordered after other threads' conflicting accesses (memory.cpp).
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "vector_types.h"

namespace pycap::emu {

// What the emulated GPU says of itself. May be changed between launches.
struct Device {
  int multiprocessors = 132;
  int capability = 90;
  size_t shared_limit = 227 * 1024;
  int threads_per_multiprocessor = 2048;
};
Device& device();

// Kernels may access [data, data + bytes) until it is untracked. An array may be tracked twice.
void track(const void* data, size_t bytes);
void untrack(const void* data);

// What the order of fibers and of asynchronous copies is drawn from.
void set_seed(uint64_t seed);

// How many blocks of so many threads and so much dynamic shared memory a multiprocessor holds.
int resident_blocks(int threads, size_t shared);

// Writes zeros as cudaMemset does, to tracked memory.
void zero(void* data, size_t bytes);

// A kernel broke a rule. The text names the kernel, block, thread, file and line.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A launch, as pycap::gpu::Launch has it.
struct Grid {
  const char* kernel;
  dim3 grid, block;
  size_t shared;
  bool cooperative;
  unsigned cluster;
};

// Runs body(call) once for each thread. Kernels may read [call, call + bytes): their arguments.
// Throws Fault.
void run(const Grid& grid, const void* call, size_t bytes, void (*body)(const void* call));

}  // namespace pycap::emu
