// The table of bfloat16 kernels that one way of multiplying exports, and the choice among them.
#pragma once
#include "pycap/conv2d_bf16.h"
#include "pycap/linear_bf16.h"

namespace pycap {

struct Bf16Kernels {
  const Conv2dBf16Kernels* conv2d;
  const LinearBf16Kernels* linear;
};

// The table for `wish` ("amx", "avx512-bf16", "emulated"; null or "": the best that this CPU runs)
// beside the float32 kernels of `isa`. On an impossible wish returns null and points *error at a
// message that lives until the next call.
const Bf16Kernels* select_bf16_kernels(const char* isa, const char* wish, const char** error);

}  // namespace pycap
