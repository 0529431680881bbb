// Gathers one instruction set's kernels into its table.
#include "pycap/kernels.h"

#define PYCAP_TEXT2(x) #x
#define PYCAP_TEXT(x) PYCAP_TEXT2(x)

namespace pycap::PYCAP_ISA {

extern const Conv2dKernels conv2d_kernels;
extern const LinearKernels linear_kernels;
extern const LstmKernels lstm_kernels;
extern const SoftmaxXentKernels softmax_xent_kernels;
extern const PoolKernels<float> pool_kernels;
extern const PoolKernels<bf16> pool_kernels_bf16;
extern const DropoutKernels<float> dropout_kernels;
extern const DropoutKernels<bf16> dropout_kernels_bf16;
extern const EmbeddingKernels<float> embedding_kernels;
extern const EmbeddingKernels<bf16> embedding_kernels_bf16;
extern const PreprocessKernels<float> preprocess_kernels;
extern const PreprocessKernels<bf16> preprocess_kernels_bf16;
extern const CastKernels cast_kernels;
extern const OptimKernels optim_kernels;
extern const ResizeKernels resize_kernels;

extern const Kernels table;
const Kernels table = {
    PYCAP_TEXT(PYCAP_ISA),
    &conv2d_kernels,
    &linear_kernels,
    &lstm_kernels,
    &softmax_xent_kernels,
    {&pool_kernels, &dropout_kernels, &embedding_kernels, &preprocess_kernels},
    {&pool_kernels_bf16, &dropout_kernels_bf16, &embedding_kernels_bf16, &preprocess_kernels_bf16},
    &cast_kernels,
    &optim_kernels,
    &resize_kernels,
};

}  // namespace pycap::PYCAP_ISA
