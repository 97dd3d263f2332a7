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

/* What a block does: a tile of rows of one sequence, in x, where the same tile of every
 * sequence comes before the next one; a head in y. Neither y nor z would hold as many
 * sequences as a batch may have. */
static inline dim3 attn_grid(int rows, int tile, int heads, int n_seqs)
{
    return dim3((unsigned)(((rows - 1) / tile + 1) * (int64_t)n_seqs), (unsigned)heads);
}

/* The launch of any kernel here over this shape is one that CUDA takes. */
static inline bool attn_grid_ok(const kn_attn_shape *s)
{
    const int64_t most_tiles = (s->max_k + 31) / 32;

    return most_tiles * s->n_seqs <= INT32_MAX && s->heads <= 65535;
}

__device__ static inline int attn_seq(const kn_attn_shape &s)
{
    return (int)(blockIdx.x % (unsigned)s.n_seqs);
}

__device__ static inline int attn_tile(const kn_attn_shape &s)
{
    return (int)(blockIdx.x / (unsigned)s.n_seqs);
}

/* The same from the sequence's end. */
__device__ static inline int attn_tile_last(const kn_attn_shape &s)
{
    return (int)((gridDim.x - 1 - blockIdx.x) / (unsigned)s.n_seqs);
}

/* The shape as kernels take it: a window that reaches over every sequence is none, so
 * that sums with it stay within an int. */
static inline kn_attn_shape attn_shape(const kn_attn_shape *s)
{
    kn_attn_shape r = *s;

    if (r.window >= r.max_k)
        r.window = 0;
    return r;
}

/* query_key: the key the query stands at. */
__device__ static inline bool attn_sees(int query_key, int key, int window)
{
    return key <= query_key && (window <= 0 || key > query_key - window);
}

template <class T> struct attn_bwd_args {
    T *dq, *dk, *dv;
    const T *d_o, *o, *q, *k, *v;
    int64_t lddq, lddk, lddv, lddo, ldo, ldq, ldk, ldv;
    const float *lse;
    float *delta;
    kn_attn_shape s;
};

template <class T> static attn_bwd_args<T> attn_bwd_of(const kn_attn_bwd *b)
{
    attn_bwd_args<T> a;

    a.dq = (T *)b->dq.p;
    a.dk = (T *)b->dk.p;
    a.dv = (T *)b->dv.p;
    a.d_o = (const T *)b->d_o.p;
    a.o = (const T *)b->o.p;
    a.q = (const T *)b->q.p;
    a.k = (const T *)b->k.p;
    a.v = (const T *)b->v.p;
    a.lddq = b->dq.ld;
    a.lddk = b->dk.ld;
    a.lddv = b->dv.ld;
    a.lddo = b->d_o.ld;
    a.ldo = b->o.ld;
    a.ldq = b->q.ld;
    a.ldk = b->k.ld;
    a.ldv = b->v.ld;
    a.lse = b->lse;
    a.delta = b->delta;
    a.s = attn_shape(&b->shape);
    return a;
}

/* attn_mma_*.cu; the operands are bf16 and fit cuda_attn_mma_ok. */
bool cuda_attn_mma_ok(const kn_attn_shape *s, const kn_mat *const *mats, int n);
int cuda_attn_mma_fwd(kn_ctx *ctx, const kn_attn_fwd *a);
int cuda_attn_mma_bwd(kn_ctx *ctx, const kn_attn_bwd *a);

#endif
