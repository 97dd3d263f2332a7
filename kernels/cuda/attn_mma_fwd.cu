/* attn_mma_fwd.cu - attention forward on tensor cores, bf16 in, float32 inside.
 *
 * Dao 2023 (arXiv:2307.08691), algorithm 1: a block owns 128 queries of one head, each
 * of its four warps 32 of them, and walks over tiles of 64 keys that begin at the
 * sequence's first key. Scores stay in registers and become the A operand of the
 * product with V. While the scores of a tile are made its V arrives; while they are
 * used the next K does. A tile of which a row sees nothing leaves the row's numbers as
 * they are, so that a row does not depend on the other rows of its block. */
#include "attn_mma.cuh"

#include <type_traits>

struct mma_fwd_args {
    bf16_t *o;
    float *lse;
    const bf16_t *q, *k, *v;
    int64_t ldo, ldq, ldk, ldv;
    int group; /* query heads of a key head */
    kn_attn_shape s;
};

enum { MT = 2, BM = 16 * MT * MMA_WARPS, BN = 64 }; /* queries and keys of a block's tile */

/* The scores of a warp's 32 queries and a tile of keys, unscaled. */
template <int HD>
__device__ static inline void tile_scores(float s[MT][BN / 8][4], const bf16_t *q, const bf16_t *k)
{
#pragma unroll
    for (int i = 0; i < MT * (BN / 8) * 4; i++)
        s[i / (BN / 2)][i / 4 % (BN / 8)][i % 4] = 0.0f;
#pragma unroll
    for (int c = 0; c < HD; c += 16) {
        uint32_t a[MT][4], b[4];
        for (int i = 0; i < MT; i++)
            frag_a<HD>(a[i], q + i * 16 * (HD + 8), c);
#pragma unroll
        for (int n = 0; n < BN / 8; n += 2) {
            frag_b<HD>(b, k, n * 8, c);
#pragma unroll
            for (int i = 0; i < MT; i++) {
                mma_m16n8k16(s[i][n], a[i], b, s[i][n]);
                mma_m16n8k16(s[i][n + 1], a[i], b + 2, s[i][n + 1]);
            }
        }
    }
}

/* -infinity where a query does not see a key. query_key: of the lane's first row. */
__device__ static inline void mask_scores(float s[MT][BN / 8][4], int query_key, int key,
                                          int window)
{
#pragma unroll
    for (int i = 0; i < MT; i++) {
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (!attn_sees(query_key + i * 16 + e / 2 * 8, key + n * 8 + e % 2, window))
                    s[i][n][e] = -INFINITY;
            }
        }
    }
}

/* Scores to probabilities p against the rows' running maxima; what was summed up before
 * is scaled to the new ones. m: unscaled; c: scale * log2(e). */
template <int HD>
__device__ static inline void soften(uint32_t p[BN / 16][4], float s[BN / 8][4],
                                     float acc[HD / 8][4], float m[2], float l[2], float c)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = m[h], sum = 0.0f;
#pragma unroll
        for (int n = 0; n < BN / 8; n++)
            top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        const float base = top == -INFINITY ? 0.0f : top * c;
        /* Exactly 1 where nothing larger came: the difference would be the rounding of
         * `base` where the compiler fuses it with the product. */
        const float keep = top == m[h] ? 1.0f : exp2_fast(m[h] * c - base);
        m[h] = top;
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
            s[n][2 * h] = exp2_fast(s[n][2 * h] * c - base);
            s[n][2 * h + 1] = exp2_fast(s[n][2 * h + 1] * c - base);
            sum += s[n][2 * h] + s[n][2 * h + 1];
        }
        l[h] = l[h] * keep + sum; /* of the lane's own columns */
#pragma unroll
        for (int n = 0; n < HD / 8; n++) {
            acc[n][2 * h] *= keep;
            acc[n][2 * h + 1] *= keep;
        }
    }
#pragma unroll
    for (int n = 0; n < BN / 16; n++)
        frag_of_acc(p[n], s[2 * n], s[2 * n + 1]);
}

/* acc += P V. */
template <int HD>
__device__ static inline void add_values(float acc[MT][HD / 8][4], const uint32_t p[MT][BN / 16][4],
                                         const bf16_t *v)
{
#pragma unroll
    for (int j = 0; j < BN / 16; j++) {
        uint32_t b[4];
#pragma unroll
        for (int n = 0; n < HD / 8; n += 2) {
            frag_b_rows<HD>(b, v, j * 16, n * 8);
#pragma unroll
            for (int i = 0; i < MT; i++) {
                mma_m16n8k16(acc[i][n], p[i][j], b, acc[i][n]);
                mma_m16n8k16(acc[i][n + 1], p[i][j], b + 2, acc[i][n + 1]);
            }
        }
    }
}

/* A warp's rows of the result and their log-sum-exp. sq: the warp's queries, read. */
template <int HD>
__device__ static inline void finish(const mma_fwd_args &a, const attn_at &at, int h, int row0,
                                     bf16_t *sq, const float acc[MT][HD / 8][4],
                                     const float m[MT][2], float l[MT][2])
{
    const int lane = threadIdx.x & 31, hd = a.s.head_dim;

    if (row0 >= at.lq)
        return;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < MT; i++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            l[i][j] += __shfl_xor_sync(0xffffffffu, l[i][j], 1);
            l[i][j] += __shfl_xor_sync(0xffffffffu, l[i][j], 2);
            const int row = row0 + i * 16 + j * 8 + (lane >> 2);
            if ((lane & 3) == 0 && row < at.lq)
                a.lse[(int64_t)(at.q0 + row) * a.s.heads + h] = m[i][j] * a.s.scale + logf(l[i][j]);
        }
        put_acc<HD>(sq + i * 16 * (HD + 8), acc[i], __fdividef(1.0f, l[i][0]),
                    __fdividef(1.0f, l[i][1]));
    }
    __syncwarp();
    store_rows<HD>(a.o + (int64_t)(at.q0 + row0) * a.ldo + h * hd, a.ldo, sq,
                   min(16 * MT, at.lq - row0), hd);
}

