// Launches on a stream of the caller's, and what the current GPU can hold. Errors are thrown as
// CudaError, whose text names the kernel.
#pragma once
#include <stdexcept>
#include <string>
#include <utility>

#include "platform.h"

namespace pycap::gpu {

struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// How a kernel is launched. shared: bytes of dynamic shared memory a block. cooperative: all blocks
// run at once, and may wait for each other. cluster: blocks (along x) whose shared memory is one.
struct Launch {
  dim3 grid = 1, block = 1;
  size_t shared = 0;
  cudaStream_t stream = nullptr;
  bool cooperative = false;
  unsigned cluster = 1;
};

#ifdef PYCAP_EMU

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), const Launch& how, A... arguments) {
  emu::run({name, how.grid, how.block, how.shared, how.cooperative, how.cluster},
           emu::Call<P...>{kernel, {static_cast<P>(arguments)...}});
}

inline void zero(void* data, size_t bytes, cudaStream_t) { emu::zero(data, bytes); }

// Multiprocessors of the current GPU, its compute capability (90: 9.0), and the most bytes of
// shared memory that a block may ask for.
inline int multiprocessors() { return emu::device().multiprocessors; }
inline int capability() { return emu::device().capability; }
inline size_t shared_limit() { return emu::device().shared_limit; }

// How many blocks of a kernel a multiprocessor holds at once; 0 where one is too large for it.
template <class... P>
int resident_blocks(void (*)(P...), int threads, size_t shared) {
  return emu::resident_blocks(threads, shared);
}

// How many clusters of `how` (grid aside) the GPU holds at once; 0 where it has no clusters.
template <class... P>
int resident_clusters(void (*kernel)(P...), const Launch& how) {
  if (capability() < 90) return 0;
  const int blocks = resident_blocks(kernel, static_cast<int>(how.block.x), how.shared);
  return blocks * multiprocessors() / static_cast<int>(how.cluster);
}

#else

inline void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // it would be reported again by the next call
  throw CudaError(what + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")");
}

// Lets `kernel` have so much dynamic shared memory, and clusters larger than eight blocks.
template <class... P>
void allow(const char* name, void (*kernel)(P...), const Launch& how) {
  const auto set = [&](cudaFuncAttribute attribute, size_t value) {
    check(cudaFuncSetAttribute(kernel, attribute, static_cast<int>(value)), name);
  };
  if (how.shared > 48 * 1024) set(cudaFuncAttributeMaxDynamicSharedMemorySize, how.shared);
  if (how.cluster > 8) set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

// A launch in the form of the runtime. It points into itself: not to be copied.
struct Attributes {
  cudaLaunchAttribute list[2];
  cudaLaunchConfig_t config{};

  explicit Attributes(const Launch& how) {
    config.gridDim = how.grid;
    config.blockDim = how.block;
    config.dynamicSmemBytes = how.shared;
    config.stream = how.stream;
    config.attrs = list;
    if (how.cooperative) {
      list[config.numAttrs].id = cudaLaunchAttributeCooperative;
      list[config.numAttrs++].val.cooperative = 1;
    }
    if (how.cluster > 1) {
      list[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      list[config.numAttrs].val.clusterDim.x = how.cluster;
      list[config.numAttrs].val.clusterDim.y = 1;
      list[config.numAttrs++].val.clusterDim.z = 1;
    }
  }
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;
};

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), const Launch& how, A... arguments) {
  allow(name, kernel, how);
  const Attributes attributes(how);
  check(cudaLaunchKernelEx(&attributes.config, kernel, static_cast<P>(arguments)...), name);
}

inline void zero(void* data, size_t bytes, cudaStream_t stream) {
  check(cudaMemsetAsync(data, 0, bytes, stream), "zeroing a workspace");
}

inline int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "asking for the current GPU");
  check(cudaDeviceGetAttribute(&value, which, device), "asking what the GPU has");
  return value;
}

// Multiprocessors of the current GPU, its compute capability (90: 9.0), and the most bytes of
// shared memory that a block may ask for.
inline int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }
inline int capability() {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
         attribute(cudaDevAttrComputeCapabilityMinor);
}
inline size_t shared_limit() { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

// How many blocks of a kernel a multiprocessor holds at once; 0 where one is too large for it.
template <class... P>
int resident_blocks(void (*kernel)(P...), int threads, size_t shared) {
  if (shared > shared_limit()) return 0;
  allow("occupancy", kernel, {1, 1, shared});
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared),
        "asking how many blocks fit");
  return blocks;
}

// How many clusters of `how` (grid aside) the GPU holds at once; 0 where it has no clusters.
template <class... P>
int resident_clusters(void (*kernel)(P...), const Launch& how) {
  if (capability() < 90 || how.shared > shared_limit()) return 0;
  allow("occupancy", kernel, how);
  const Attributes attributes(how);
  int clusters = 0;
  const cudaError_t status = cudaOccupancyMaxActiveClusters(&clusters, kernel, &attributes.config);
  if (status == cudaErrorInvalidClusterSize) {  // one too large for this GPU
    (void)cudaGetLastError();
    return 0;
  }
  check(status, "asking how many clusters fit");
  return clusters;
}

#endif

inline unsigned blocks_for(int64_t n, int64_t size) {
  return static_cast<unsigned>((n + size - 1) / size);
}

}  // namespace pycap::gpu
