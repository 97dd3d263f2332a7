/* attn.cuh - what the attention kernels share: one sequence, and who sees whom. */
#ifndef KERNELS_CUDA_ATTN_CUH
#define KERNELS_CUDA_ATTN_CUH

#include "cuda.cuh"

struct attn_at { /* one sequence and where its rows lie */
    int q0, lq, k0, lk, shift;
};

__device__ static inline attn_at attn_sequence(const kn_attn_shape &s, int i)
{
    attn_at a;
    a.q0 = s.cu_q[i];
    a.lq = s.cu_q[i + 1] - a.q0;
    a.k0 = s.cu_k[i];
    a.lk = s.cu_k[i + 1] - a.k0;
    a.shift = a.lk - a.lq; /* query i stands at key i + shift */
    return a;
}

/* query_key: the key the query stands at. */
__device__ static inline bool attn_sees(int query_key, int key, int window)
{
    return key <= query_key && (window <= 0 || key > query_key - window);
}

/* attn_mma_*.cu; the operands are bf16 and fit cuda_attn_mma_ok. */
bool cuda_attn_mma_ok(const kn_attn_shape *s, const kn_mat *const *mats, int n);
int cuda_attn_mma_fwd(kn_ctx *ctx, const kn_attn_fwd *a);
int cuda_attn_mma_bwd(kn_ctx *ctx, const kn_attn_bwd *a);

#endif
