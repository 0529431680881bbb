// What numbers a kernel multiplies, and how: an argument of the launchers, as an int in bindings.
#pragma once
#include <stdexcept>
#include <string>

namespace pycap::gpu {

enum class Products : int {
  tf32x3,    // float32, each product as three of TensorFloat-32: about float32's own precision
  tf32,      // float32, each factor rounded to TensorFloat-32 (10 bits of mantissa)
  bfloat16,  // exact products, as of float16
  float16,
};

// Bytes of a number that is multiplied.
inline int element_size(Products products) {
  return products == Products::bfloat16 || products == Products::float16 ? 2 : 4;
}

inline Products products(int number) {
  if (number < 0 || number > static_cast<int>(Products::float16))
    throw std::invalid_argument("products: " + std::to_string(number) +
                                " is none of 0 (tf32x3), 1 (tf32), 2 (bfloat16), 3 (float16)");
  return static_cast<Products>(number);
}

}  // namespace pycap::gpu
