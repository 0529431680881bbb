// Winograd F(4x4, 3x3) transforms over vectors of channels, and the loading and storing of tiles.
//
// Interpolation points 0, +-1/sqrt(2), +-sqrt(2), infinity: they keep the transforms' entries near
// 1, which loses less precision than the usual 0, +-1, +-2. The relative error against float64 is
// about 2e-6.
#pragma once
#include "argmax.h"
#include "pycap/conv2d.h"

namespace {

constexpr float kA = 0.70710678118654752f, kB = 1.41421356237309505f;
constexpr float kA3 = 0.35355339059327376f, kB3 = 2.82842712474619010f;

// Input: 6 -> 6, B^T d.
inline void transform_input(Vec* o, int so, const Vec* d, int sd) {
  const Vec d0 = d[0], d1 = d[sd], d2 = d[2 * sd], d3 = d[3 * sd], d4 = d[4 * sd], d5 = d[5 * sd];
  const Vec p1 = d4 - 2.0f * d2, q1 = kA * (d3 - 2.0f * d1);
  const Vec p2 = d4 - 0.5f * d2, q2 = kB * (d3 - 0.5f * d1);
  o[0] = d0 - 2.5f * d2 + d4;
  o[so] = p1 + q1;
  o[2 * so] = p1 - q1;
  o[3 * so] = p2 + q2;
  o[4 * so] = p2 - q2;
  o[5 * so] = d1 - 2.5f * d3 + d5;
}

// Output: 6 -> 4, A^T m.
inline void transform_output(Vec* o, int so, const Vec* m, int sm) {
  const Vec s1 = m[sm] + m[2 * sm], d1 = m[sm] - m[2 * sm];
  const Vec s2 = m[3 * sm] + m[4 * sm], d2 = m[3 * sm] - m[4 * sm];
  o[0] = m[0] + s1 + s2;
  o[so] = kA * d1 + kB * d2;
  o[2 * so] = 0.5f * s1 + 2.0f * s2;
  o[3 * so] = kA3 * d1 + kB3 * d2 + m[5 * sm];
}

// The transpose of the output transform: 4 -> 6, A dy.
inline void transform_gradient(Vec* o, int so, const Vec* y, int sy) {
  const Vec e1 = y[0] + 0.5f * y[2 * sy], o1 = kA * y[sy] + kA3 * y[3 * sy];
  const Vec e2 = y[0] + 2.0f * y[2 * sy], o2 = kB * y[sy] + kB3 * y[3 * sy];
  o[0] = y[0];
  o[so] = e1 + o1;
  o[2 * so] = e1 - o1;
  o[3 * so] = e2 + o2;
  o[4 * so] = e2 - o2;
  o[5 * so] = y[3 * sy];
}

// Filter: 3 -> 6, G w.
inline void transform_filter(Vec* o, int so, const Vec* w, int sw) {
  const Vec e1 = (-2.0f / 3.0f) * w[0] - (1.0f / 3.0f) * w[2 * sw], o1 = (-kB / 3.0f) * w[sw];
  const Vec e2 = (1.0f / 6.0f) * w[0] + (1.0f / 3.0f) * w[2 * sw], o2 = (kB / 6.0f) * w[sw];
  o[0] = w[0];
  o[so] = e1 + o1;
  o[2 * so] = e1 - o1;
  o[3 * so] = e2 + o2;
  o[4 * so] = e2 - o2;
  o[5 * so] = w[2 * sw];
}

// The transpose of the filter transform: 6 -> 3, G^T dU.
inline void transform_filter_gradient(Vec* o, int so, const Vec* u, int su) {
  const Vec s1 = u[su] + u[2 * su], d1 = u[su] - u[2 * su];
  const Vec s2 = u[3 * su] + u[4 * su], d2 = u[3 * su] - u[4 * su];
  o[0] = u[0] - (2.0f / 3.0f) * s1 + (1.0f / 6.0f) * s2;
  o[so] = (-kB / 3.0f) * d1 + (kB / 6.0f) * d2;
  o[2 * so] = (1.0f / 3.0f) * (s2 - s1) + u[5 * su];
}

// A map of tiles: image n, tile row i, tile column j in order.
struct TileMap {
  int64_t rows, cols;  // tiles an image
  void locate(int64_t t, int64_t* n, int64_t* i, int64_t* j) const {
    *n = t / (rows * cols);
    *i = t / cols % rows;
    *j = t % cols;
  }
};

// Where patches come from: an image [N,H,W,C], or a gradient that is masked by y's zeros and
// unpooled by argmax on the way (x and y are then [N,H/2,W/2,C]).
struct Source {
  const float* x;
  const float* y;
  const uint8_t* argmax;
  int64_t H, W, C;
  const float* zeros;  // at least C zeros
};

enum SourceKind { kPlain, kMasked, kPooled };

// A patch of SIZE x SIZE pixels: SIZE 6 starts one pixel above and left of the tile's corner, SIZE
// 4 at the corner.
template <int KIND, int SIZE>
class Patch {
 public:
  Patch(const Source& s, int64_t n, int64_t i, int64_t j) : y_(s.y != nullptr) {
    const int64_t H = KIND == kPooled ? s.H / 2 : s.H, W = KIND == kPooled ? s.W / 2 : s.W;
    const int64_t step = KIND == kPooled ? 2 : 4;
    for (int r = 0; r < kSide; ++r) {
      for (int c = 0; c < kSide; ++c) {
        const int64_t h = step * i + r - kOff, w = step * j + c - kOff;
        const bool in = h >= 0 && h < H && w >= 0 && w < W;
        const int64_t at = (n * H + h) * W + w;
        const int p = r * kSide + c;
        x_ptr_[p] = in ? s.x + at * s.C : s.zeros;
        if (KIND == kMasked || (KIND == kPooled && y_)) y_ptr_[p] = in ? s.y + at * s.C : s.zeros;
        if (KIND == kPooled)
          a_ptr_[p] = in ? s.argmax + at * (s.C / 4) : reinterpret_cast<const uint8_t*>(s.zeros);
      }
    }
  }

