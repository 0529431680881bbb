// Checks of what Python hands over, so that no call can make a kernel leave its arrays: each error
// names the primitive, the argument, the value and the remedy.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "pycap/bf16.h"

namespace pycap {

namespace py = pybind11;
using Shape = std::vector<int64_t>;

inline std::string text(const Shape& shape) {
  std::string out = "(";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + (shape.size() == 1 ? ",)" : ")");
}

enum Access { kIn, kOut };

// The arguments of one call of one primitive.
class Args {
 public:
  explicit Args(const char* op) : op_(op) {}

  [[noreturn]] void bad_value(const std::string& what) const {
    throw py::value_error(op_ + ": " + what);
  }

  Shape shape(py::handle object, const char* name, size_t dims) const {
    const py::array a = array(object, name);
    if (static_cast<size_t>(a.ndim()) != dims)
      bad_value(std::string(name) + " must have " + std::to_string(dims) + " dimensions, got " +
                std::to_string(a.ndim()));
    return Shape(a.shape(), a.shape() + a.ndim());
  }

  // The same for any number of dimensions.
  Shape shape(py::handle object, const char* name) const {
    const py::array a = array(object, name);
    return Shape(a.shape(), a.shape() + a.ndim());
  }

  // The data of a C-contiguous array of exactly this dtype and shape.
  template <class T>
  T* data(py::handle object, const char* name, const Shape& shape, Access access = kIn) const {
    const py::array a = array(object, name);
    if (!holds<T>(a))
      throw py::type_error(op_ + ": " + name + " must be " + dtype_name<T>() + ", got " +
                           std::string(py::str(a.dtype())) + "; convert it with astype");
    const Shape got(a.shape(), a.shape() + a.ndim());
    if (got != shape)
      bad_value(std::string(name) + " must have shape " + text(shape) + ", got " + text(got));
    if (!(a.flags() & py::array::c_style))
      bad_value(std::string(name) + " must be C-contiguous; copy it with numpy.ascontiguousarray");
    if (reinterpret_cast<uintptr_t>(a.data()) % alignof(T))
      bad_value(std::string(name) + " must be aligned to its elements; pass a copy");
    if (access == kOut && !a.writeable())
      bad_value(std::string(name) + " is written to, but is read-only; pass a copy");
    note(a, name, access);
    return const_cast<T*>(static_cast<const T*>(a.data()));
  }

  // The same, or null for None.
  template <class T>
  T* optional(py::handle object, const char* name, const Shape& shape, Access access = kIn) const {
    return object.is_none() ? nullptr : data<T>(object, name, shape, access);
  }

  // Whether an array's elements are bfloat16 (ml_dtypes), which decides between two kernels.
  bool is_bf16(py::handle object, const char* name) const {
    return holds<bf16>(array(object, name));
  }

  void* workspace(py::handle object, size_t need) const { return bytes(object, "ws", need, kOut); }

  // Raw bytes, 64-byte aligned, at least `need`.
  void* bytes(py::handle object, const char* name, size_t need, Access access) const {
    const py::array a = array(object, name);
    if (a.itemsize() != 1 || static_cast<size_t>(a.nbytes()) < need)
      bad_value(std::string(name) + " must hold " + std::to_string(need) + " bytes of uint8, got " +
                std::to_string(a.nbytes()) + " bytes");
    if (!(a.flags() & py::array::c_style))
      bad_value(std::string(name) + " must be C-contiguous; take it from pycap.memory");
    if (access == kOut && !a.writeable())
      bad_value(std::string(name) + " is written to, but is read-only; take it from pycap.memory");
    if (need && reinterpret_cast<uintptr_t>(a.data()) % 64)
      bad_value(std::string(name) + " must be 64-byte aligned; take it from pycap.memory");
    note(a, name, access);
    return const_cast<void*>(a.data());
  }

