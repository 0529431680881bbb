// Binds the weight gradient of 3x3 convolutions.
#include "bind_cuda.h"
#include "cuda/conv2d_weight.h"

namespace pycap::gpu {
namespace {

int splits(int of, int n, int h, int width, int c, int k) {
  return conv2d_weight_splits(products(of), {n, h, width, c, k});
}

void weight(Address dw, Address db, Address partials, Address partials_b, Address dz, Address x,
            int of, int n, int h, int width, int c, int k, int splits, float beta_w, float beta_b,
            Address stream) {
  conv2d_weight(at<float>(dw), at<float>(db), at<float>(partials), at<float>(partials_b),
                at<void>(dz), at<void>(x), products(of), {n, h, width, c, k}, splits, beta_w,
                beta_b, stream_at(stream));
}

}  // namespace

void bind_conv2d_weight(py::module_& m) {
  m.def("conv2d_weight_splits", &splits);
  m.def("conv2d_weight", &weight);
}

}  // namespace pycap::gpu
