// Where in the kernels' source an address of their code stands, for reports.
#include <dlfcn.h>

#include <cstdio>
#include <sstream>

#include "state.h"

namespace pycap::emu {

namespace {

// addr2line's answer: the chain of inlined places at an address, innermost first.
std::string ask(const char* library, uintptr_t offset) {
  std::ostringstream command;
  command << "addr2line -i -e '" << library << "' 0x" << std::hex << offset << " 2>/dev/null";
  std::string out;
  if (FILE* pipe = popen(command.str().c_str(), "r")) {
    char buffer[512];
    while (std::fgets(buffer, sizeof buffer, pipe)) out += buffer;
    pclose(pipe);
  }
  return out;
}

// Whether a place is in a header that only gives CUDA's instructions names: who calls it is wanted.
bool names_instruction(const std::string& line) {
  for (const char* header : {"/emu/cuda.h:", "/emu/groups.h:", "/emu/wmma.h:", "/cuda/order.h:",
                             "/cuda/tensor_cores.h:", "/cuda/types.h:"})
    if (line.find(header) != std::string::npos) return true;
  return false;
}

std::string resolve(void* where) {
  Dl_info info;
  if (!where || !dladdr(where, &info)) return "an unknown place";
  // A call's return address is that of what follows it.
  const uintptr_t offset =
      reinterpret_cast<uintptr_t>(where) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
  std::istringstream lines(ask(info.dli_fname, offset));
  std::string line, first;
  while (std::getline(lines, line)) {
    line = line.substr(0, line.find(" (discriminator"));
    if (first.empty()) first = line;
    if (names_instruction(line)) continue;
    first = line;
    break;
  }
  const size_t folder = first.find("csrc/");
  if (folder != std::string::npos) first = first.substr(folder);
  return first.empty() || first[0] == '?' ? "an unknown line" : first;
}

}  // namespace

std::string location(void* where) {
  static std::unordered_map<void*, std::string> known;
  auto& text = known[where];
  if (text.empty()) text = resolve(where);
  return text;
}

}  // namespace pycap::emu
