// The table of kernels that one instruction set exports, and the choice among the tables.
#pragma once
#include "pycap/cast.h"
#include "pycap/conv2d.h"
#include "pycap/dropout.h"
#include "pycap/embedding.h"
#include "pycap/linear.h"
#include "pycap/lstm.h"
#include "pycap/optim.h"
#include "pycap/pool.h"
#include "pycap/preprocess.h"
#include "pycap/resize.h"
#include "pycap/softmax_xent.h"

namespace pycap {

// Kernels that serve activations in both storage types, Num being float or bf16.
template <class Num>
struct ActivationKernels {
  const PoolKernels<Num>* pool;
  const DropoutKernels<Num>* dropout;
  const EmbeddingKernels<Num>* embedding;
  const PreprocessKernels<Num>* preprocess;
};

struct Kernels {
  const char* isa;
  const Conv2dKernels* conv2d;
  const LinearKernels* linear;
  const LstmKernels* lstm;
  const SoftmaxXentKernels* softmax_xent;
  ActivationKernels<float> in_float;
  ActivationKernels<bf16> in_bf16;
  const CastKernels* cast;
  const OptimKernels* optim;
  const ResizeKernels* resize;
};

// The table for `wish` ("v4", "v3", "v1", "native"; null or "": the best that this CPU runs). On an
// impossible wish returns null and points *error at a message that lives until the next call.
const Kernels* select_kernels(const char* wish, const char** error);

}  // namespace pycap
