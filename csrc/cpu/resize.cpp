// Antialiased bilinear squash of 8-bit images with Pillow's arithmetic, bit for bit: weights are
// computed in double and rounded to 22 bits; rows are filtered first and rounded to 8 bits, then
// columns. Only the filtered rows that the next column sum needs are kept, so they stay in the
// first-level cache. It needs AVX2: without, Pillow is as fast.
#include "pycap/resize.h"

#include "common.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace pycap::PYCAP_ISA {
#if defined(__AVX2__)
namespace {

constexpr int kBits = 22;     // of a weight; 8-bit pixels times weights that sum to 1 fill 30
constexpr int kLow = 11;      // a weight is multiplied in two halves, as 16-bit factors
constexpr int64_t kTaps = 4;  // weights are stored, and pixels read, four at a time

int64_t rounded_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// One axis: `extent` of `from` pixels become `to`, each the sum of at most `taps` (a multiple of
// kTaps) from `start` on.
struct Axis {
  int64_t from, to, taps, padded;  // padded: `to`, so that pixels come in fours
  double extent;
  int32_t* start;    // [padded]
  int32_t* weights;  // [padded, taps / 4, 4]: low halves of 0 1, of 2 3; high halves

  Axis(int64_t from, double extent, int64_t to)
      : from(from), to(to), padded(rounded_up(to, 4)), extent(extent) {
    const double scale = extent / (double)to;
    taps = rounded_up((int64_t)ceil(scale < 1.0 ? 1.0 : scale) * 2 + 1, kTaps);
  }
  bool same() const { return from == to && extent == (double)to; }
  size_t bytes() const { return sizeof(int32_t) * (size_t)(padded * (1 + taps)); }

  // Sets start and weights; `room`: taps doubles. Returns how many pixels from 0 on may be read.
  int64_t fill(int32_t* at, double* room) {
    start = at;
    weights = at + padded;
    memset(at, 0, bytes());
    const double scale = extent / (double)to, filter = scale < 1.0 ? 1.0 : scale;
    const double narrow = 1.0 / filter;
    int64_t longest = 0;
    for (int64_t i = 0; i < to; ++i) {
      const double centre = ((double)i + 0.5) * scale;
      const int64_t first = max64((int64_t)(centre - filter + 0.5), 0);
      const int64_t count = min64((int64_t)(centre + filter + 0.5), from) - first;
      double sum = 0.0;
      for (int64_t j = 0; j < count; ++j) {
        const double distance = fabs(((double)(j + first) - centre + 0.5) * narrow);
        room[j] = distance < 1.0 ? 1.0 - distance : 0.0;
        sum += room[j];
      }
      start[i] = (int32_t)first;
      longest = max64(longest, count);
      int32_t* out = weights + i * taps;
      for (int64_t j = 0; j < count; ++j) {
        const double weight = sum != 0.0 ? room[j] / sum : room[j];
        const auto fixed = (int32_t)(0.5 + weight * (1 << kBits));
        int32_t* pair = out + j / kTaps * kTaps + j % kTaps / 2;
        const int shift = j % 2 ? 16 : 0;
        pair[0] |= (fixed & ((1 << kLow) - 1)) << shift;
        pair[2] |= (fixed >> kLow) << shift;
      }
    }
    const int64_t used = rounded_up(longest, kTaps);
    if (used < taps) {
      for (int64_t i = 1; i < to; ++i)
        memmove(weights + i * used, weights + i * taps, sizeof(int32_t) * (size_t)used);
      for (int64_t i = to; i < padded; ++i)
        memset(weights + i * used, 0, sizeof(int32_t) * (size_t)used);
      taps = used;
    }
    return max64(start[to - 1], 0) + taps;
  }
};

constexpr int64_t kRows = 2;     // filtered at once, one in each half of a vector
constexpr int64_t kValues = 16;  // of a row, summed over columns at once

inline __m128i load(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

inline void store(uint8_t* p, __m128i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); }

// Eight sums of pixels times weights, in two parts because the factors of a product have 16 bits.
struct Sums {
  __m256i low = _mm256_set1_epi32(1 << (kBits - 1)), high = _mm256_setzero_si256();

