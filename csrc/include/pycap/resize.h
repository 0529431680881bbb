// Squashing an image (antialiased bilinear, Pillow's arithmetic): the contract of the CPU kernel.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pycap {

// Of an image of H x W, what lies in the first `high` x `wide` of it, fractions of a pixel
// included, becomes P x Q; no side is longer than kLongest.
struct ResizeShape {
  static constexpr int64_t kLongest = 65535;
  int64_t H, W, P, Q;
  double high, wide;
};

// Null where the instruction set has no kernel.
struct ResizeKernels {
  size_t (*workspace)(const ResizeShape&);
  // y [P,Q,3] out; x [H,W,4] (R, G, B, unused); ws: at least workspace() bytes. One thread.
  void (*bilinear)(uint8_t* y, const uint8_t* x, const ResizeShape&, void* ws);
};

}  // namespace pycap
