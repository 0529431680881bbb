// exp, sigmoid and tanh in float32, branch-free so that the compiler vectorises loops over them.
// Errors against float64, over all finite inputs: exp and tanh under 2 ulp, sigmoid under 3 ulp
// (results under the smallest normal number are flushed to 0). NaN gives NaN, infinities give the
// limits.
#pragma once
#include "common.h"

namespace {

inline float exp1(float x) {
  const float hi = 88.72283f, lo = -87.33654f;
  float z = x < lo ? lo : x;
  z = z > hi ? hi : z;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const float magic = 12582912.0f;
  const float t = z * 1.44269504088896341f + magic;
  const float n = t - magic;
  float r = z - n * 0.693145751953125f;  // ln 2 in two parts (Cody-Waite)
  r = r - n * 1.42860682030941723212e-6f;
  float p = 1.9875691500e-4f;  // minimax polynomial of Cephes' expf
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors: n reaches 128 at the upper end, which is no exponent of a float.
  const int32_t k = __builtin_bit_cast(int32_t, t) - 0x4B400000;
  const int32_t k1 = k >> 1, k2 = k - k1;
  const float s1 = __builtin_bit_cast(float, (int32_t)((uint32_t)(k1 + 127) << 23));
  const float s2 = __builtin_bit_cast(float, (int32_t)((uint32_t)(k2 + 127) << 23));
  float y = p * s1 * s2;
  y = x > hi ? __builtin_inff() : y;
  return x < lo ? 0.0f : y;
}

inline float sigmoid1(float x) { return 1.0f / (1.0f + exp1(-x)); }

inline float tanh1(float x) {
  const float a = x < 0.0f ? -x : x;
  const float large = 1.0f - 2.0f / (exp1(2.0f * a) + 1.0f);
  const float z = x * x;
  float p = -5.70498872745e-3f;  // Cephes' tanhf under 0.625
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float small = p * z * x + x;
  const float signed_large = x < 0.0f ? -large : large;
  return a < 0.625f ? small : signed_large;
}

}  // namespace