  // d [SIZE*SIZE] = the patch's pixels at channels c .. c+VL-1.
  inline void read(Vec* d, int64_t c) const {
    if constexpr (KIND != kPooled) {
#pragma GCC unroll 36
      for (int p = 0; p < SIZE * SIZE; ++p) {
        const Vec v = load(x_ptr_[p] + c);
        if constexpr (KIND == kMasked)
          d[p] = select(load(y_ptr_[p] + c) != 0.0f, v, Vec{});
        else
          d[p] = v;
      }
    } else {
#pragma GCC unroll 4
      for (int r = 0; r < kSide; ++r) {
#pragma GCC unroll 4
        for (int s = 0; s < kSide; ++s) {
          const int p = r * kSide + s;
          Vec g = load(x_ptr_[p] + c);
          if (y_) g = select(load(y_ptr_[p] + c) != 0.0f, g, Vec{});
          const VecI at = unpack_winners(a_ptr_[p] + c / 4);
#pragma GCC unroll 4
          for (int corner = 0; corner < 4; ++corner) {
            const int h = 2 * r + corner / 2 - kOff, w = 2 * s + corner % 2 - kOff;
            if (h >= 0 && h < SIZE && w >= 0 && w < SIZE)
              d[h * SIZE + w] = select(at == corner, g, Vec{});
          }
        }
      }
    }
  }