  // near, far: pairs of pixels, each with the next one; weights: of the four.
  void add(__m256i near, __m256i far, const int32_t* weights) {
    low = _mm256_add_epi32(low, product(near, weights[0]));
    low = _mm256_add_epi32(low, product(far, weights[1]));
    high = _mm256_add_epi32(high, product(near, weights[2]));
    high = _mm256_add_epi32(high, product(far, weights[3]));
  }
  __m256i rounded() const {
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, kLow), low), kBits);
  }

 private:
  static __m256i product(__m256i pixels, int32_t pair) {
    return _mm256_madd_epi16(pixels, _mm256_set1_epi32(pair));
  }
};

// Four pixels without their fourth bytes.
inline __m128i rgb_order() {
  return _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
}

// Two rows from x [.., W, 4] to y [.., Q, 3]; 4 bytes after a row's last four pixels are
// overwritten. Taps: axis.taps, or 0 where the compiler need not know.
template <int64_t Taps>
void filter_rows(uint8_t* const* y, const uint8_t* const* x, const Axis& axis) {
  // Two of four pixels as 16-bit numbers: R, R, G, G, B, B, unused.
  const __m256i near_order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1));
  const __m256i far_order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1));
  const int64_t taps = Taps ? Taps : axis.taps;
  for (int64_t q = 0; q < axis.padded; q += 4) {
    __m256i four[4];
    for (int64_t i = 0; i < 4; ++i) {
      const int32_t* weights = axis.weights + (q + i) * taps;
      const int64_t at = 4 * (int64_t)axis.start[q + i];
      Sums sums;
      for (int64_t t = 0; t < taps; t += kTaps) {
        const __m256i both = _mm256_inserti128_si256(
            _mm256_castsi128_si256(load(x[0] + at + 4 * t)), load(x[1] + at + 4 * t), 1);
        sums.add(_mm256_shuffle_epi8(both, near_order), _mm256_shuffle_epi8(both, far_order),
                 weights + t);
      }
      four[i] = sums.rounded();
    }
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(four[0], four[1]),
                                              _mm256_packs_epi32(four[2], four[3]));
    const __m256i rgb = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(rgb_order()));
    store(y[0] + 3 * q, _mm256_castsi256_si128(rgb));
    store(y[1] + 3 * q, _mm256_extracti128_si256(rgb, 1));
  }
}

// The same of rows that keep their width, which only lose their fourth bytes.
void copy_rows(uint8_t* const* y, const uint8_t* const* x, int64_t Q) {
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t q = 0; q < Q; q += 4)
      store(y[r] + 3 * q, _mm_shuffle_epi8(load(x[r] + 4 * q), rgb_order()));
}

// y [n] = the sum of `taps` rows of n values times their weights.
void filter_columns(uint8_t* y, const uint8_t* const* row, const int32_t* weights, int64_t taps,
                    int64_t n) {
  for (int64_t i = 0; i < n; i += kValues) {
    Sums first, second;  // of values 0..3 and 8..11, and of the others: as instructions interleave
    for (int64_t t = 0; t < taps; t += kTaps) {
      __m256i v[kTaps];
      for (int64_t k = 0; k < kTaps; ++k) v[k] = _mm256_cvtepu8_epi16(load(row[t + k] + i));
      first.add(_mm256_unpacklo_epi16(v[0], v[1]), _mm256_unpacklo_epi16(v[2], v[3]), weights + t);
      second.add(_mm256_unpackhi_epi16(v[0], v[1]), _mm256_unpackhi_epi16(v[2], v[3]), weights + t);
    }
    const __m256i words = _mm256_packs_epi32(first.rounded(), second.rounded());
    const __m128i bytes =
        _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    if (i + kValues <= n) {
      store(y + i, bytes);
    } else {
      uint8_t rest[kValues];
      store(rest, bytes);
      memcpy(y + i, rest, (size_t)(n - i));
    }
  }
}

