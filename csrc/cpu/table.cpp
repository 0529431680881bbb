// Gathers one instruction set's kernels into its table.
#include "pycap/kernels.h"

#define PYCAP_TEXT2(x) #x
#define PYCAP_TEXT(x) PYCAP_TEXT2(x)

namespace pycap::PYCAP_ISA {

extern const Conv2dKernels conv2d_kernels;
extern const PoolKernels pool_kernels;
extern const LinearKernels linear_kernels;
extern const DropoutKernels dropout_kernels;
extern const EmbeddingKernels embedding_kernels;
extern const LstmKernels lstm_kernels;
extern const SoftmaxXentKernels softmax_xent_kernels;
extern const PreprocessKernels preprocess_kernels;
extern const CastKernels cast_kernels;
extern const OptimKernels optim_kernels;

extern const Kernels table;
const Kernels table = {PYCAP_TEXT(PYCAP_ISA), &conv2d_kernels,       &pool_kernels,
                       &linear_kernels,       &dropout_kernels,      &embedding_kernels,
                       &lstm_kernels,         &softmax_xent_kernels, &preprocess_kernels,
                       &cast_kernels,         &optim_kernels};

}  // namespace pycap::PYCAP_ISA
