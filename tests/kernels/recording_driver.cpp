// A stand-in for the CUDA driver: remembers what it was told, launches nothing. Built by test_launch.py.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

namespace {

struct Record {
  uint32_t launches, grid[3], block[3], shared;
  uint64_t function, stream, parameter_bytes;
  int32_t cooperative, shared_allowed;
  char symbol[64];
  unsigned char parameters[4096];
};

struct Attribute {
  int id;
  char pad[4];
  int value;
  char rest[60];
};

struct Config {
  unsigned grid[3], block[3], shared;
  void* stream;
  Attribute* attributes;
  unsigned count;
};

Record record;
int next_status = 0;

int Launch(const unsigned* grid, const unsigned* block, unsigned shared, void* stream, void* function, void** extra) {
  ++record.launches;
  std::memcpy(record.grid, grid, sizeof record.grid);
  std::memcpy(record.block, block, sizeof record.block);
  record.shared = shared;
  record.stream = reinterpret_cast<uint64_t>(stream);
  record.function = reinterpret_cast<uint64_t>(function);
  if (extra[0] != reinterpret_cast<void*>(1) || extra[2] != reinterpret_cast<void*>(2) || extra[4]) return 1;
  record.parameter_bytes = *static_cast<size_t*>(extra[3]);
  std::memcpy(record.parameters, extra[1], record.parameter_bytes);
  const int status = next_status;
  next_status = 0;
  return status;
}

}  // namespace

extern "C" {

Record* Last() { return &record; }

void FailNext(int status) { next_status = status; }

int cuModuleLoadData(void** module, const char* image) {
  *module = const_cast<char*>(image);
  return std::strncmp(image, "broken", 6) == 0 ? 200 : 0;
}

int cuModuleGetFunction(void** function, void*, const char* name) {
  std::snprintf(record.symbol, sizeof record.symbol, "%s", name);
  *function = reinterpret_cast<void*>(0x1234);
  return std::strcmp(name, "missing") == 0 ? 500 : 0;
}

int cuFuncSetAttribute(void*, int attribute, int value) {
  record.shared_allowed = attribute == 8 ? value : -1;
  return 0;
}

// Notes its arguments in the map: address, type, rank, swizzle, then sizes, strides and the box, innermost first.
int cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address, const uint64_t* sizes,
                           const uint64_t* strides, const uint32_t* box, const uint32_t* steps, int interleave,
                           int swizzle, int promotion, int fill) {
  if (reinterpret_cast<uint64_t>(map) % 64 || interleave || fill || promotion != 2 || steps[0] != 1) return 1;
  uint32_t* out = static_cast<uint32_t*>(map);
  std::memcpy(out, &address, 8);
  out[2] = type, out[3] = rank, out[4] = swizzle;
  for (unsigned i = 0; i < rank; ++i) {
    out[8 + i] = static_cast<uint32_t>(sizes[i]);
    out[16 + i] = i + 1 < rank ? static_cast<uint32_t>(strides[i]) : 0;
    out[24 + i] = box[i];
  }
  return 0;
}

int cuGetErrorName(int status, const char** name) {
  *name = status == 200 ? "CUDA_ERROR_INVALID_IMAGE" : status == 500 ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR_LAUNCH_FAILED";
  return 0;
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** parameters, void** extra) {
  const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
  record.cooperative = 0;
  return parameters ? 1 : Launch(grid, block, shared, stream, function, extra);
}

int cuLaunchKernelEx(const Config* config, void* function, void** parameters, void** extra) {
  record.cooperative = config->count == 1 && config->attributes->id == 2 ? config->attributes->value : -1;
  return parameters ? 1 : Launch(config->grid, config->block, config->shared, config->stream, function, extra);
}
}
