// AMX's tiles in plain C++, for builds that watch memory: each byte that an instruction would read
// or write is read or written here, so that a sanitizer sees it, which it does not in the
// instruction itself; and it runs on any CPU. Each thread has its tiles.
#pragma once
#include "bf16.h"

namespace {

struct EmulatedTile {
  int64_t rows = 0, bytes = 0;
  uint8_t data[16][64];
};

inline EmulatedTile* emulated_tiles() {
  static thread_local EmulatedTile tiles[8];
  return tiles;
}

inline void _tile_loadconfig(const void* config) {
  const uint8_t* c = static_cast<const uint8_t*>(config);
  for (int i = 0; i < 8; ++i) {
    uint16_t bytes;
    memcpy(&bytes, c + 16 + 2 * i, 2);
    if (bytes > 64 || c[48 + i] > 16) __builtin_trap();  // the instruction faults
    emulated_tiles()[i].bytes = bytes, emulated_tiles()[i].rows = c[48 + i];
  }
}

inline void _tile_release() {
  for (int i = 0; i < 8; ++i) emulated_tiles()[i].rows = emulated_tiles()[i].bytes = 0;
}

inline EmulatedTile& configured_tile(int i) {
  EmulatedTile& tile = emulated_tiles()[i];
  if (tile.rows == 0 || tile.bytes == 0) __builtin_trap();  // the instruction faults
  return tile;
}

inline void _tile_zero(int i) { memset(configured_tile(i).data, 0, sizeof(EmulatedTile::data)); }

inline void _tile_loadd(int i, const void* from, int64_t stride) {
  EmulatedTile& tile = configured_tile(i);
  memset(tile.data, 0, sizeof tile.data);
  for (int64_t r = 0; r < tile.rows; ++r)
    memcpy(tile.data[r], static_cast<const char*>(from) + r * stride, tile.bytes);
}

inline void _tile_stored(int i, void* to, int64_t stride) {
  const EmulatedTile& tile = configured_tile(i);
  for (int64_t r = 0; r < tile.rows; ++r)
    memcpy(static_cast<char*>(to) + r * stride, tile.data[r], tile.bytes);
}

// sum += a * b. As the instruction does it: even and odd terms are summed apart, each product and
// sum rounded once; numbers too small to be normal count as 0.
inline void _tile_dpbf16ps(int sum, int a, int b) {
  EmulatedTile &s = configured_tile(sum), &x = configured_tile(a), &y = configured_tile(b);
  if (s.rows != x.rows || s.bytes != y.bytes || x.bytes != 4 * y.rows) __builtin_trap();
  const auto number = [](const uint8_t* at) {
    bf16 v;
    memcpy(&v, at, 2);
    return v.bits & 0x7f80 ? widen(v) : 0.0f;
  };
  for (int64_t m = 0; m < s.rows; ++m) {
    float even[16] = {}, odd[16] = {}, out[16];
    for (int64_t k = 0; k < y.rows; ++k) {
      const float left = number(x.data[m] + 4 * k), right = number(x.data[m] + 4 * k + 2);
      for (int64_t n = 0; n < s.bytes / 4; ++n) {
        even[n] += left * number(y.data[k] + 4 * n);
        odd[n] += right * number(y.data[k] + 4 * n + 2);
      }
    }
    memcpy(out, s.data[m], 64);
    for (int64_t n = 0; n < s.bytes / 4; ++n) out[n] += even[n] + odd[n];
    memcpy(s.data[m], out, 64);
  }
}

}  // namespace
