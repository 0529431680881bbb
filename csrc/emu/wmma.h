// nvcuda::wmma: products of matrices that a warp holds together. Which lane holds which element is
// as little specified here as in CUDA.
#pragma once
#include <cstring>

#include "device.h"
#include "numbers.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
namespace precision {
struct tf32 {};
}  // namespace precision
enum layout_t { mem_row_major, mem_col_major };

namespace emulated {

template <class T>
struct Stored {
  using type = T;
};
template <>
struct Stored<precision::tf32> {
  using type = float;
};

template <class Use, int M, int N, int K>
constexpr int kRows = std::is_same_v<Use, matrix_b> ? K : M;
template <class Use, int M, int N, int K>
constexpr int kColumns = std::is_same_v<Use, matrix_a> ? K : N;

inline float number(float x) { return x; }
inline float number(__half x) { return __half2float(x); }
inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }

}  // namespace emulated

// Lane l holds elements l*num_elements... of the matrix by rows.
template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  using element_type = typename emulated::Stored<T>::type;
  static constexpr int rows = emulated::kRows<Use, M, N, K>;
  static constexpr int columns = emulated::kColumns<Use, M, N, K>;
  static constexpr int num_elements = rows * columns / 32;
  element_type x[num_elements];
};

inline float __float_to_tf32(float x) { return pycap::emu::as<float>(pycap::emu::tf32(x)); }

template <class F, class V>
__forceinline__ void fill_fragment(F& f, const V& value) {
  for (int i = 0; i < F::num_elements; ++i) f.x[i] = value;
  pycap::emu::barrier_warp(0xffffffffu);
}

namespace emulated {

// The place of this lane's element i in memory, whose rows (columns) are `stride` elements apart.
template <class F>
__forceinline__ size_t place(int i, unsigned stride, bool by_rows) {
  const unsigned lane = pycap::emu::thread_index().x % 32;
  const unsigned at = lane * F::num_elements + i;
  const unsigned row = at / F::columns, column = at % F::columns;
  return by_rows ? size_t{row} * stride + column : size_t{column} * stride + row;
}

}  // namespace emulated

template <class Use, int M, int N, int K, class T, class Layout>
__forceinline__ void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f,
                                      const typename emulated::Stored<T>::type* memory,
                                      unsigned stride) {
  using F = fragment<Use, M, N, K, T, Layout>;
  for (int i = 0; i < F::num_elements; ++i)
    f.x[i] = memory[emulated::place<F>(i, stride, std::is_same_v<Layout, row_major>)];
  pycap::emu::barrier_warp(0xffffffffu);
}

template <int M, int N, int K, class T>
__forceinline__ void load_matrix_sync(fragment<accumulator, M, N, K, T>& f, const T* memory,
                                      unsigned stride, layout_t layout) {
  using F = fragment<accumulator, M, N, K, T>;
  for (int i = 0; i < F::num_elements; ++i)
    f.x[i] = memory[emulated::place<F>(i, stride, layout == mem_row_major)];
  pycap::emu::barrier_warp(0xffffffffu);
}

template <int M, int N, int K, class T>
__forceinline__ void store_matrix_sync(T* memory, const fragment<accumulator, M, N, K, T>& f,
                                       unsigned stride, layout_t layout) {
  using F = fragment<accumulator, M, N, K, T>;
  for (int i = 0; i < F::num_elements; ++i)
    memory[emulated::place<F>(i, stride, layout == mem_row_major)] = f.x[i];
  pycap::emu::barrier_warp(0xffffffffu);
}

namespace emulated {

template <class A, class B, class C>
struct Factors {
  const A* a;
  const B* b;
  const C* c;
};

template <class A, class B, class C>
void multiply(const void* const* inputs, void* const* outputs) {
  const auto element = [&](auto pick, int at) {
    const auto* factors = static_cast<const Factors<A, B, C>*>(inputs[0]);
    const int each = std::remove_reference_t<decltype(*pick(*factors))>::num_elements;
    factors = static_cast<const Factors<A, B, C>*>(inputs[at / each]);
    return number(pick(*factors)->x[at % each]);
  };
  float sums[C::rows * C::columns];
  for (int m = 0; m < C::rows; ++m)
    for (int n = 0; n < C::columns; ++n) {
      double sum = element([](const auto& f) { return f.c; }, m * C::columns + n);
      for (int k = 0; k < A::columns; ++k)
        sum += double{element([](const auto& f) { return f.a; }, m * A::columns + k)} *
               element([](const auto& f) { return f.b; }, k * B::columns + n);
      sums[m * C::columns + n] = static_cast<float>(sum);
    }
  for (int lane = 0; lane < 32; ++lane)
    std::memcpy(static_cast<C*>(outputs[lane])->x, sums + lane * C::num_elements, sizeof(C::x));
}

}  // namespace emulated

// d = a b + c.
template <class D, class A, class B, class C>
__forceinline__ void mma_sync(D& d, const A& a, const B& b, const C& c) {
  static_assert(std::is_same_v<D, C>, "d and c of one type");
  const emulated::Factors<A, B, C> mine{&a, &b, &c};
  D result;
  pycap::emu::together("wmma::mma_sync", 0xffffffffu, &mine, &result, emulated::multiply<A, B, C>,
                       __builtin_return_address(0));
  d = result;
}

}  // namespace nvcuda::wmma
