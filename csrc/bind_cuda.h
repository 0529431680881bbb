// What the files share that bind the CUDA kernels, once as pycap._cuda and once, emulated, as
// pycap._cuda_emu. csrc/bind_cuda_OP.cpp defines `bind_OP`; arrays come as addresses (0: none), the
// stream last.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

#include "cuda/launch.h"

namespace pycap::gpu {

namespace py = pybind11;
using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline cudaStream_t stream_at(Address address) { return reinterpret_cast<cudaStream_t>(address); }

// The emulation's own controls, in csrc/emu.
void bind_emulation(py::module_& m);

}  // namespace pycap::gpu
