// The part of pycap._cpu that serves bfloat16 activations.
#pragma once
#include <pybind11/pybind11.h>

#include <atomic>

namespace pycap {

// Chooses the kernels ($PYCAP_BF16, or the best that the CPU and the float32 kernels' instruction
// set allow) and adds their functions to the module, where there are any, as its part `bf16`.
void bind_bf16(pybind11::module_& m, const char* isa, const std::atomic<int>& threads);

// What multiplies: "amx", or "float32" where there are no such kernels.
const char* bf16_engine();

}  // namespace pycap