  // Sizes that no array vouches for, and that workspaces and loops are computed from: none may be
  // negative, and their product must leave room for the factors that come to it.
  void check_sizes(std::initializer_list<int64_t> sizes) const {
    int64_t product = 1;
    for (const int64_t size : sizes) {
      if (size < 0) bad_value("sizes must be at least 0, got " + text(Shape(sizes)));
      if (__builtin_mul_overflow(product, std::max<int64_t>(size, 1), &product) ||
          product > kLargest)
        bad_value("sizes " + text(Shape(sizes)) + " are too large: their product passes 2^53");
    }
  }

  // What is written to must lie apart from all else: kernels read and write in any order, on
  // several threads. `same`: an output that may be that input itself.
  void check_apart(const void* same = nullptr) const {
    std::sort(spans_.begin(), spans_.end(),
              [](const Span& a, const Span& b) { return a.begin < b.begin; });
    const Span *furthest = nullptr, *written = nullptr;  // of those before: by their ends
    for (const Span& span : spans_) {
      const Span* other = span.access == kOut ? furthest : written;
      if (other && span.begin < other->end &&
          !(span.begin == reinterpret_cast<uintptr_t>(same) && other->begin == span.begin))
        bad_value(span.name + " and " + other->name + " lie in the same memory; pass a copy");
      if (!furthest || span.end > furthest->end) furthest = &span;
      if (span.access == kOut && (!written || span.end > written->end)) written = &span;
    }
  }

  // Every id must lie in [lowest, limit).
  void check_ids(const int32_t* ids, int64_t n, int64_t limit, const char* name,
                 int32_t lowest = 0) const {
    for (int64_t i = 0; i < n; ++i) {
      if (ids[i] >= lowest && ids[i] < limit) continue;
      throw py::index_error(op_ + ": " + name + "[" + std::to_string(i) + "] is " +
                            std::to_string(ids[i]) + ", outside " + std::to_string(lowest) + ".." +
                            std::to_string(limit - 1));
    }
  }

  std::vector<float> floats(py::handle object, const char* name, size_t n) const {
    std::vector<float> values;
    try {
      values = py::reinterpret_borrow<py::object>(object).cast<std::vector<float>>();
    } catch (const py::cast_error&) {
      throw py::type_error(op_ + ": " + name + " must hold " + std::to_string(n) + " numbers");
    }
    if (values.size() != n)
      bad_value(std::string(name) + " must hold " + std::to_string(n) + " numbers, got " +
                std::to_string(values.size()));
    return values;
  }

 private:
  template <class T>
  static bool holds(const py::array& a) {
    if constexpr (std::is_same_v<T, bf16>) {
      // ml_dtypes registers its own type number at run time: the name is what identifies it.
      return a.itemsize() == 2 && a.dtype().kind() == 'V' &&
             py::cast<std::string>(a.dtype().attr("name")) == "bfloat16";
    } else {
      return py::dtype::of<T>().is(a.dtype()) || py::dtype::of<T>().equal(a.dtype());
    }
  }

  template <class T>
  static std::string dtype_name() {
    if constexpr (std::is_same_v<T, bf16>)
      return "bfloat16";
    else
      return py::str(py::dtype::of<T>());
  }

  py::array array(py::handle object, const char* name) const {
    if (!py::isinstance<py::array>(object))
      throw py::type_error(op_ + ": " + name + " must be a numpy.ndarray, got " +
                           std::string(py::str(py::type::of(object).attr("__name__"))));
    return py::reinterpret_borrow<py::array>(object);
  }

  struct Span {
    uintptr_t begin, end;
    std::string name;
    Access access;
  };

  void note(const py::array& a, const char* name, Access access) const {
    const auto begin = reinterpret_cast<uintptr_t>(a.data());
    if (a.nbytes())
      spans_.push_back({begin, begin + static_cast<size_t>(a.nbytes()), name, access});
  }

  static constexpr int64_t kLargest = int64_t{1} << 53;

  std::string op_;
  mutable std::vector<Span> spans_;
};

// Lets other Python threads run while a kernel computes; the arguments have all been checked.
class Released {
 public:
  explicit Released(const Args& a, const void* same = nullptr) {
    a.check_apart(same);
    gil_.emplace();
  }

 private:
  std::optional<py::gil_scoped_release> gil_;
};

}  // namespace pycap
