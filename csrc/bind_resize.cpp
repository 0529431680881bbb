// Binds the squash of images, which reads Pillow's own memory: it comes as an Arrow array.
#include <memory>

#include "bind_cpu.h"

namespace pycap {
namespace {

// Of the Arrow C data interface (arrow.apache.org/docs/format/CDataInterface.html), up to what is
// read.
struct ArrowSchema {
  const char* format;
  const char* name;
  const char* metadata;
  int64_t flags, n_children;
  ArrowSchema** children;
};

struct ArrowArray {
  int64_t length, null_count, offset, n_buffers, n_children;
  const void** buffers;
  ArrowArray** children;
};

template <class T>
const T& held(const Args& a, Obj capsule, const char* name) {
  if (!PyCapsule_IsValid(capsule.ptr(), name))
    a.bad_value(std::string("pixels must be a pair of Arrow capsules, and this is no ") + name);
  return *static_cast<const T*>(PyCapsule_GetPointer(capsule.ptr(), name));
}

// The H*W pixels of four bytes that the capsules hold.
const uint8_t* pixels_of(const Args& a, const py::tuple& capsules, int64_t H, int64_t W) {
  if (capsules.size() != 2) a.bad_value("pixels must be a pair of Arrow capsules");
  const auto& schema = held<ArrowSchema>(a, capsules[0], "arrow_schema");
  const auto& array = held<ArrowArray>(a, capsules[1], "arrow_array");
  const bool fours = std::string(schema.format) == "+w:4" && schema.n_children == 1 &&
                     std::string(schema.children[0]->format) == "C";
  if (!fours) a.bad_value("pixels must be of four bytes, as Pillow holds RGB");
  if (array.length != H * W || array.n_children != 1 || array.offset != 0 ||
      array.children[0]->length != 4 * H * W || array.children[0]->offset != 0 ||
      array.children[0]->n_buffers != 2)
    a.bad_value("pixels are not " + std::to_string(H) + "x" + std::to_string(W) +
                ", in one piece: " + std::to_string(array.length));
  return static_cast<const uint8_t*>(array.children[0]->buffers[1]);
}

// out [P,Q,3]; pixels: what __arrow_c_array__ of a Pillow image of H x W gives; high, wide: what of
// it is resized.
void squash(Obj out, const py::tuple& pixels, int64_t H, int64_t W, double high, double wide) {
  const Args a("squash");
  const Shape to = a.shape(out, "out", 3);
  const ResizeShape s{H, W, to[0], to[1], high, wide};
  for (int64_t side : {s.H, s.W, s.P, s.Q})
    if (side < 1 || side > ResizeShape::kLongest)
      a.bad_value("sides must lie in 1.." + std::to_string(ResizeShape::kLongest) + ", got " +
                  std::to_string(side));
  // Every pixel of the result needs some of the image.
  if (!(high > H - 1 && high <= H && wide > W - 1 && wide <= W))
    a.bad_value("the part that is resized must end in the last row and column, got " +
                std::to_string(high) + "x" + std::to_string(wide) + " of " + text({H, W}));
  uint8_t* y = a.data<uint8_t>(out, "out", {s.P, s.Q, 3}, kOut);
  const uint8_t* x = pixels_of(a, pixels, H, W);
  Nogil nogil(a);
  const std::unique_ptr<char[]> ws(new char[k->resize->workspace(s)]);
  k->resize->bilinear(y, x, s, ws.get());
}

}  // namespace

void bind_resize(py::module_& m) {
  if (k->resize->bilinear)
    m.def("squash", squash, "out"_a, "pixels"_a, "height"_a, "width"_a, "high"_a, "wide"_a);
}

}  // namespace pycap