template <int HD> __global__ void __launch_bounds__(MMA_THREADS) attn_mma_fwd(mma_fwd_args a)
{
    const attn_at at = attn_sequence(a.s, attn_seq(a.s));
    const int q0 = attn_tile_last(a.s) * BM; /* the longest rows start first */
    const int h = blockIdx.y, hd = a.s.head_dim, lane = threadIdx.x & 31, window = a.s.window;
    const int warp0 = warp_number() * 16 * MT, row0 = q0 + warp0, at_key = row0 + at.shift;
    const float c = a.s.scale * LOG2E;
    float acc[MT][HD / 8][4] = {}, s[MT][BN / 8][4], m[MT][2], l[MT][2];

    if (q0 >= at.lq)
        return;
    DYN_SHARED(sm);
    bf16_t *sq = sm.take<bf16_t>(BM * (HD + 8)), *sk = sm.take<bf16_t>(BN * (HD + 8));
    bf16_t *sv = sm.take<bf16_t>(BN * (HD + 8));
    const int kv = h / a.group * hd;
    const int end = min(q0 + BM, at.lq) + at.shift;
    const int first = window > 0 ? max(0, q0 + at.shift - window + 1) / BN * BN : 0;
    load_rows<HD, BM>(sq, a.q + at.q0 * a.ldq + h * hd, a.ldq, q0, at.lq, hd);
    load_rows<HD, BN>(sk, a.k + at.k0 * a.ldk + kv, a.ldk, first, at.lk, hd);
    cp_async_commit();
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        m[i / 2][i % 2] = -INFINITY;
        l[i / 2][i % 2] = 0.0f;
    }
    for (int j0 = first; j0 < end; j0 += BN) {
        /* Uniform over the warp: has a row, and a key that a row sees. */
        const bool busy =
            row0 < at.lq && j0 < at_key + 16 * MT && (window <= 0 || j0 + BN - 1 > at_key - window);
        const bool whole =
            j0 + BN - 1 <= at_key && (window <= 0 || j0 > at_key + 16 * MT - 1 - window);
        cp_async_wait<0>();
        __syncthreads(); /* K is there; V of the tile before is no longer read */
        load_rows<HD, BN>(sv, a.v + at.k0 * a.ldv + kv, a.ldv, j0, at.lk, hd);
        cp_async_commit();
        if (busy)
            tile_scores<HD>(s, sq + warp0 * (HD + 8), sk);
        cp_async_wait<0>();
        __syncthreads(); /* V is there; K is no longer read */
        if (j0 + BN < end)
            load_rows<HD, BN>(sk, a.k + at.k0 * a.ldk + kv, a.ldk, j0 + BN, at.lk, hd);
        cp_async_commit();
        if (!busy)
            continue;
        uint32_t p[MT][BN / 16][4];
        if (!whole)
            mask_scores(s, at_key + (lane >> 2), j0 + 2 * (lane & 3), window);
#pragma unroll
        for (int i = 0; i < MT; i++)
            soften<HD>(p[i], s[i], acc[i], m[i], l[i], c);
        add_values<HD>(acc, p, sv);
    }
    finish<HD>(a, at, h, row0, sq + warp0 * (HD + 8), acc, m, l);
}

bool cuda_attn_mma_ok(const kn_attn_shape *s, const kn_mat *const *mats, int n)
{
    for (int i = 0; i < n; i++) {
        if (mats[i]->dtype != KN_BF16 || (uintptr_t)mats[i]->p % 16 || mats[i]->ld % 8)
            return false; /* rows of 16-byte pieces */
    }
    return s->scale > 0.0f; /* the largest score is that of the largest product */
}

int cuda_attn_mma_fwd(kn_ctx *ctx, const kn_attn_fwd *f)
{
    const kn_attn_shape *s = &f->shape;
    const mma_fwd_args a = {(bf16_t *)f->o.p,
                            f->lse,
                            (const bf16_t *)f->q.p,
                            (const bf16_t *)f->k.p,
                            (const bf16_t *)f->v.p,
                            f->o.ld,
                            f->q.ld,
                            f->k.ld,
                            f->v.ld,
                            s->heads / s->kv_heads,
                            attn_shape(s)};
    const dim3 grid = attn_grid(s->max_q, BM, s->heads, s->n_seqs);

    return attn_mma_by_size(s->head_dim, [&](auto size) {
        constexpr int HD = decltype(size)::value;
        const size_t smem =
            SMEM16(BM * (HD + 8) * sizeof(bf16_t)) + 2 * SMEM16(BN * (HD + 8) * sizeof(bf16_t));
        cudaFuncSetAttribute(attn_mma_fwd<HD>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)smem);
        LAUNCH(attn_mma_fwd<HD>, grid, MMA_THREADS, smem, ctx->stream, a);
        return cuda_launched();
    });
}
