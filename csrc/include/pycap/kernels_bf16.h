// The table of bfloat16 kernels, and whether this CPU runs them.
#pragma once
#include "pycap/conv2d_bf16.h"
#include "pycap/linear_bf16.h"

namespace pycap {

struct Bf16Kernels {
  const Conv2dBf16Kernels* conv2d;
  const LinearBf16Kernels* linear;
};

// The tile kernels for `wish`: "amx", "float32" (*kernels is null then: everything goes through the
// float32 kernels), or null or "" for the best that this CPU runs beside the float32 kernels of
// `isa`. On an impossible wish returns false and points *error at a message that lives until the
// next call.
bool select_bf16_kernels(const char* isa, const char* wish, const Bf16Kernels** kernels,
                         const char** error);

}  // namespace pycap
