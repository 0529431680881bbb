// bfloat16: the upper half of a float32. Storage only; arithmetic happens in float32.
#pragma once
#include <cstdint>

namespace pycap {

struct bf16 {
  uint16_t bits;
};

}  // namespace pycap
