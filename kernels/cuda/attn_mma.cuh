/* attn_mma.cuh - what the tensor-core attention kernels share: tiles are rows of one head,
 * HD columns, the head size rounded up to one of 16, 32, 64, 96, 128, the rest zero. */
#ifndef KERNELS_CUDA_ATTN_MMA_CUH
#define KERNELS_CUDA_ATTN_MMA_CUH

#include "attn.cuh"
#include "mma.cuh"

static constexpr float LOG2E = 1.4426950408889634f;

/* Calls run.operator()<HD>() with the head size rounded up. */
template <class F> static int attn_mma_by_size(int head_dim, F run)
{
    if (head_dim <= 16)
        return run(std::integral_constant<int, 16>());
    if (head_dim <= 32)
        return run(std::integral_constant<int, 32>());
    if (head_dim <= 64)
        return run(std::integral_constant<int, 64>());
    if (head_dim <= 96)
        return run(std::integral_constant<int, 96>());
    return run(std::integral_constant<int, 128>());
}

#endif
