// Binds the primitives that move numbers rather than multiply them, in float32 and bfloat16:
// pooling, dropout, gathering rows, image preparation, casts.
#include "bind_cpu.h"

namespace pycap {
namespace {

template <class T>
const ActivationKernels<T>& kernels() {
  if constexpr (std::is_same_v<T, bf16>)
    return k->in_bf16;
  else
    return k->in_float;
}

// Calls `body` with a number of the type that an activation is stored in: float, or bf16.
template <class Body>
void for_storage(const Args& a, Obj activation, const char* name, const Body& body) {
  if (a.is_bf16(activation, name))
    body(bf16{});
  else
    body(float{});
}

void maxpool_forward(Obj y, Obj argmax, Obj x) {
  const Args a("maxpool_forward");
  const Shape s = a.shape(x, "x", 4), pooled{s[0], s[1] / 2, s[2] / 2, s[3]};
  uint8_t* pa = a.data<uint8_t>(argmax, "argmax", {s[0], s[1] / 2, s[2] / 2, (s[3] + 3) / 4}, kOut);
  for_storage(a, x, "x", [&](auto storage) {
    using T = decltype(storage);
    const T* px = a.data<T>(x, "x", s);
    T* py = a.data<T>(y, "y", pooled, kOut);
    Nogil nogil(a);
    kernels<T>().pool->forward(py, pa, px, s[0], s[1], s[2], s[3], thread_count);
  });
}

void maxpool_backward(Obj dx, Obj dy, Obj argmax, float beta) {
  const Args a("maxpool_backward");
  const Shape s = a.shape(dx, "dx", 4), pooled{s[0], s[1] / 2, s[2] / 2, s[3]};
  const uint8_t* pa = a.data<uint8_t>(argmax, "argmax", {s[0], s[1] / 2, s[2] / 2, (s[3] + 3) / 4});
  for_storage(a, dy, "dy", [&](auto storage) {
    using T = decltype(storage);
    T* pdx = a.data<T>(dx, "dx", s, kOut);
    const T* pdy = a.data<T>(dy, "dy", pooled);
    Nogil nogil(a);
    kernels<T>().pool->backward(pdx, pdy, pa, s[0], s[1], s[2], s[3], beta, thread_count);
  });
}

void dropout(Obj y, Obj x, double p, uint64_t seed, int64_t total, int64_t offset, float beta) {
  const Args a("dropout");
  const Shape s = a.shape(x, "x", 3);
  if (!(p >= 0.0 && p <= 1.0)) a.bad_value("p must lie in 0..1, got " + std::to_string(p));
  for_storage(a, x, "x", [&](auto storage) {
    using T = decltype(storage);
    const T* px = a.data<T>(x, "x", s);
    T* py = a.data<T>(y, "y", s, kOut);
    Nogil nogil(a, beta == 0.0f ? py : nullptr);
    kernels<T>().dropout->apply(py, px, s[0], s[1], s[2], p, seed, total, offset, beta,
                                thread_count);
  });
}

void embedding_forward(Obj y, Obj table, Obj ids) {
  const Args a("embedding_forward");
  const Shape s = a.shape(table, "table", 2);
  const int64_t M = a.shape(ids, "ids", 1)[0];
  const int32_t* pi = a.data<int32_t>(ids, "ids", {M});
  for_storage(a, table, "table", [&](auto storage) {
    using T = decltype(storage);
    const T* pt = a.data<T>(table, "table", s);
    T* py = a.data<T>(y, "y", {M, s[1]}, kOut);
    a.check_ids(pi, M, s[0], "ids", -1);
    Nogil nogil(a);
    kernels<T>().embedding->forward(py, pt, pi, M, s[1], thread_count);
  });
}

size_t embedding_backward_workspace(int64_t M, int64_t V, bool bfloat16) {
  Args("embedding_backward").check_sizes({M, V});
  return bfloat16 ? kernels<bf16>().embedding->backward_workspace(M, V)
                  : kernels<float>().embedding->backward_workspace(M, V);
}

void embedding_backward(Obj dtable, Obj dy, Obj ids, Obj stale, float beta, Obj ws) {
  const Args a("embedding_backward");
  const Shape s = a.shape(dtable, "dtable", 2);
  const int64_t M = a.shape(ids, "ids", 1)[0];
  const int64_t n_stale = stale.is_none() ? 0 : a.shape(stale, "stale", 1)[0];
  const int32_t* pi = a.data<int32_t>(ids, "ids", {M});
  const int32_t* ps = a.optional<int32_t>(stale, "stale", {n_stale});
  for_storage(a, dy, "dy", [&](auto storage) {
    using T = decltype(storage);
    T* pt = a.data<T>(dtable, "dtable", s, kOut);
    const T* pd = a.data<T>(dy, "dy", {M, s[1]});
    a.check_ids(pi, M, s[0], "ids", -1);
    a.check_ids(ps, n_stale, s[0], "stale");
    const auto& embedding = *kernels<T>().embedding;
    void* scratch = a.workspace(ws, embedding.backward_workspace(M, s[0]));
    Nogil nogil(a);
    embedding.backward(pt, pd, pi, ps, M, s[0], s[1], n_stale, beta, scratch, thread_count);
  });
}

void preprocess(Obj y, Obj x, Obj crops, Obj scale, Obj shift) {
  const Args a("preprocess");
  const Shape sx = a.shape(x, "x", 4), sy = a.shape(y, "y", 4);
  const int64_t N = sx[0], H = sx[1], W = sx[2], P = sy[1], Q = sy[2];
  const uint8_t* px = a.data<uint8_t>(x, "x", {N, H, W, 3});
  const int32_t* pc = a.data<int32_t>(crops, "crops", {N, 3});
  const float* scales = a.data<float>(scale, "scale", {3});
  const float* shifts = a.data<float>(shift, "shift", {3});
  for (int64_t n = 0; n < N; ++n) {
    const int64_t top = pc[3 * n], left = pc[3 * n + 1];
    if (top < 0 || left < 0 || top + P > H || left + Q > W)
      a.bad_value("crops[" + std::to_string(n) + "] at (" + std::to_string(top) + ", " +
                  std::to_string(left) + ") of " + std::to_string(P) + "x" + std::to_string(Q) +
                  " leaves the image of " + std::to_string(H) + "x" + std::to_string(W));
  }
  for_storage(a, y, "y", [&](auto storage) {
    using T = decltype(storage);
    T* py = a.data<T>(y, "y", {N, P, Q, 3}, kOut);
    Nogil nogil(a);
    kernels<T>().preprocess->apply(py, px, pc, scales, shifts, N, H, W, P, Q, thread_count);
  });
}

void cast(Obj y, Obj x, float beta) {
  const Args a("cast");
  const Shape s = a.shape(x, "x");
  int64_t n = 1;
  for (int64_t extent : s) n *= extent;
  const bool from = a.is_bf16(x, "x"), to = a.is_bf16(y, "y");
  const auto run = [&](auto kernel, auto* py, const auto* px) {
    Nogil nogil(a);
    kernel(py, px, n, beta, thread_count);
  };
  if (from && to)
    run(k->cast->bf16_to_bf16, a.data<bf16>(y, "y", s, kOut), a.data<bf16>(x, "x", s));
  else if (from)
    run(k->cast->to_float, a.data<float>(y, "y", s, kOut), a.data<bf16>(x, "x", s));
  else if (to)
    run(k->cast->to_bf16, a.data<bf16>(y, "y", s, kOut), a.data<float>(x, "x", s));
  else
    run(k->cast->float_to_float, a.data<float>(y, "y", s, kOut), a.data<float>(x, "x", s));
}

}  // namespace

void bind_elementwise(py::module_& m) {
  m.def("maxpool_forward", maxpool_forward, "y"_a, "argmax"_a, "x"_a);
  m.def("maxpool_backward", maxpool_backward, "dx"_a, "dy"_a, "argmax"_a, "beta"_a);
  m.def("dropout", dropout, "y"_a, "x"_a, "p"_a, "seed"_a, "total"_a, "offset"_a, "beta"_a);
  m.def("embedding_forward", embedding_forward, "y"_a, "table"_a, "ids"_a);
  m.def("embedding_backward_workspace", embedding_backward_workspace);
  m.def("embedding_backward", embedding_backward);
  m.def("preprocess", preprocess, "y"_a, "x"_a, "crops"_a, "scale"_a, "shift"_a);
  m.def("cast", cast, "y"_a, "x"_a, "beta"_a);
}

}  // namespace pycap
