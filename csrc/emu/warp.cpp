// Instructions that the lanes of a warp execute together.
#include <cmath>
#include <cstring>

#include "device.h"
#include "memory.h"
#include "numbers.h"
#include "state.h"

namespace pycap::emu {

namespace {

struct Exchange {
  uint32_t word;
  Shuffle how;
  int amount, width;
};

void exchange(const void* const* inputs, void* const* outputs) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!outputs[lane]) continue;
    const Exchange& mine = *static_cast<const Exchange*>(inputs[lane]);
    const int first = lane / mine.width * mine.width;
    int from = lane;
    if (mine.how == Shuffle::kIndex)
      from = first + mine.amount % mine.width;
    else if (mine.how == Shuffle::kUp)
      from = lane - mine.amount < first ? lane : lane - mine.amount;
    else if (mine.how == Shuffle::kDown)
      from = lane + mine.amount >= first + mine.width ? lane : lane + mine.amount;
    else
      from = (lane ^ mine.amount) >= first + mine.width ? lane : lane ^ mine.amount;
    const void* source = inputs[from];
    // A lane that takes no part gives anything: make it plain.
    *static_cast<uint32_t*>(outputs[lane]) =
        source ? static_cast<const Exchange*>(source)->word : 0xdeadbeefu;
  }
}

void collect(const void* const* inputs, void* const* outputs) {
  uint32_t votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (inputs[lane] && *static_cast<const bool*>(inputs[lane])) votes |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (outputs[lane]) *static_cast<uint32_t*>(outputs[lane]) = votes;
}

struct Fragments {
  const uint32_t *a, *b;
};

template <class T>
float low(uint32_t word) {
  return widen<T>(static_cast<uint16_t>(word));
}
template <class T>
float high(uint32_t word) {
  return widen<T>(static_cast<uint16_t>(word >> 16));
}

// d += a b for 16 x depth and depth x 8 matrices; each sum is rounded once.
void multiply(const float (&a)[16][16], const float (&b)[16][8], int depth, void* const* outputs) {
  double sums[16][8] = {};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < depth; ++k)
      for (int column = 0; column < 8; ++column)
        sums[row][column] += double{a[row][k]} * b[k][column];
  for (int lane = 0; lane < 32; ++lane) {
    auto* d = static_cast<float*>(outputs[lane]);
    for (int i = 0; i < 4; ++i)
      d[i] = static_cast<float>(d[i] + sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
  }
}

template <class T>
void product_16816(const void* const* inputs, void* const* outputs) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Fragments& mine = *static_cast<const Fragments*>(inputs[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      a[group + i % 2 * 8][pair + i / 2 * 8] = low<T>(mine.a[i]);
      a[group + i % 2 * 8][pair + i / 2 * 8 + 1] = high<T>(mine.a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[pair + i * 8][group] = low<T>(mine.b[i]);
      b[pair + i * 8 + 1][group] = high<T>(mine.b[i]);
    }
  }
  multiply(a, b, 16, outputs);
}

// The tensor core drops the bits that TensorFloat-32 lacks, so operands that were not rounded err
// more.
float truncated(uint32_t word) {
  word &= 0xffffe000u;
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}

void product_1688(const void* const* inputs, void* const* outputs) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Fragments& mine = *static_cast<const Fragments*>(inputs[lane]);
    for (int i = 0; i < 4; ++i)
      a[lane / 4 + i % 2 * 8][lane % 4 + i / 2 * 4] = truncated(mine.a[i]);
    for (int i = 0; i < 2; ++i) b[lane % 4 + i * 4][lane / 4] = truncated(mine.b[i]);
  }
  multiply(a, b, 8, outputs);
}

struct Rows {
  const void* address;
  bool transposed;
};

void load_matrices(const void* const* inputs, void* const* outputs) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t rows[8][8];
    for (int r = 0; r < 8; ++r)
      std::memcpy(rows[r], static_cast<const Rows*>(inputs[8 * matrix + r])->address, 16);
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, pair = lane % 4 * 2;
      const bool transposed = static_cast<const Rows*>(inputs[lane])->transposed;
      const uint16_t first = transposed ? rows[pair][group] : rows[group][pair];
      const uint16_t second = transposed ? rows[pair + 1][group] : rows[group][pair + 1];
      static_cast<uint32_t*>(outputs[lane])[matrix] = first | uint32_t{second} << 16;
    }
  }
}

}  // namespace

