// Checks of the arrays that Python hands over: each error names the primitive, the argument, the
// value and the remedy.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
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

  void* workspace(py::handle object, size_t need) const {
    const py::array a = array(object, "ws");
    if (a.itemsize() != 1 || static_cast<size_t>(a.nbytes()) < need)
      bad_value("ws must hold " + std::to_string(need) + " bytes of uint8, got " +
                std::to_string(a.nbytes()) + " bytes");
    if (need && reinterpret_cast<uintptr_t>(a.data()) % 64)
      bad_value("ws must be 64-byte aligned; take it from pycap.memory.workspace");
    return const_cast<void*>(a.data());
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
    const auto values = py::reinterpret_borrow<py::object>(object).cast<std::vector<float>>();
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

  std::string op_;
};

}  // namespace pycap
