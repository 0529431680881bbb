// What sanitizers do not see by themselves, they are told here: ThreadSanitizer passes over
// accesses of more than 16 bytes, and OpenBLAS is built without any. Other builds do nothing here.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PYCAP_WATCHES_THREADS
extern "C" void __tsan_read_range(void* p, unsigned long bytes);
extern "C" void __tsan_write_range(void* p, unsigned long bytes);
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace {

// A vector of so many bytes is read from p, or written there.
inline void wide_read([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#if defined(PYCAP_WATCHES_THREADS)
  if (bytes > 16) __tsan_read_range(const_cast<void*>(p), bytes);
#endif
}

inline void wide_write([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(PYCAP_WATCHES_THREADS)
  if (bytes > 16) __tsan_write_range(p, bytes);
#endif
}

// OpenBLAS reads the rows of a matrix, or writes them. An access of our own is what is reported.
[[maybe_unused]] inline void foreign_read([[maybe_unused]] const float* p,
                                          [[maybe_unused]] int64_t rows,
                                          [[maybe_unused]] int64_t cols,
                                          [[maybe_unused]] int64_t ld) {
#if defined(PYCAP_WATCHES_THREADS)
  for (int64_t i = 0; i < rows; ++i)
    __tsan_read_range(const_cast<float*>(p + i * ld), sizeof(float) * (size_t)cols);
#elif defined(__SANITIZE_ADDRESS__)
  for (int64_t i = 0; i < rows; ++i)
    if (void* bad =
            __asan_region_is_poisoned(const_cast<float*>(p + i * ld), sizeof(float) * (size_t)cols))
      (void)*static_cast<volatile char*>(bad);
#endif
}

[[maybe_unused]] inline void foreign_write([[maybe_unused]] float* p, [[maybe_unused]] int64_t rows,
                                           [[maybe_unused]] int64_t cols,
                                           [[maybe_unused]] int64_t ld) {
#if defined(PYCAP_WATCHES_THREADS)
  for (int64_t i = 0; i < rows; ++i) __tsan_write_range(p + i * ld, sizeof(float) * (size_t)cols);
#elif defined(__SANITIZE_ADDRESS__)
  for (int64_t i = 0; i < rows; ++i)
    if (void* bad = __asan_region_is_poisoned(p + i * ld, sizeof(float) * (size_t)cols))
      *static_cast<volatile char*>(bad) = 0;
#endif
}

}  // namespace
