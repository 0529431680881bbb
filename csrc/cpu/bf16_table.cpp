// Gathers the bfloat16 kernels into their table.
#include "pycap/kernels_bf16.h"

namespace pycap::PYCAP_ISA {

extern const Conv2dBf16Kernels conv2d_bf16_kernels;
extern const LinearBf16Kernels linear_bf16_kernels;

extern const Bf16Kernels bf16_table;
const Bf16Kernels bf16_table = {&conv2d_bf16_kernels, &linear_bf16_kernels};

}  // namespace pycap::PYCAP_ISA
