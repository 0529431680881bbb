// Products of bfloat16 tiles on AMX, summed in float32.
//
// A tile of the left operand is `rows` (at most 16) rows of 32 numbers, 64 bytes each, `lda` bytes
// apart. A tile of the right operand is packed: 1024 bytes, [16 pairs][16 columns][2], where pair p
// holds the numbers 2p and 2p+1 of the summed index. A product runs over such tiles: in step i the
// left one lies at a + steps[i].left, the right one at b + steps[i].right.
#pragma once
#include "bf16.h"

#if defined(PYCAP_EMULATE_V4)
#include "amx_emulated.h"
#else
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kTile = 1024;      // bytes of a packed tile
constexpr int64_t kDepth = 32;       // numbers summed by one step
constexpr int64_t kBlock = 32 * 32;  // floats of the result of a block of 2x2 tiles

struct Step {
  int32_t left, right;  // bytes
};

// Steps over tiles that follow one another on both sides.
inline void list_steps(Step* steps, int64_t count) {
  for (int64_t i = 0; i < count; ++i) steps[i] = {(int32_t)(64 * i), (int32_t)(kTile * i)};
}

inline int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// The tiles' configuration, held by a thread while it multiplies: left tiles of `rows` rows.
class Tiles {
 public:
  explicit Tiles(int64_t rows) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.bytes[i] = 64;
      config.rows[i] = (uint8_t)(i < 6 ? rows : 16);  // 0..3 sums, 4..5 left, 6..7 right
    }
    __asm__ volatile("" ::"r"(&config) : "memory");  // GCC's intrinsics name too few operands
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// c: NA blocks of 16 rows by 32 columns (row stride 32 floats, blocks 16*32 floats apart), of which
// `rows` rows and 16*NB columns are written: (add ? c : 0) + the products of NA left tiles (a0, a1)
// and NB right ones (b0, b1).
template <int NA, int NB>
inline void multiply(const Tiles&, float* c, const char* a0, const char* a1, int64_t lda,
                     const Step* steps, int64_t count, const char* b0, const char* b1, bool add) {
  constexpr int64_t ldc = 128, half = 16 * 32;
  __asm__ volatile("" ::: "memory");  // what the tiles are loaded from has been written
  if (add) {
    _tile_loadd(0, c, ldc);
    if (NB > 1) _tile_loadd(1, c + 16, ldc);
    if (NA > 1) _tile_loadd(2, c + half, ldc);
    if (NA > 1 && NB > 1) _tile_loadd(3, c + half + 16, ldc);
  } else {
    _tile_zero(0);
    if (NB > 1) _tile_zero(1);
    if (NA > 1) _tile_zero(2);
    if (NA > 1 && NB > 1) _tile_zero(3);
  }
  for (int64_t i = 0; i < count; ++i) {
    _tile_loadd(4, a0 + steps[i].left, lda);
    _tile_loadd(6, b0 + steps[i].right, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (NB > 1) {
      _tile_loadd(7, b1 + steps[i].right, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (NA > 1) {
      _tile_loadd(5, a1 + steps[i].left, lda);
      _tile_dpbf16ps(2, 5, 6);
      if (NB > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, ldc);
  if (NB > 1) _tile_stored(1, c + 16, ldc);
  if (NA > 1) _tile_stored(2, c + half, ldc);
  if (NA > 1 && NB > 1) _tile_stored(3, c + half + 16, ldc);
}

// The block with `na` left and `nb` right tiles.
inline void multiply_block(const Tiles& tiles, int64_t na, int64_t nb, float* c, const char* a0,
                           const char* a1, int64_t lda, const Step* steps, int64_t count,
                           const char* b0, const char* b1, bool add) {
  if (na == 2 && nb == 2)
    multiply<2, 2>(tiles, c, a0, a1, lda, steps, count, b0, b1, add);
  else if (na == 2)
    multiply<2, 1>(tiles, c, a0, a1, lda, steps, count, b0, b0, add);
  else if (nb == 2)
    multiply<1, 2>(tiles, c, a0, a0, lda, steps, count, b0, b1, add);
  else
    multiply<1, 1>(tiles, c, a0, a0, lda, steps, count, b0, b0, add);
}

// Rounds 32 numbers and stores them.
inline void store32(bf16* to, const Vec* v) {
#if defined(PYCAP_EMULATE_V4)
  store(to, v[0]), store(to + VL, v[1]);
#else
  const __m512bh both = _mm512_cvtne2ps_pbh((__m512)v[1], (__m512)v[0]);
  memcpy(to, &both, 64);
#endif
}

// Pairs of rows as a packed tile wants them: dword j of `to` = (even[j], odd[j]), VL of them.
inline void interleave(uint32_t* to, const bf16* even, const bf16* odd) {
  const VecU both = load_bits(even) | load_bits(odd) << 16;
  store(reinterpret_cast<float*>(to), (Vec)both);
}

// Transposes 16 x 16 dwords; row strides in dwords.
inline void transpose16(uint32_t* to, int64_t ldt, const uint32_t* from, int64_t ldf) {
  for (int64_t i = 0; i < 16; i += VL)
    for (int64_t j = 0; j < 16; j += VL) {
      Vec block[VL];
      for (int64_t l = 0; l < VL; ++l)
        block[l] = load(reinterpret_cast<const float*>(from + (i + l) * ldf + j));
      transpose(block);
      for (int64_t l = 0; l < VL; ++l)
        store(reinterpret_cast<float*>(to + (j + l) * ldt + i), block[l]);
    }
}

// Turns `count` (at most 32) rows of `columns` numbers into rows of count numbers, one a column,
// `ld` bytes apart, and `panel` bytes from one 16 of them to the next. Row i lies at from + i*pitch
// bytes; 32 rows, and columns in multiples of 16, are read in any case.
inline void transpose_rows(char* to, int64_t ld, int64_t panel, const char* from, int64_t pitch,
                           int64_t columns, int64_t count) {
  for (int64_t c = 0; c < columns; c += 16, to += panel) {
    alignas(64) uint32_t pairs[16 * 16], turned[16 * 16];
    for (int64_t i = 0; i < 16; ++i)
      for (int64_t l = 0; l < 16; l += VL)
        interleave(pairs + 16 * i + l, reinterpret_cast<const bf16*>(from + 2 * i * pitch) + c + l,
                   reinterpret_cast<const bf16*>(from + (2 * i + 1) * pitch) + c + l);
    if (count == 32) {
      transpose16(reinterpret_cast<uint32_t*>(to), ld / 4, pairs, 16);
    } else {
      transpose16(turned, 16, pairs, 16);
      for (int64_t i = 0; i < 16; ++i) memcpy(to + i * ld, turned + 16 * i, 2 * count);
    }
  }
}

}  // namespace
