// 3x3 convolutions of stride 1 and padding 1 over NHWC, on tensor cores (sm_80 and newer): the
// contract. Mathematics and design: docs/math/conv2d.md.
//
// Pointers are to GPU memory, 16-byte aligned, arrays dense. No two arrays may overlap. c and k
// must be multiples of 8 (float32: of 4), n*h*w and 9*c*k less than 2^31; std::invalid_argument for
// others. T is what `products` multiply. Nothing is allocated and nothing waits, so all
// of these may be captured in a CUDA graph; CudaError where a launch fails. Sums are float32, and
// always taken in the same order.
#pragma once
#include <cstdint>

#include "platform.h"
#include "products.h"

namespace pycap::gpu {

// y = conv(x, filters) + b, then max(y, 0) where `relu`.
void conv2d_forward(void* y,              // out: T [n,h,w,k]
                    const void* x,        // T [n,h,w,c]
                    const void* filters,  // T [k,3,3,c]
                    const float* b,       // [k] or null
                    int n, int h, int w, int c, int k, bool relu, Products products,
                    cudaStream_t stream);

// The same with ReLU, and then the maximum of 2x2 windows; an odd last row or column is dropped.
void conv2d_forward_pool(void* y,              // out: T [n,h/2,w/2,k]
                         uint8_t* argmax,      // out: [n,h/2,w/2,ceil(k/4)]: channel i's winner
                                               // (2*row + column, the first of equals) in bits
                                               // 2*(i%4) of byte i/4. Any alignment.
                         const void* x,        // T [n,h,w,c]
                         const void* filters,  // T [k,3,3,c]
                         const float* b,       // [k] or null
                         int n, int h, int w, int c, int k, Products products, cudaStream_t stream);

// The filters as the data gradient takes them: rotated by 180 degrees, input and output channels
// exchanged, and rounded to T.
void conv2d_turn_filters(void* turned,    // out: T [c,3,3,k]
                         const float* w,  // [k,3,3,c]
                         int c, int k, Products products, cudaStream_t stream);

// How many rows of partial sums conv2d_backward_data makes.
int conv2d_data_tiles(int n, int h, int w, int c);

// dx = beta * dx + the gradient of x. With `below`, dx = that gradient where below > 0, else 0 (the
// ReLU of the layer that made x), and `partials` are dx's sums over pixels, each row those of a
// tile; beta must be 0 then.
void conv2d_backward_data(void* dx,         // out, or in and out where beta is not 0: T [n,h,w,c]
                          float* partials,  // out: [conv2d_data_tiles, c], or null without below
                          const void* dz,   // T [n,h,w,k]
                          const void* turned,  // T [c,3,3,k], by conv2d_turn_filters
                          const void* below,   // T [n,h,w,c] or null
                          int n, int h, int w, int c, int k, float beta, Products products,
                          cudaStream_t stream);

}  // namespace pycap::gpu
