// Writes down which parallel regions ran on how many threads: loaded ahead of clang's OpenMP
// (LD_PRELOAD), whose entry points for a region it passes on. At the end of the process appends
// "file:line threads times" a line to the file that $PYCAP_REGIONS names.
//
// Clang announces a region's threads (`num_threads`, which all of pycap's regions have) with its
// place in the source, and then begins it, or runs it on the one thread where its `if` says so.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace {

struct Ident {  // of LLVM's OpenMP: ";file;function;line;column;;" in the last field
  int reserved1, flags, reserved2, reserved3;
  const char* source;
};

std::mutex lock;
std::map<std::pair<std::string, int>, long>* regions;  // by place and threads; never destroyed

thread_local std::string announced;
thread_local int announced_threads = 0;

std::string place(const char* source) {
  std::string fields[4];
  for (int i = 0; source && *source && i < 4; ++i) {
    const char* end = strchr(++source, ';');
    if (!end) break;
    fields[i] = std::string(source, end);
    source = end;
  }
  return fields[0] + ":" + fields[2];
}

void count() {
  if (announced_threads == 0) return;
  const std::lock_guard<std::mutex> held(lock);
  if (!regions) regions = new std::map<std::pair<std::string, int>, long>;
  ++(*regions)[{announced, announced_threads}];
  announced_threads = 0;
}

__attribute__((destructor)) void write_down() {
  count();
  const char* path = getenv("PYCAP_REGIONS");
  if (!path || !regions) return;
  std::string lines;
  for (const auto& [region, times] : *regions)
    lines +=
        region.first + " " + std::to_string(region.second) + " " + std::to_string(times) + "\n";
  const int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (file < 0 || write(file, lines.data(), lines.size()) != (ssize_t)lines.size()) perror(path);
  if (file >= 0) close(file);
}

template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void __kmpc_push_num_threads(Ident* at, int gtid,
                                                                               int threads) {
  static const auto real = next<void (*)(Ident*, int, int)>("__kmpc_push_num_threads");
  count();
  announced = place(at->source), announced_threads = threads;
  real(at, gtid, threads);
}

extern "C" __attribute__((visibility("default"))) void __kmpc_serialized_parallel(Ident* at,
                                                                                  int gtid) {
  static const auto real = next<void (*)(Ident*, int)>("__kmpc_serialized_parallel");
  announced_threads = 0;
  real(at, gtid);
}