 private:
  static constexpr int kOff = SIZE == 6 ? 1 : 0;
  static constexpr int kSide = KIND == kPooled ? (SIZE == 6 ? 4 : 2) : SIZE;
  bool y_;
  const float* x_ptr_[kSide * kSide];
  const float* y_ptr_[kSide * kSide];
  const uint8_t* a_ptr_[kSide * kSide];
};

// v[xi*xs] (xi = 0..35) = B^T d B of one patch, for channels [c0, c1); v's column 0 is channel c0.
template <int KIND>
inline void input_tile(float* v, int64_t xs, const Patch<KIND, 6>& patch, int64_t c0, int64_t c1) {
  for (int64_t c = c0; c < c1; c += VL) {
    Vec d[36], t[36];
    patch.read(d, c);
#pragma GCC unroll 6
    for (int k = 0; k < 6; ++k) transform_input(t + k, 6, d + k, 6);
#pragma GCC unroll 6
    for (int k = 0; k < 6; ++k) {
      Vec o[6];
      transform_input(o, 1, t + 6 * k, 1);
#pragma GCC unroll 6
      for (int l = 0; l < 6; ++l) store(v + (6 * k + l) * xs + c - c0, o[l]);
    }
  }
}

// m[xi*xs] = A dy A^T of one 4x4 tile of the gradient, for all channels; db [C] += its sum.
template <int KIND>
inline void gradient_tile(float* m, int64_t xs, float* db, const Source& s, int64_t n, int64_t i,
                          int64_t j) {
  const Patch<KIND, 4> patch(s, n, i, j);
  for (int64_t c = 0; c < s.C; c += VL) {
    Vec d[16], t[24];
    patch.read(d, c);
    Vec sum = d[0];
#pragma GCC unroll 16
    for (int k = 1; k < 16; ++k) sum += d[k];
    store(db + c, load(db + c) + sum);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) transform_gradient(t + k, 4, d + k, 4);
#pragma GCC unroll 6
    for (int k = 0; k < 6; ++k) {
      Vec o[6];
      transform_gradient(o, 1, t + 4 * k, 1);
#pragma GCC unroll 6
      for (int l = 0; l < 6; ++l) store(m + (6 * k + l) * xs + c, o[l]);
    }
  }
}

// Where output tiles go: y [N,H,W,C] with bias and ReLU, its 2x2-pooled map with argmax, or dx =
// beta*dx + tile.
struct Sink {
  float* y;
  uint8_t* argmax;
  const float* b;
  int64_t H, W, C;
  float beta;
  bool relu;
};

enum SinkKind { kForward, kForwardPooled, kData };

// The tile at channels [k0, k0+width) from m[xi*xs], whose column 0 is channel k0.
template <int KIND>
inline void output_tile(const Sink& s, const float* m, int64_t xs, int64_t k0, int64_t width,
                        int64_t n, int64_t i, int64_t j) {
  const int64_t h0 = 4 * i, w0 = 4 * j;
  for (int64_t k = 0; k < width; k += VL) {
    Vec in[36], t[24], o[16];
#pragma GCC unroll 36
    for (int x = 0; x < 36; ++x) in[x] = load(m + x * xs + k);
#pragma GCC unroll 6
    for (int l = 0; l < 6; ++l) transform_output(t + l, 6, in + l, 6);
#pragma GCC unroll 4
    for (int l = 0; l < 4; ++l) transform_output(o + 4 * l, 1, t + 6 * l, 1);
    if constexpr (KIND != kData) {
      const Vec bias = s.b ? load(s.b + k0 + k) : Vec{};
#pragma GCC unroll 16
      for (int p = 0; p < 16; ++p) {
        o[p] += bias;
        if (s.relu) o[p] = select(o[p] < 0.0f, Vec{}, o[p]);
      }
    }
    if constexpr (KIND == kForwardPooled) {
      const int64_t P = s.H / 2, Q = s.W / 2;
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r)
#pragma GCC unroll 2
        for (int q = 0; q < 2; ++q) {
          if (2 * i + r >= P || 2 * j + q >= Q) continue;
          Vec best = o[8 * r + 2 * q];
          VecI at{};
#pragma GCC unroll 4
          for (int corner = 1; corner < 4; ++corner)
            contend(&best, &at, o[8 * r + 4 * (corner / 2) + 2 * q + corner % 2], corner);
          const int64_t to = ((n * P + 2 * i + r) * Q + 2 * j + q) * s.C + k0 + k;
          store(s.y + to, best);
          pack_winners(s.argmax + to / 4, at);
        }
    } else {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r)
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          if (h0 + r >= s.H || w0 + q >= s.W) continue;
          float* to = s.y + ((n * s.H + h0 + r) * s.W + w0 + q) * s.C + k0 + k;
          if (KIND == kData && s.beta != 0.0f)
            store(to, s.beta * load(to) + o[4 * r + q]);
          else
            store(to, o[4 * r + q]);
        }
    }
  }
}

}  // namespace
