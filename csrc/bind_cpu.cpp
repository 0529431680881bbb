// pybind11 module pycap._cpu: binds the kernels and nothing else. Arguments are checked, the GIL is
// released. Here stand the layers that multiply matrices; bind_*.cpp bind the other groups.
#include "bind_cpu.h"

#include <omp.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>

#include "bind_bf16.h"
#include "bind_shapes.h"

extern "C" {
void scipy_openblas_set_num_threads(int threads);
const char* scipy_openblas_get_config(void);
const char* scipy_openblas_get_corename(void);
}

namespace pycap {

const Kernels* k = nullptr;
std::atomic<int> thread_count{1};

namespace {

void set_num_threads(int n) {
  if (n < 1 || n > 1024)
    throw py::value_error("set_num_threads: n must lie in 1..1024, got " + std::to_string(n));
  thread_count = std::min(n, omp_get_thread_limit());
}

void conv2d_prepare_filters(Obj form, Obj w, const Shape& x, int64_t stride, int64_t padding) {
  const Args a("conv2d_prepare_filters");
  const ConvShape s = conv_shape(a, x, a.shape(w, "w", 4), stride, padding);
  const auto floats = static_cast<int64_t>(k->conv2d->filter_floats(s));
  if (floats == 0) a.bad_value("w " + text({s.K, s.R, s.S, s.C}) + " has no other form");
  const float* pw = a.data<float>(w, "w", {s.K, s.R, s.S, s.C});
  float* pf = a.data<float>(form, "form", {floats}, kOut);
  const int threads = thread_count;
  Nogil nogil(a);
  k->conv2d->prepare_filters(pf, pw, s, threads);
}

void conv2d_force(const std::string& algorithm, const py::object& blocks) {
  const Args a("conv2d_force");
  const char* names[] = {"automatic", "im2col", "direct", "winograd"};
  const auto* found = std::find(std::begin(names), std::end(names), algorithm);
  if (found == std::end(names))
    a.bad_value("algorithm must be automatic, im2col, direct or winograd, got " + algorithm);
  Shape sizes;
  if (!blocks.is_none()) sizes = py::cast<Shape>(blocks);
  const bool small =
      std::all_of(sizes.begin(), sizes.end(), [](int64_t n) { return n <= 1 << 20; });
  const bool whole = small && sizes.size() == 4 && sizes[1] >= 1 && sizes[2] >= 16 &&
                     sizes[2] % 16 == 0 && sizes[3] >= 32 && sizes[3] % 32 == 0;
  if (!blocks.is_none() && !whole)
    a.bad_value(
        "blocks must be (shared, tiles, inputs, outputs), tiles at least 1, inputs in "
        "multiples of 16 and outputs of 32, all at most 2^20, got " +
        text(sizes));
  k->conv2d->force(static_cast<ConvAlgorithm>(found - std::begin(names)),
                   blocks.is_none() ? nullptr : sizes.data());
}

const float* filters(const Args& a, Obj form, const ConvShape& s) {
  return a.optional<float>(form, "form", {static_cast<int64_t>(k->conv2d->filter_floats(s))});
}

void conv2d_forward(Obj y, Obj x, Obj w, Obj form, Obj b, int64_t stride, int64_t padding,
                    bool relu, Obj ws) {
  const Args a("conv2d_forward");
  const ConvShape s = conv_shape(a, a.shape(x, "x", 4), a.shape(w, "w", 4), stride, padding);
  const int threads = thread_count;
  const float* px = a.data<float>(x, "x", {s.N, s.H, s.W, s.C});
  const float* pw = a.data<float>(w, "w", {s.K, s.R, s.S, s.C});
  const float* pf = filters(a, form, s);
  const float* pb = a.optional<float>(b, "b", {s.K});
  float* py = a.data<float>(y, "y", output_shape(s, false), kOut);
  void* scratch = a.workspace(ws, k->conv2d->forward_workspace(s, false, threads));
  Nogil nogil(a);
  k->conv2d->forward(py, px, pw, pf, pb, s, relu, scratch, threads);
}

void conv2d_pool_forward(Obj y, Obj argmax, Obj x, Obj w, Obj form, Obj b, int64_t stride,
                         int64_t padding, Obj ws) {
  const Args a("conv2d_pool_forward");
  const ConvShape s = conv_shape(a, a.shape(x, "x", 4), a.shape(w, "w", 4), stride, padding);
  const int threads = thread_count;
  const float* px = a.data<float>(x, "x", {s.N, s.H, s.W, s.C});
  const float* pw = a.data<float>(w, "w", {s.K, s.R, s.S, s.C});
  const float* pf = filters(a, form, s);
  const float* pb = a.optional<float>(b, "b", {s.K});
  float* py = a.data<float>(y, "y", output_shape(s, true), kOut);
  uint8_t* pa = a.data<uint8_t>(argmax, "argmax", argmax_shape(s), kOut);
  void* scratch = a.workspace(ws, k->conv2d->forward_workspace(s, true, threads));
  Nogil nogil(a);
  k->conv2d->pool_forward(py, pa, px, pw, pf, pb, s, scratch, threads);
}

void conv2d_backward_data(Obj dx, Obj dy, Obj w, Obj y, Obj argmax, int64_t stride, int64_t padding,
                          float beta, Obj ws) {
  const Args a("conv2d_backward_data");
  const ConvShape s = conv_shape(a, a.shape(dx, "dx", 4), a.shape(w, "w", 4), stride, padding);
  const int threads = thread_count;
  const bool pooled = !argmax.is_none();
  float* pdx = a.data<float>(dx, "dx", {s.N, s.H, s.W, s.C}, kOut);
  const float* pdy = a.data<float>(dy, "dy", output_shape(s, pooled));
  const float* pw = a.data<float>(w, "w", {s.K, s.R, s.S, s.C});
  const float* py = a.optional<float>(y, "y", output_shape(s, pooled));
  const uint8_t* pa = a.optional<uint8_t>(argmax, "argmax", argmax_shape(s));
  void* scratch = a.workspace(ws, k->conv2d->backward_data_workspace(s, py || pa, threads));
  Nogil nogil(a);
  k->conv2d->backward_data(pdx, pdy, pw, py, pa, s, beta, scratch, threads);
}

void conv2d_backward_weight(Obj dw, Obj db, Obj dy, Obj x, Obj y, Obj argmax, int64_t stride,
                            int64_t padding, float beta_w, float beta_b, Obj ws) {
  const Args a("conv2d_backward_weight");
  const ConvShape s = conv_shape(a, a.shape(x, "x", 4), a.shape(dw, "dw", 4), stride, padding);
  const int threads = thread_count;
  const bool pooled = !argmax.is_none();
  float* pdw = a.data<float>(dw, "dw", {s.K, s.R, s.S, s.C}, kOut);
  float* pdb = a.optional<float>(db, "db", {s.K}, kOut);
  const float* pdy = a.data<float>(dy, "dy", output_shape(s, pooled));
  const float* px = a.data<float>(x, "x", {s.N, s.H, s.W, s.C});
  const float* py = a.optional<float>(y, "y", output_shape(s, pooled));
  const uint8_t* pa = a.optional<uint8_t>(argmax, "argmax", argmax_shape(s));
  void* scratch = a.workspace(ws, k->conv2d->backward_weight_workspace(s, py || pa, threads));
  Nogil nogil(a);
  k->conv2d->backward_weight(pdw, pdb, pdy, px, py, pa, s, beta_w, beta_b, scratch, threads);
}

void linear_forward(Obj y, Obj x, Obj w, Obj b, bool relu) {
  const Args a("linear_forward");
  const int64_t M = a.shape(x, "x", 2)[0];
  const Shape sw = a.shape(w, "w", 2);
  const float* px = a.data<float>(x, "x", {M, sw[1]});
  const float* pw = a.data<float>(w, "w", sw);
  const float* pb = a.optional<float>(b, "b", {sw[0]});
  float* py = a.data<float>(y, "y", {M, sw[0]}, kOut);
  a.check_sizes({M, sw[1], sw[0]});
  const int threads = thread_count;
  Nogil nogil(a);
  k->linear->forward(py, px, pw, pb, M, sw[1], sw[0], relu, threads);
}

// Whoever asks for a workspace and then calls the kernel reads the number of threads once: another
// Python thread may set it between.
size_t linear_backward_workspace(int64_t M, int64_t I, int64_t O, bool masked, int threads) {
  Args("linear_backward").check_sizes({M, I, O});
  return k->linear->backward_workspace(M, I, O, masked, threads);
}

void linear_backward_data(Obj dx, Obj dy, Obj w, Obj y, float beta, Obj ws) {
  const Args a("linear_backward_data");
  const int64_t M = a.shape(dy, "dy", 2)[0];
  const Shape sw = a.shape(w, "w", 2);
  float* pdx = a.data<float>(dx, "dx", {M, sw[1]}, kOut);
  const float* pdy = a.data<float>(dy, "dy", {M, sw[0]});
  const float* pw = a.data<float>(w, "w", sw);
  const float* py = a.optional<float>(y, "y", {M, sw[0]});
  const int threads = thread_count;
  void* scratch = a.workspace(ws, linear_backward_workspace(M, sw[1], sw[0], py, threads));
  Nogil nogil(a);
  k->linear->backward_data(pdx, pdy, pw, py, M, sw[1], sw[0], beta, scratch, threads);
}

void linear_backward_weight(Obj dw, Obj db, Obj dy, Obj x, Obj y, float beta_w, float beta_b,
                            Obj ws) {
  const Args a("linear_backward_weight");
  const Shape sx = a.shape(x, "x", 2);
  const int64_t M = sx[0], I = sx[1], O = a.shape(dy, "dy", 2)[1];
  float* pdw = a.optional<float>(dw, "dw", {O, I}, kOut);
  float* pdb = a.optional<float>(db, "db", {O}, kOut);
  const float* pdy = a.data<float>(dy, "dy", {M, O});
  const float* px = a.data<float>(x, "x", sx);
  const float* py = a.optional<float>(y, "y", {M, O});
  const int threads = thread_count;
  void* scratch = a.workspace(ws, linear_backward_workspace(M, I, O, py, threads));
  Nogil nogil(a);
  k->linear->backward_weight(pdw, pdb, pdy, px, py, M, I, O, beta_w, beta_b, scratch, threads);
}

size_t lstm_workspace(const Args& a, const LstmShape& s, bool backward, int threads) {
  a.check_sizes({s.T, s.N, std::max(s.I, s.H), s.H});
  return backward ? k->lstm->backward_workspace(s, threads)
                  : k->lstm->forward_workspace(s, threads);
}

void lstm_forward(Obj h, Obj c, Obj gates, Obj x, Obj h0, Obj c0, Obj w_x, Obj w_h, Obj b, Obj mask,
                  Obj ws) {
  const Args a("lstm_forward");
  const Shape sx = a.shape(x, "x", 3);
  const LstmShape s{sx[0], sx[1], sx[2], a.shape(w_h, "w_h", 2)[1]};
  float* ph = a.data<float>(h, "h", {s.T, s.N, s.H}, kOut);
  float* pc = a.data<float>(c, "c", {s.T, s.N, s.H}, kOut);
  float* pg = a.data<float>(gates, "gates", {s.T, s.N, 4 * s.H}, kOut);
  const float* px = a.data<float>(x, "x", sx);
  const float* ph0 = a.optional<float>(h0, "h0", {s.N, s.H});
  const float* pc0 = a.optional<float>(c0, "c0", {s.N, s.H});
  const float* pwx = a.data<float>(w_x, "w_x", {4 * s.H, s.I});
  const float* pwh = a.data<float>(w_h, "w_h", {4 * s.H, s.H});
  const float* pb = a.data<float>(b, "b", {4 * s.H});
  const uint8_t* pm = a.optional<uint8_t>(mask, "mask", {s.T, s.N});
  const int threads = thread_count;
  void* scratch = a.workspace(ws, lstm_workspace(a, s, false, threads));
  Nogil nogil(a);
  k->lstm->forward(ph, pc, pg, px, ph0, pc0, pwx, pwh, pb, pm, s, scratch, threads);
}

void lstm_backward(Obj dx, Obj dw_x, Obj dw_h, Obj db, Obj dh0, Obj dc0, Obj gates, Obj dh,
                   Obj dc_n, Obj x, Obj h, Obj c, Obj h0, Obj c0, Obj w_x, Obj w_h, Obj mask,
                   Obj betas, Obj ws) {
  const Args a("lstm_backward");
  const Shape sx = a.shape(x, "x", 3);
  const LstmShape s{sx[0], sx[1], sx[2], a.shape(w_h, "w_h", 2)[1]};
  const Shape state{s.N, s.H}, states{s.T, s.N, s.H};
  float* pdx = a.optional<float>(dx, "dx", sx, kOut);
  float* pdwx = a.optional<float>(dw_x, "dw_x", {4 * s.H, s.I}, kOut);
  float* pdwh = a.optional<float>(dw_h, "dw_h", {4 * s.H, s.H}, kOut);
  float* pdb = a.optional<float>(db, "db", {4 * s.H}, kOut);
  float* pdh0 = a.optional<float>(dh0, "dh0", state, kOut);
  float* pdc0 = a.optional<float>(dc0, "dc0", state, kOut);
  float* pg = a.data<float>(gates, "gates", {s.T, s.N, 4 * s.H}, kOut);
  const float* pdh = a.optional<float>(dh, "dh", states);
  const float* pdcn = a.optional<float>(dc_n, "dc_n", state);
  const float* px = a.data<float>(x, "x", sx);
  // The last h meets no weight, so a single step needs none.
  const float* ph = s.T <= 1 ? a.optional<float>(h, "h", states) : a.data<float>(h, "h", states);
  const float* pc = a.data<float>(c, "c", states);
  const float* ph0 = a.optional<float>(h0, "h0", state);
  const float* pc0 = a.optional<float>(c0, "c0", state);
  const float* pwx = a.data<float>(w_x, "w_x", {4 * s.H, s.I});
  const float* pwh = a.data<float>(w_h, "w_h", {4 * s.H, s.H});
  const uint8_t* pm = a.optional<uint8_t>(mask, "mask", {s.T, s.N});
  const std::vector<float> beta = a.floats(betas, "betas", 6);
  const int threads = thread_count;
  void* scratch = a.workspace(ws, lstm_workspace(a, s, true, threads));
  Nogil nogil(a);
  k->lstm->backward(pdx, pdwx, pdwh, pdb, pdh0, pdc0, pg, pdh, pdcn, px, ph, pc, ph0, pc0, pwx, pwh,
                    pm, beta.data(), s, scratch, threads);
}

void linear_xent_forward(Obj loss, Obj dlogits, Obj h, Obj w, Obj b, Obj targets) {
  const Args a("linear_xent_forward");
  const Shape sw = a.shape(w, "w", 2);
  const int64_t M = a.shape(h, "h", 2)[0], V = sw[0], H = sw[1];
  float* pl = a.data<float>(loss, "loss", {M}, kOut);
  float* pd = a.data<float>(dlogits, "dlogits", {M, V}, kOut);
  const float* ph = a.data<float>(h, "h", {M, H});
  const float* pw = a.data<float>(w, "w", sw);
  const float* pb = a.optional<float>(b, "b", {V});
  const int32_t* pt = a.data<int32_t>(targets, "targets", {M});
  a.check_ids(pt, M, V, "targets");
  a.check_sizes({M, H, V});
  Nogil nogil(a);
  k->softmax_xent->forward(pl, pd, ph, pw, pb, pt, M, H, V, thread_count);
}

void linear_xent_backward(Obj dh, Obj dw, Obj db, Obj dlogits, Obj h, Obj w, float scale,
                          Obj betas) {
  const Args a("linear_xent_backward");
  const Shape sw = a.shape(w, "w", 2);
  const int64_t M = a.shape(h, "h", 2)[0], V = sw[0], H = sw[1];
  float* pdh = a.optional<float>(dh, "dh", {M, H}, kOut);
  float* pdw = a.optional<float>(dw, "dw", {V, H}, kOut);
  float* pdb = a.optional<float>(db, "db", {V}, kOut);
  const float* pd = a.data<float>(dlogits, "dlogits", {M, V});
  const float* ph = a.data<float>(h, "h", {M, H});
  const float* pw = a.data<float>(w, "w", sw);
  const std::vector<float> beta = a.floats(betas, "betas", 3);
  a.check_sizes({M, H, V});
  Nogil nogil(a);
  k->softmax_xent->backward(pdh, pdw, pdb, pd, ph, pw, scale, beta.data(), M, H, V, thread_count);
}

void log_softmax_topk(Obj values, Obj indices, Obj logits, const std::vector<int64_t>& suppress) {
  const Args a("log_softmax_topk");
  const Shape s = a.shape(logits, "logits", 2);
  const int64_t n = a.shape(values, "values", 2)[1];
  if (n > s[1])
    a.bad_value("values asks for the best " + std::to_string(n) + " of " + std::to_string(s[1]));
  for (int64_t id : suppress)
    if (id < 0 || id >= s[1])
      throw py::index_error("log_softmax_topk: suppress names " + std::to_string(id) +
                            ", outside 0.." + std::to_string(s[1] - 1));
  float* pv = a.data<float>(values, "values", {s[0], n}, kOut);
  int32_t* pi = a.data<int32_t>(indices, "indices", {s[0], n}, kOut);
  const float* pl = a.data<float>(logits, "logits", s);
  Nogil nogil(a);
  k->softmax_xent->log_softmax_topk(pv, pi, pl, suppress.data(),
                                    static_cast<int64_t>(suppress.size()), s[0], s[1], n,
                                    thread_count);
}

py::dict info() {
  py::dict d;
  d["isa"] = k->isa;
  d["threads"] = thread_count.load();
  d["bf16"] = bf16_engine();
  d["openmp"] = _OPENMP;
  d["openblas"] = std::string(scipy_openblas_get_config());
  d["openblas_core"] = std::string(scipy_openblas_get_corename());
  d["compiler"] = __VERSION__;
  d["sanitize"] = PYCAP_SANITIZE;
#if defined(PYCAP_EMULATE)
  d["emulated"] = true;
#endif
  return d;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "pycap's CPU kernels; pycap.backends.cpp gives them the names of the primitives.";
  const char* error = nullptr;
  k = select_kernels(std::getenv("PYCAP_ISA"), &error);
  if (!k) throw py::import_error(error);
  omp_set_dynamic(0);
  scipy_openblas_set_num_threads(1);
  set_num_threads(std::max(1, omp_get_max_threads()));

  m.def("set_num_threads", set_num_threads, py::arg("n"));
  m.def("get_num_threads", [] { return thread_count.load(); });
  m.def("isa", [] { return std::string(k->isa); });
  m.def("info", info);

  bind_bf16(m, k->isa, thread_count);

  m.def("conv2d_filter_floats",
        [](const Shape& x, const Shape& w, int64_t stride, int64_t padding) {
          const ConvShape s = conv_shape(Args("conv2d_filter_floats"), x, w, stride, padding);
          return k->conv2d->filter_floats(s);
        });
  m.def("conv2d_prepare_filters", conv2d_prepare_filters);
  m.def("conv2d_force", conv2d_force, "algorithm"_a, "blocks"_a);
  m.def("conv2d_forward_workspace",
        [](const Shape& x, const Shape& w, int64_t stride, int64_t padding, bool pool) {
          const ConvShape s = conv_shape(Args("conv2d_forward"), x, w, stride, padding);
          return k->conv2d->forward_workspace(s, pool, thread_count);
        });
  m.def("conv2d_backward_data_workspace",
        [](const Shape& x, const Shape& w, int64_t stride, int64_t padding, bool masked) {
          const ConvShape s = conv_shape(Args("conv2d_backward_data"), x, w, stride, padding);
          return k->conv2d->backward_data_workspace(s, masked, thread_count);
        });
  m.def("conv2d_backward_weight_workspace",
        [](const Shape& x, const Shape& w, int64_t stride, int64_t padding, bool masked) {
          const ConvShape s = conv_shape(Args("conv2d_backward_weight"), x, w, stride, padding);
          return k->conv2d->backward_weight_workspace(s, masked, thread_count);
        });
  m.def("conv2d_algorithm",
        [](const Shape& x, const Shape& w, int64_t stride, int64_t padding, int pass) {
          const ConvShape s = conv_shape(Args("conv2d_algorithm"), x, w, stride, padding);
          return std::string(k->conv2d->algorithm(s, pass, thread_count));
        });
  m.def("conv2d_forward", conv2d_forward);
  m.def("conv2d_pool_forward", conv2d_pool_forward);
  m.def("conv2d_backward_data", conv2d_backward_data);
  m.def("conv2d_backward_weight", conv2d_backward_weight);
  m.def("linear_forward", linear_forward, "y"_a, "x"_a, "w"_a, "b"_a, "relu"_a);
  m.def("linear_backward_workspace", [](int64_t M, int64_t I, int64_t O, bool masked) {
    return linear_backward_workspace(M, I, O, masked, thread_count);
  });
  m.def("linear_backward_data", linear_backward_data);
  m.def("linear_backward_weight", linear_backward_weight);
  m.def("lstm_workspace", [](int64_t T, int64_t N, int64_t I, int64_t H, bool backward) {
    return lstm_workspace(Args("lstm"), {T, N, I, H}, backward, thread_count);
  });
  m.def("lstm_forward", lstm_forward);
  m.def("lstm_backward", lstm_backward);
  m.def("linear_xent_forward", linear_xent_forward, "loss"_a, "dlogits"_a, "h"_a, "w"_a, "b"_a,
        "targets"_a);
  m.def("linear_xent_backward", linear_xent_backward, "dh"_a, "dw"_a, "db"_a, "dlogits"_a, "h"_a,
        "w"_a, "scale"_a, "betas"_a);
  m.def("log_softmax_topk", log_softmax_topk, "values"_a, "indices"_a, "logits"_a, "suppress"_a);

  bind_elementwise(m);
  bind_optim(m);
  bind_resize(m);
}

}  // namespace pycap