// What lies in the workspace, in order: doubles, both axes, row pointers, filtered rows, copies of
// the last rows.
struct Plan {
  Axis across, down;
  int64_t kept, stride, row_bytes;

  explicit Plan(const ResizeShape& s) : across(s.W, s.wide, s.Q), down(s.H, s.high, s.P) {
    kept = down.taps + kRows;
    stride = 3 * across.padded + 64;  // vectors may reach over a row's end
    row_bytes = 4 * (s.W + across.taps);
  }
  size_t bytes() const {
    return sizeof(double) * (size_t)max64(across.taps, down.taps) + across.bytes() + down.bytes() +
           sizeof(void*) * (size_t)(down.taps + 1) + (size_t)(kept * stride) +
           (size_t)(kRows * row_bytes) + 64;
  }
};

size_t workspace(const ResizeShape& s) { return Plan(s).bytes(); }

void bilinear(uint8_t* y, const uint8_t* x, const ResizeShape& s, void* ws) {
  Plan plan(s);
  Axis &across = plan.across, &down = plan.down;
  auto* room = static_cast<double*>(ws);
  auto* numbers = reinterpret_cast<int32_t*>(room + max64(across.taps, down.taps));
  auto** row = reinterpret_cast<const uint8_t**>(
      (reinterpret_cast<uintptr_t>(numbers) + across.bytes() + down.bytes() + 7) & ~uintptr_t{7});
  auto* filtered = reinterpret_cast<uint8_t*>(row + down.taps);
  uint8_t* copies = filtered + plan.kept * plan.stride;
  int32_t* numbers_down = numbers + across.bytes() / sizeof(int32_t);
  const int64_t reach = across.fill(numbers, room);
  down.fill(numbers_down, room);

  int64_t ready = 0;  // rows that have been filtered
  for (int64_t p = 0; p < s.P; ++p) {
    const int64_t first = down.start[p];
    const int64_t wanted = min64(first + down.taps, s.H);
    while (ready < wanted) {
      const uint8_t* in[kRows];
      uint8_t* out[kRows];
      for (int64_t r = 0; r < kRows; ++r) {
        const int64_t h = min64(ready + r, s.H - 1);
        in[r] = x + 4 * h * s.W;
        out[r] = filtered + (ready + r) % plan.kept * plan.stride;
        if (h * s.W + reach > s.H * s.W) {  // vectors may not reach over the image's end
          uint8_t* copy = copies + r * plan.row_bytes;
          memcpy(copy, in[r], (size_t)(4 * s.W));
          memset(copy + 4 * s.W, 0, (size_t)(plan.row_bytes - 4 * s.W));
          in[r] = copy;
        }
      }
      if (across.same())
        copy_rows(out, in, s.W);
      else if (across.taps == 4)
        filter_rows<4>(out, in, across);
      else if (across.taps == 8)
        filter_rows<8>(out, in, across);
      else
        filter_rows<0>(out, in, across);
      ready += kRows;
    }
    uint8_t* to = y + p * s.Q * 3;
    if (down.same()) {
      memcpy(to, filtered + p % plan.kept * plan.stride, (size_t)(3 * s.Q));
      continue;
    }
    for (int64_t t = 0; t < down.taps; ++t)
      row[t] = filtered + min64(first + t, s.H - 1) % plan.kept * plan.stride;
    filter_columns(to, row, down.weights + p * down.taps, down.taps, 3 * s.Q);
  }
}

}  // namespace

extern const ResizeKernels resize_kernels;
const ResizeKernels resize_kernels = {workspace, bilinear};
#else
extern const ResizeKernels resize_kernels;
const ResizeKernels resize_kernels = {nullptr, nullptr};
#endif

}  // namespace pycap::PYCAP_ISA
