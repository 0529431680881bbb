// The first convolution of a network, from images of bytes: 3x3, stride 1, padding 1, of three
// colours, with crop, mirror and normalisation in its loads: the contract of the CUDA kernels.
#pragma once
#include "platform.h"
#include "products.h"

namespace pycap::gpu {

// n images of h x width, windows of p x q of them, k filters: a multiple of as many numbers as 16
// bytes hold in the type of the output.
struct FirstLayer {
  int n, h, width, k, p, q;
};

// What it sees, all in: x uint8 [n,h,width,3]; crops int32 [n,3]: top and left of an image's
// window, which must lie inside the image, and whether to mirror it; scale, shift float32 [3]: a
// pixel is value * scale + shift, rounded to the type of the output, and 0 outside the window.
struct Bytes {
  const uint8_t* x;
  const int* crops;
  const float *scale, *shift;
};

// y [n,p,q,k] = the convolution of the windows with w, plus b, and its ReLU if `relu`. y is in the
// type that `products` names, at a multiple of 16 bytes; w float32 [k,3,3,3], rounded to y's type
// before the product; b float32 [k] or null. None may overlap another.
void conv2d_first_forward(void* y, const Bytes& images, const float* w, const float* b,
                          Products products, const FirstLayer& s, bool relu, cudaStream_t stream);

// Into how many sums the pixels are split so that blocks fill the current GPU: at least 1.
int conv2d_first_splits(Products products, const FirstLayer& s);

// dw float32 [k,3,3,3] = beta_w * dw + the gradient of w, and db float32 [k] = beta_b * db + that
// of b, or null; with a beta of 0 the old is not read. partials float32 [splits,k,3,3,3] and
// partials_b float32 [splits,k] (null where db is): scratch. dy [n,p,q,k]: in; it counts where y
// [n,p,q,k] > 0, or everywhere where y is null. All but the images at multiples of 16 bytes; none
// may overlap another. Sums are float32, and the same bits on every run with the same splits.
void conv2d_first_weight(float* dw, float* db, float* partials, float* partials_b, const void* dy,
                         const void* y, const Bytes& images, Products products, const FirstLayer& s,
                         int splits, float beta_w, float beta_b, cudaStream_t stream);

}  // namespace pycap::gpu
