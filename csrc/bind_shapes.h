// Shapes that follow from other arguments' shapes.
#pragma once
#include "bind_check.h"
#include "pycap/conv2d.h"

namespace pycap {

inline ConvShape conv_shape(const Args& a, const Shape& x, const Shape& w, int64_t stride,
                            int64_t padding) {
  if (x.size() != 4) a.bad_value("x must have 4 dimensions, got shape " + text(x));
  if (w.size() != 4) a.bad_value("w must have 4 dimensions, got shape " + text(w));
  if (x[3] != w[3])
    a.bad_value("x " + text(x) + " and w " + text(w) + " disagree about the channels (last axes)");
  if (stride < 1) a.bad_value("stride must be at least 1, got " + std::to_string(stride));
  if (padding < 0) a.bad_value("padding must be at least 0, got " + std::to_string(padding));
  if (w[1] < 1 || w[2] < 1) a.bad_value("w " + text(w) + " has no taps");
  a.check_sizes({x[0], x[1], x[2], x[3]});
  a.check_sizes({w[0], w[1], w[2], w[3]});
  a.check_sizes({stride, padding});
  const int64_t height = x[1] + 2 * padding - w[1], width = x[2] + 2 * padding - w[2];
  if (height < 0 || width < 0)
    a.bad_value("w " + text(w) + " is larger than the padded image of x " + text(x));
  const int64_t P = height / stride + 1, Q = width / stride + 1;
  for (const auto& image : {std::pair(x[1], x[2]), std::pair(P, Q)})
    a.check_sizes({x[0], image.first, image.second, x[3], w[0], w[1], w[2]});
  return {x[0], x[1], x[2], x[3], w[0], w[1], w[2], stride, padding, P, Q};
}

inline Shape output_shape(const ConvShape& s, bool pooled) {
  return pooled ? Shape{s.N, s.P / 2, s.Q / 2, s.K} : Shape{s.N, s.P, s.Q, s.K};
}

inline Shape argmax_shape(const ConvShape& s) { return {s.N, s.P / 2, s.Q / 2, (s.K + 3) / 4}; }

}  // namespace pycap
