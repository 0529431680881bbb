// What the kernels use of CUDA: nvcc's own, or csrc/emu's stand-ins where PYCAP_EMU is defined and
// g++ compiles the same files to run on a CPU.
//
// Shared memory is declared by macros, since a thread of the emulation is no thread of C++:
//   PYCAP_SHARED(float, tile, [64][33]);      // __shared__ float tile[64][33];
//   PYCAP_DYNAMIC_SHARED(bytes);              // extern __shared__ unsigned char bytes[];
// and kernels are launched by launch.h.
#pragma once

#ifdef PYCAP_EMU
#include "emu/cuda.h"
#else
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mma.h>

#define PYCAP_SHARED(type, name, dimensions) __shared__ type name dimensions
#define PYCAP_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

#include <cstddef>
#include <cstdint>

namespace pycap::gpu {

using bf16 = __nv_bfloat16;
using half = __half;

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

}  // namespace pycap::gpu
