// The functions of pycap._cpu on bfloat16 activations. Arguments are checked, the GIL is released.
#include "bind_bf16.h"

#include <pybind11/stl.h>

#include <cstdlib>

#include "bind_shapes.h"
#include "pycap/kernels_bf16.h"

namespace pycap {
namespace {

using Obj = py::handle;
using Nogil = Released;

const Bf16Kernels* kernels = nullptr;
const std::atomic<int>* thread_number = nullptr;

ConvShape fitting_shape(const Args& a, const Shape& x, const Shape& w, int64_t stride,
                        int64_t padding) {
  const ConvShape s = conv_shape(a, x, w, stride, padding);
  if (!kernels->conv2d->fits(s))
    a.bad_value(
        "the bfloat16 kernels take stride 1 and a padding smaller than the filter; convert to "
        "float32");
  return s;
}

bool conv2d_fits(const Shape& x, const Shape& w, int64_t stride, int64_t padding) {
  return kernels->conv2d->fits(conv_shape(Args("conv2d"), x, w, stride, padding));
}

size_t conv2d_packed_bytes(const Shape& x, const Shape& w, int64_t padding, bool data) {
  return kernels->conv2d->packed_bytes(fitting_shape(Args("conv2d_pack"), x, w, 1, padding), data);
}

void conv2d_pack(Obj packed, Obj w, const Shape& x, int64_t padding, bool data) {
  const Args a("conv2d_pack");
  const ConvShape s = fitting_shape(a, x, a.shape(w, "w", 4), 1, padding);
  const float* pw = a.data<float>(w, "w", {s.K, s.R, s.S, s.C});
  void* to = a.bytes(packed, "packed", kernels->conv2d->packed_bytes(s, data), kOut);
  const int threads = *thread_number;
  Nogil nogil(a);
  kernels->conv2d->pack(to, pw, s, data, threads);
}

size_t conv2d_workspace(const Shape& x, const Shape& w, int64_t padding, bool data) {
  return kernels->conv2d->workspace(fitting_shape(Args("conv2d"), x, w, 1, padding), data,
                                    *thread_number);
}

size_t conv2d_weight_workspace(const Shape& x, const Shape& w, int64_t padding) {
  const Args a("conv2d_backward_weight");
  return kernels->conv2d->weight_workspace(fitting_shape(a, x, w, 1, padding), *thread_number);
}

// w's shape stands for w: its numbers are in `packed`.
void conv2d_forward(Obj y, Obj argmax, Obj x, Obj packed, const Shape& w, Obj b, int64_t padding,
                    bool relu, Obj ws) {
  const Args a(argmax.is_none() ? "conv2d_forward" : "conv2d_pool_forward");
  const ConvShape s = fitting_shape(a, a.shape(x, "x", 4), w, 1, padding);
  const int threads = *thread_number;
  const bf16* px = a.data<bf16>(x, "x", {s.N, s.H, s.W, s.C});
  const float* pb = a.optional<float>(b, "b", {s.K});
  bf16* py = a.data<bf16>(y, "y", output_shape(s, !argmax.is_none()), kOut);
  uint8_t* pa = a.optional<uint8_t>(argmax, "argmax", argmax_shape(s), kOut);
  const void* filters = a.bytes(packed, "packed", kernels->conv2d->packed_bytes(s, false), kIn);
  void* scratch = a.workspace(ws, kernels->conv2d->workspace(s, false, threads));
  Nogil nogil(a);
  kernels->conv2d->forward(py, pa, px, filters, pb, s, relu, scratch, threads);
}

void conv2d_backward_data(Obj dx, Obj dy, Obj packed, const Shape& w, Obj y, Obj argmax,
                          int64_t padding, float beta, Obj ws) {
  const Args a("conv2d_backward_data");
  const ConvShape s = fitting_shape(a, a.shape(dx, "dx", 4), w, 1, padding);
  const int threads = *thread_number;
  const bool pooled = !argmax.is_none();
  bf16* pdx = a.data<bf16>(dx, "dx", {s.N, s.H, s.W, s.C}, kOut);
  const bf16* pdy = a.data<bf16>(dy, "dy", output_shape(s, pooled));
  const bf16* py = a.optional<bf16>(y, "y", output_shape(s, pooled));
  const uint8_t* pa = a.optional<uint8_t>(argmax, "argmax", argmax_shape(s));
  const void* filters = a.bytes(packed, "packed", kernels->conv2d->packed_bytes(s, true), kIn);
  void* scratch = a.workspace(ws, kernels->conv2d->workspace(s, true, threads));
  Nogil nogil(a);
  kernels->conv2d->backward_data(pdx, pdy, filters, py, pa, s, beta, scratch, threads);
}

void conv2d_backward_weight(Obj dw, Obj db, Obj dy, Obj x, Obj y, Obj argmax, int64_t padding,
                            float beta_w, float beta_b, Obj ws) {
  const Args a("conv2d_backward_weight");
  const ConvShape s = fitting_shape(a, a.shape(x, "x", 4), a.shape(dw, "dw", 4), 1, padding);
  const int threads = *thread_number;
  const bool pooled = !argmax.is_none();
  float* pdw = a.data<float>(dw, "dw", {s.K, s.R, s.S, s.C}, kOut);
  float* pdb = a.optional<float>(db, "db", {s.K}, kOut);
  const bf16* pdy = a.data<bf16>(dy, "dy", output_shape(s, pooled));
  const bf16* px = a.data<bf16>(x, "x", {s.N, s.H, s.W, s.C});
  const bf16* py = a.optional<bf16>(y, "y", output_shape(s, pooled));
  const uint8_t* pa = a.optional<uint8_t>(argmax, "argmax", argmax_shape(s));
  void* scratch = a.workspace(ws, kernels->conv2d->weight_workspace(s, threads));
  Nogil nogil(a);
  kernels->conv2d->backward_weight(pdw, pdb, pdy, px, py, pa, s, beta_w, beta_b, scratch, threads);
}

struct Dense {
  int64_t M, I, O;
};

Dense dense_shape(const Args& a, const Shape& x, const Shape& w) {
  if (x[1] != w[1])
    a.bad_value("x " + text(x) + " and w " + text(w) + " disagree about the inputs (second axes)");
  a.check_sizes({x[0], x[1], w[0]});
  return {x[0], x[1], w[0]};
}

void linear_round(Obj rounded, Obj w) {
  const Args a("linear_round");
  const Shape s = a.shape(w, "w", 2);
  const float* pw = a.data<float>(w, "w", s);
  bf16* to = a.data<bf16>(rounded, "rounded", s, kOut);
  const int threads = *thread_number;
  Nogil nogil(a);
  kernels->linear->round(to, pw, s[0] * s[1], threads);
}

size_t linear_forward_workspace(int64_t M, int64_t I, int64_t O) {
  Args("linear_forward").check_sizes({M, I, O});
  return kernels->linear->forward_workspace(M, I, O, *thread_number);
}

size_t linear_backward_workspace(int64_t M, int64_t I, int64_t O) {
  Args("linear_backward").check_sizes({M, I, O});
  return kernels->linear->backward_workspace(M, I, O, *thread_number);
}

// w: float32 weights, or the same rounded to bfloat16.
void linear_forward(Obj y, Obj x, Obj w, Obj b, bool relu, Obj ws) {
  const Args a("linear_forward");
  const Shape shape = a.shape(w, "w", 2);
  const Dense s = dense_shape(a, a.shape(x, "x", 2), shape);
  const int threads = *thread_number;
  const bool is_rounded = a.is_bf16(w, "w");
  const bf16* rounded = is_rounded ? a.data<bf16>(w, "w", shape) : nullptr;
  const float* pw = is_rounded ? nullptr : a.data<float>(w, "w", shape);
  const bf16* px = a.data<bf16>(x, "x", {s.M, s.I});
  const float* pb = a.optional<float>(b, "b", {s.O});
  bf16* py = a.data<bf16>(y, "y", {s.M, s.O}, kOut);
  void* scratch = a.workspace(ws, kernels->linear->forward_workspace(s.M, s.I, s.O, threads));
  Nogil nogil(a);
  kernels->linear->forward(py, px, pw, rounded, pb, s.M, s.I, s.O, relu, scratch, threads);
}

void linear_backward_data(Obj dx, Obj dy, Obj w, Obj y, float beta, Obj ws) {
  const Args a("linear_backward_data");
  const Dense s = dense_shape(a, a.shape(dx, "dx", 2), a.shape(w, "w", 2));
  const int threads = *thread_number;
  bf16* pdx = a.data<bf16>(dx, "dx", {s.M, s.I}, kOut);
  const bf16* pdy = a.data<bf16>(dy, "dy", {s.M, s.O});
  const float* pw = a.data<float>(w, "w", {s.O, s.I});
  const bf16* py = a.optional<bf16>(y, "y", {s.M, s.O});
  void* scratch = a.workspace(ws, kernels->linear->backward_workspace(s.M, s.I, s.O, threads));
  Nogil nogil(a);
  kernels->linear->backward_data(pdx, pdy, pw, py, s.M, s.I, s.O, beta, scratch, threads);
}

void linear_backward_weight(Obj dw, Obj db, Obj dy, Obj x, Obj y, float beta_w, float beta_b,
                            Obj ws) {
  const Args a("linear_backward_weight");
  const Shape from = a.shape(x, "x", 2), to = a.shape(dy, "dy", 2);
  const int64_t M = from[0], I = from[1], O = to[1];
  a.check_sizes({M, I, O});
  const int threads = *thread_number;
  float* pdw = a.optional<float>(dw, "dw", {O, I}, kOut);
  float* pdb = a.optional<float>(db, "db", {O}, kOut);
  const bf16* pdy = a.data<bf16>(dy, "dy", {M, O});
  const bf16* px = a.data<bf16>(x, "x", {M, I});
  const bf16* py = a.optional<bf16>(y, "y", {M, O});
  void* scratch = a.workspace(ws, kernels->linear->backward_workspace(M, I, O, threads));
  Nogil nogil(a);
  kernels->linear->backward_weight(pdw, pdb, pdy, px, py, M, I, O, beta_w, beta_b, scratch,
                                   threads);
}

}  // namespace

const char* bf16_engine() { return kernels ? "amx" : "float32"; }

void bind_bf16(py::module_& m, const char* isa, const std::atomic<int>& threads) {
  const char* error = nullptr;
  if (!select_bf16_kernels(isa, std::getenv("PYCAP_BF16"), &kernels, &error))
    throw py::import_error(error);
  if (!kernels) return;
  thread_number = &threads;
  py::module_ b = m.def_submodule("bf16", "The kernels on bfloat16 activations.");
  b.def("conv2d_fits", conv2d_fits);
  b.def("conv2d_packed_bytes", conv2d_packed_bytes);
  b.def("conv2d_pack", conv2d_pack);
  b.def("conv2d_workspace", conv2d_workspace);
  b.def("conv2d_weight_workspace", conv2d_weight_workspace);
  b.def("conv2d_forward", conv2d_forward);
  b.def("conv2d_backward_data", conv2d_backward_data);
  b.def("conv2d_backward_weight", conv2d_backward_weight);
  b.def("linear_round", linear_round);
  b.def("linear_forward_workspace", linear_forward_workspace);
  b.def("linear_backward_workspace", linear_backward_workspace);
  b.def("linear_forward", linear_forward);
  b.def("linear_backward_data", linear_backward_data);
  b.def("linear_backward_weight", linear_backward_weight);
}

}  // namespace pycap
