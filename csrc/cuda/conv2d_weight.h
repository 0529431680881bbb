// Weight gradient of 3x3 convolutions with stride 1 and padding 1: the contract of the CUDA
// kernels.
#pragma once
#include "platform.h"
#include "products.h"

namespace pycap::gpu {

// The layer: images x [n,h,width,c], filters w [k,3,3,c], output [n,h,width,k]. c and k are
// multiples of as many numbers as 16 bytes hold; n * (width + 1) + 64 must be less than 2**31.
struct Conv3x3 {
  int n, h, width, c, k;
};

// Into how many sums the pixels are split so that blocks fill the current GPU: at least 1.
int conv2d_weight_splits(Products products, const Conv3x3& s);

// dw float32 [k,3,3,c] = beta_w * dw + the sum over pixels of dz times x, and db float32 [k] =
// beta_b * db + the sum over pixels of dz, or null; with a beta of 0 the old is not read.
// partials float32 [splits,k,3,3,c] and partials_b float32 [splits,k] (null where db is): scratch,
// untouched with one split. dz [n,h,width,k], x [n,h,width,c]: in, in the type that `products`
// names. All at multiples of 16 bytes; none may overlap another. Sums are float32, and the same
// bits on every run with the same splits.
void conv2d_weight(float* dw, float* db, float* partials, float* partials_b, const void* dz,
                   const void* x, Products products, const Conv3x3& s, int splits, float beta_w,
                   float beta_b, cudaStream_t stream);

}  // namespace pycap::gpu
