// Faults of the kinds that a sanitizer is to find in the kernels, each by its number, and the same
// done right: `make sanitize` runs them first and fails where one is not reported, or the right one
// is. Built with the flags of the kernels; part of no module that pycap loads.
#include <omp.h>
#include <stdint.h>
#include <string.h>

namespace {

// What the compiler may not see through, or it would remove the fault.
template <class T>
T opaque(T value) {
  __asm__ volatile("" : "+r"(value)::"memory");
  return value;
}

float read_past_row(const float* x, int64_t n) {
  float sum = 0.0f;
  for (int64_t i = 0; i <= n; ++i) sum += x[i];
  return sum;
}

void write_past_row(float* x, int64_t n) {
  typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
  for (int64_t i = 0; i < n; i += 4) *reinterpret_cast<Four*>(x + i) = Four{};  // n is no multiple
}

float* kept;

__attribute__((noinline)) void keep_local() {
  float local[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  kept = opaque(static_cast<float*>(local));
}

float use_after_return() {
  keep_local();
  return opaque(kept)[1];
}

float use_after_scope(int64_t n) {
  float* at = nullptr;
  {
    float local[4] = {(float)n, 2.0f, 3.0f, 4.0f};
    at = opaque(static_cast<float*>(local));
  }
  return at[n % 4];
}

float past_an_array_of_the_stack(int64_t n) {
  float tile[8] = {};
  memset(tile, 0, sizeof(float) * (size_t)opaque(n));
  return opaque(static_cast<float*>(tile))[0];
}

int32_t signed_overflow(int64_t n) { return opaque((int32_t)n + (INT32_MAX - 2)) + (int32_t)n; }

int32_t shift_too_far(int64_t n) { return 1 << opaque((int32_t)n + 31); }

float misaligned_load(const float* x) {
  return *opaque(reinterpret_cast<const float*>(reinterpret_cast<const char*>(x) + 2));
}

int32_t float_out_of_range(int64_t n) { return (int32_t)(opaque((float)n) * 1e12f); }

int32_t index_out_of_bounds(int64_t n) {
  static const int32_t table[4] = {1, 2, 3, 4};
  return table[opaque(n)];
}

// Threads that add to one place, without and with each its own.
float accumulator_race(const float* x, int64_t n, int threads) {
  float sum = 0.0f;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

float reduction(const float* x, int64_t n, int threads) {
  float sum = 0.0f;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

// Each thread fills its part, then reads its neighbour's.
template <bool BARRIER>
void neighbours(float* x, int64_t n, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const int64_t team = omp_get_num_threads(), id = omp_get_thread_num();
    const int64_t part = n / team;
    for (int64_t i = id * part; i < (id + 1) * part; ++i) x[i] = (float)id;
    if (BARRIER) {
#pragma omp barrier
    }
    float sum = 0.0f;
    const int64_t next = (id + 1) % team;
    for (int64_t i = next * part; i < (next + 1) * part; ++i) sum += x[i];
    opaque(sum);
  }
}

// What is written after a loop that does not wait, while another thread may still be in it.
template <bool WAIT>
void single_after_loop(float* x, int64_t n, int threads) {
  float sum = 0.0f;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = 0; i < n; ++i) x[i] = (float)i;
    if (WAIT) {
#pragma omp barrier
    }
#pragma omp single
    for (int64_t i = 0; i < n; ++i) sum += x[i];
  }
  opaque(sum);
}

}  // namespace

// x [n]: n is odd, at least 9. Returns whether there is such a fault.
extern "C" __attribute__((visibility("default"))) int planted(const char* fault, float* x,
                                                              int64_t n, int threads) {
  const auto is = [&](const char* name) { return strcmp(fault, name) == 0; };
  if (is("read past a row"))
    opaque(read_past_row(x, n));
  else if (is("write past a row"))
    write_past_row(x, n);
  else if (is("use after return"))
    opaque(use_after_return());
  else if (is("use after scope"))
    opaque(use_after_scope(n));
  else if (is("past an array of the stack"))
    opaque(past_an_array_of_the_stack(n));
  else if (is("signed overflow"))
    opaque(signed_overflow(n));
  else if (is("shift too far"))
    opaque(shift_too_far(n));
  else if (is("misaligned load"))
    opaque(misaligned_load(x));
  else if (is("float out of range"))
    opaque(float_out_of_range(n));
  else if (is("index out of bounds"))
    opaque(index_out_of_bounds(n));
  else if (is("race on an accumulator"))
    opaque(accumulator_race(x, n, threads));
  else if (is("missing barrier"))
    neighbours<false>(x, n, threads);
  else if (is("single while a loop runs"))
    single_after_loop<false>(x, n, threads);
  else if (is("none")) {
    opaque(reduction(x, n, threads));
    neighbours<true>(x, n, threads);
    single_after_loop<true>(x, n, threads);
  } else
    return 0;
  return 1;
}