void together(const char* what, uint32_t mask, const void* input, void* output,
              void (*compute)(const void* const*, void* const*), void* where) {
  Thread& thread = *current_thread;
  Warp& warp = *thread.warp;
  const uint32_t bit = 1u << thread.lane;
  if (!(mask & bit))
    fail(std::string("calls ") + what + " with a mask that lacks its own lane", where);
  if (mask == 0xffffffffu && output && warp.lanes.size() < 32 && compute != exchange &&
      compute != collect)
    fail(std::string("calls ") + what + " in a warp of " + std::to_string(warp.lanes.size()) +
             " threads",
         where);
  // A last warp with fewer threads is full as it is.
  if (warp.lanes.size() < 32) mask &= (1u << warp.lanes.size()) - 1;
  Rendezvous* meeting = nullptr;
  for (Rendezvous& m : warp.meetings) {
    if (!(m.mask & bit)) continue;
    if (m.mask != mask || m.what != what ||
        (m.where != where && location(m.where) != location(where)))
      fail(std::string("divergent lanes: it comes to ") + what + ", others of its warp wait at " +
               m.what + " at " + location(m.where),
           where);
    meeting = &m;
  }
  for (const Thread& other : warp.lanes)
    if ((mask >> other.lane & 1) && other.state == State::kDone)
      fail(std::string("divergent lanes: it comes to ") + what + ", but " + name_of(other) +
               " has returned",
           where);
  if (!meeting) {
    warp.meetings.push_back({what, mask, 0, where, {}, {}});
    meeting = &warp.meetings.back();
  }
  meeting->input[thread.lane] = input;
  meeting->output[thread.lane] = output;
  meeting->arrived |= bit;
  if (meeting->arrived != mask) return wait_at(what, where);
  if (compute) {
    current_thread = nullptr;  // what follows is no access of the kernel's
    compute(meeting->input, meeting->output);
    current_thread = &thread;
  } else {
    synchronise(warp);
  }
  warp.meetings.erase(warp.meetings.begin() + (meeting - warp.meetings.data()));
  progress();
  for (Thread& other : warp.lanes)
    if ((mask >> other.lane & 1) && &other != &thread) make_ready(other);
}

void barrier_warp(uint32_t mask) {
  together("__syncwarp", mask, nullptr, nullptr, nullptr, __builtin_return_address(0));
}

uint32_t shuffle(uint32_t mask, uint32_t word, Shuffle how, int amount, int width) {
  const Exchange mine{word, how, amount, width};
  uint32_t got = 0;
  together("a shuffle", mask, &mine, &got, exchange, __builtin_return_address(0));
  return got;
}

uint32_t ballot(uint32_t mask, bool predicate) {
  uint32_t votes = 0;
  together("a vote", mask, &predicate, &votes, collect, __builtin_return_address(0));
  return votes;
}

template <class T>
void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Fragments mine{a, b};
  together("mma.m16n8k16", 0xffffffffu, &mine, d, product_16816<T>, __builtin_return_address(0));
}
template void mma_16816<__nv_bfloat16>(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]);
template void mma_16816<__half>(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]);

void mma_1688_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Fragments mine{a, b};
  together("mma.m16n8k8", 0xffffffffu, &mine, d, product_1688, __builtin_return_address(0));
}

void ldmatrix_x4(uint32_t (&r)[4], const void* shared, bool transposed) {
  void* where = __builtin_return_address(0);
  check_access(shared, 16, 16, Kind::kRead, where);
  const Rows mine{shared, transposed};
  together("ldmatrix", 0xffffffffu, &mine, r, load_matrices, where);
}

uint32_t tf32(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  if ((word & 0x7f800000u) == 0x7f800000u) return word;  // infinity or NaN
  return (word + 0x1000u) & 0xffffe000u;                 // to nearest, ties away from zero
}

}  // namespace pycap::emu
