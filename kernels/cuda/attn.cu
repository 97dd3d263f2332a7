/* attn.cu - variable-length causal attention with grouped queries, for every head
 * size and both storage types: tiles of 32 queries by 32 keys, float32 inside. The
 * portable kernels: float32, and what attn_mma_*.cu is tested against; bf16 comes here
 * only where rows are not made of aligned 16-byte pieces.
 *
 * Online softmax over key tiles that begin at each sequence's first key (Dao 2023,
 * arXiv:2307.08691, algorithm 1); a row's numbers depend on nothing but its own
 * sequence. The backward recomputes probabilities from the log-sum-exp in two
 * kernels without atomics: one gathers dq over key tiles, one gathers dk and dv
 * over the query tiles of all heads of the group, both in a fixed order. */
#include "attn.cuh"

enum { TILE = 32, ATTN_THREADS = 256, ROWS = TILE * 32 / ATTN_THREADS };

/* Rows [r0, r0 + TILE) of a matrix's head into shared memory, zero beyond `rows`. */
template <class T>
__device__ static inline void load_tile(float *to, const T *from, int64_t ld, int r0, int rows,
                                        int hd)
{
    for (int i = threadIdx.x; i < TILE * hd; i += ATTN_THREADS) {
        const int r = i / hd, c = i % hd;
        to[r * (hd + 1) + c] = r0 + r < rows ? tof(from[(int64_t)(r0 + r) * ld + c]) : 0.0f;
    }
}

__device__ static inline float row_dot(const float *x, const float *y, int n)
{
    float sum = 0.0f;
    for (int i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

/* Thread (lane, warp): lane over keys, then over columns; warp owns ROWS queries. */
template <class T, int NC>
__global__ void __launch_bounds__(ATTN_THREADS)
    attn_fwd(T *o, int64_t ldo, float *lse, const T *q, int64_t ldq, const T *k, int64_t ldk,
             const T *v, int64_t ldv, kn_attn_shape s)
{
    const attn_at at = attn_sequence(s, attn_seq(s));
    const int q0 = attn_tile(s) * TILE, h = blockIdx.y, hd = s.head_dim, pad = hd + 1;
    const int kc = h / (s.heads / s.kv_heads) * hd;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float m[ROWS], l[ROWS], acc[ROWS][NC];

    if (q0 >= at.lq)
        return;
    DYN_SHARED(sm);
    float *sq = sm.take<float>(TILE * pad), *sk = sm.take<float>(TILE * pad);
    float *sv = sm.take<float>(TILE * pad), *sp = sm.take<float>(TILE * (TILE + 1));
    load_tile(sq, q + (int64_t)at.q0 * ldq + h * hd, ldq, q0, at.lq, hd);
    for (int r = 0; r < ROWS; r++) {
        m[r] = -INFINITY;
        l[r] = 0.0f;
        for (int c = 0; c < NC; c++)
            acc[r][c] = 0.0f;
    }
    int first = 0;
    if (s.window > 0 && q0 + at.shift - s.window + 1 > 0)
        first = (q0 + at.shift - s.window + 1) / TILE * TILE;
    for (int j0 = first; j0 < at.lk && j0 <= q0 + TILE - 1 + at.shift; j0 += TILE) {
        __syncthreads();
        load_tile(sk, k + (int64_t)at.k0 * ldk + kc, ldk, j0, at.lk, hd);
        load_tile(sv, v + (int64_t)at.k0 * ldv + kc, ldv, j0, at.lk, hd);
        __syncthreads();
        for (int r = 0; r < ROWS; r++) {
            const int row = warp * ROWS + r;
            const bool ok =
                j0 + lane < at.lk && attn_sees(q0 + row + at.shift, j0 + lane, s.window);
            const float x = ok ? row_dot(sq + row * pad, sk + lane * pad, hd) * s.scale : -INFINITY;
            const float top = fmaxf(m[r], warp_max(x));
            const float p = top == -INFINITY ? 0.0f : expf(x - top);
            const float keep = m[r] == -INFINITY ? 0.0f : expf(m[r] - top);
            l[r] = l[r] * keep + warp_sum(p);
            m[r] = top;
            sp[row * (TILE + 1) + lane] = p;
            __syncwarp();
            for (int c = 0; c < NC; c++) {
                const int col = c * 32 + lane;
                float sum = acc[r][c] * keep;
                for (int j = 0; col < hd && j < TILE; j++)
                    sum += sp[row * (TILE + 1) + j] * sv[j * pad + col];
                acc[r][c] = sum;
            }
        }
    }
    for (int r = 0; r < ROWS; r++) {
        const int row = q0 + warp * ROWS + r;
        if (row >= at.lq)
            continue;
        T *out = o + (int64_t)(at.q0 + row) * ldo + h * hd;
        for (int c = 0; c < NC; c++) {
            if (c * 32 + lane < hd)
                out[c * 32 + lane] = fromf<T>(acc[r][c] / l[r]);
        }
        if (lane == 0)
            lse[(int64_t)(at.q0 + row) * s.heads + h] = m[r] + logf(l[r]);
    }
}

/* delta[t, h] = sum over the head of do * o: a warp each. */
template <class T>
__global__ void attn_delta(float *delta, const T *d_o, int64_t lddo, const T *o, int64_t ldo,
                           int heads, int hd, int64_t n)
{
    const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    const int lane = threadIdx.x & 31;
    float sum = 0.0f;

    if (i >= n)
        return;
    const T *x = d_o + i / heads * lddo + i % heads * hd, *y = o + i / heads * ldo + i % heads * hd;
    for (int c = lane; c < hd; c += 32)
        sum += tof(x[c]) * tof(y[c]);
    sum = warp_sum(sum);
    if (lane == 0)
        delta[i] = sum;
}

/* What the tile pair (q0, j0) contributes: probabilities and score gradients. Warp's
 * rows are queries, lane is the key. */
template <class T>
__device__ static inline void pair_tile(const attn_bwd_args<T> &a, const attn_at &at, int h, int q0,
                                        int j0, const float *sq, const float *sdo, const float *sk,
                                        const float *sv, float *sp, float *sds)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, hd = a.s.head_dim, pad = hd + 1;

    for (int r = 0; r < ROWS; r++) {
        const int row = warp * ROWS + r;
        float p = 0.0f, ds = 0.0f;
        if (q0 + row < at.lq && j0 + lane < at.lk &&
            attn_sees(q0 + row + at.shift, j0 + lane, a.s.window)) {
            const int64_t t = (int64_t)(at.q0 + q0 + row) * a.s.heads + h;
            const float x = row_dot(sq + row * pad, sk + lane * pad, hd);
            const float dp = row_dot(sdo + row * pad, sv + lane * pad, hd);
            p = expf(x * a.s.scale - a.lse[t]);
            ds = p * (dp - a.delta[t]) * a.s.scale;
        }
        sp[row * (TILE + 1) + lane] = p;
        sds[row * (TILE + 1) + lane] = ds;
    }
}

template <class T, int NC>
__global__ void __launch_bounds__(ATTN_THREADS) attn_bwd_q(attn_bwd_args<T> a)
{
    const attn_at at = attn_sequence(a.s, attn_seq(a.s));
    const int q0 = attn_tile(a.s) * TILE, h = blockIdx.y, hd = a.s.head_dim, pad = hd + 1;
    const int kc = h / (a.s.heads / a.s.kv_heads) * hd;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float dq[ROWS][NC] = {};

    if (q0 >= at.lq)
        return;
    DYN_SHARED(sm);
    float *sq = sm.take<float>(TILE * pad), *sdo = sm.take<float>(TILE * pad);
    float *sk = sm.take<float>(TILE * pad), *sv = sm.take<float>(TILE * pad);
    float *sp = sm.take<float>(TILE * (TILE + 1)), *sds = sm.take<float>(TILE * (TILE + 1));
    load_tile(sq, a.q + (int64_t)at.q0 * a.ldq + h * hd, a.ldq, q0, at.lq, hd);
    load_tile(sdo, a.d_o + (int64_t)at.q0 * a.lddo + h * hd, a.lddo, q0, at.lq, hd);
    int first = 0;
    if (a.s.window > 0 && q0 + at.shift - a.s.window + 1 > 0)
        first = (q0 + at.shift - a.s.window + 1) / TILE * TILE;
    for (int j0 = first; j0 < at.lk && j0 <= q0 + TILE - 1 + at.shift; j0 += TILE) {
        __syncthreads();
        load_tile(sk, a.k + (int64_t)at.k0 * a.ldk + kc, a.ldk, j0, at.lk, hd);
        load_tile(sv, a.v + (int64_t)at.k0 * a.ldv + kc, a.ldv, j0, at.lk, hd);
        __syncthreads();
        pair_tile(a, at, h, q0, j0, sq, sdo, sk, sv, sp, sds);
        __syncwarp();
        for (int r = 0; r < ROWS; r++) {
            for (int c = 0; c < NC; c++) {
                const int col = c * 32 + lane;
                for (int j = 0; col < hd && j < TILE; j++)
                    dq[r][c] += sds[(warp * ROWS + r) * (TILE + 1) + j] * sk[j * pad + col];
            }
        }
    }
    for (int r = 0; r < ROWS; r++) {
        const int row = q0 + warp * ROWS + r;
        for (int c = 0; c < NC; c++) {
            if (row < at.lq && c * 32 + lane < hd)
                a.dq[(int64_t)(at.q0 + row) * a.lddq + h * hd + c * 32 + lane] = fromf<T>(dq[r][c]);
        }
    }
}

template <class T, int NC>
__global__ void __launch_bounds__(ATTN_THREADS) attn_bwd_kv(attn_bwd_args<T> a)
{
    const attn_at at = attn_sequence(a.s, attn_seq(a.s));
    const int j0 = attn_tile(a.s) * TILE, kv = blockIdx.y, hd = a.s.head_dim, pad = hd + 1;
    const int group = a.s.heads / a.s.kv_heads;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float dk[ROWS][NC] = {}, dv[ROWS][NC] = {};

    if (j0 >= at.lk)
        return;
    DYN_SHARED(sm);
    float *sq = sm.take<float>(TILE * pad), *sdo = sm.take<float>(TILE * pad);
    float *sk = sm.take<float>(TILE * pad), *sv = sm.take<float>(TILE * pad);
    float *sp = sm.take<float>(TILE * (TILE + 1)), *sds = sm.take<float>(TILE * (TILE + 1));
    load_tile(sk, a.k + (int64_t)at.k0 * a.ldk + kv * hd, a.ldk, j0, at.lk, hd);
    load_tile(sv, a.v + (int64_t)at.k0 * a.ldv + kv * hd, a.ldv, j0, at.lk, hd);
    const int from = j0 - at.shift > 0 ? (j0 - at.shift) / TILE * TILE : 0;
    for (int h = kv * group; h < (kv + 1) * group; h++) {
        for (int q0 = from; q0 < at.lq; q0 += TILE) {
            if (a.s.window > 0 && q0 + at.shift >= j0 + TILE - 1 + a.s.window)
                break;
            __syncthreads();
            load_tile(sq, a.q + (int64_t)at.q0 * a.ldq + h * hd, a.ldq, q0, at.lq, hd);
            load_tile(sdo, a.d_o + (int64_t)at.q0 * a.lddo + h * hd, a.lddo, q0, at.lq, hd);
            __syncthreads();
            pair_tile(a, at, h, q0, j0, sq, sdo, sk, sv, sp, sds);
            __syncthreads();
            for (int r = 0; r < ROWS; r++) {
                const int key = warp * ROWS + r;
                for (int c = 0; c < NC; c++) {
                    const int col = c * 32 + lane;
                    for (int i = 0; col < hd && i < TILE; i++) {
                        dk[r][c] += sds[i * (TILE + 1) + key] * sq[i * pad + col];
                        dv[r][c] += sp[i * (TILE + 1) + key] * sdo[i * pad + col];
                    }
                }
            }
        }
    }
    for (int r = 0; r < ROWS; r++) {
        const int row = j0 + warp * ROWS + r;
        for (int c = 0; c < NC; c++) {
            if (row >= at.lk || c * 32 + lane >= hd)
                continue;
            const int64_t col = kv * hd + c * 32 + lane;
            a.dk[(int64_t)(at.k0 + row) * a.lddk + col] = fromf<T>(dk[r][c]);
            a.dv[(int64_t)(at.k0 + row) * a.lddv + col] = fromf<T>(dv[r][c]);
        }
    }
}

/* Rows of no sequence get zeros; so do all others until they are written. */
template <class T> __global__ void zero_rows(T *x, int64_t ld, int cols)
{
    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        x[(size_t)blockIdx.x * ld + c] = fromf<T>(0.0f);
}

template <class T> static void zero_mat(kn_ctx *ctx, const kn_mat *m)
{
    if (m->rows > 0)
        LAUNCH(zero_rows<T>, (unsigned)m->rows, 256, 0, ctx->stream, (T *)m->p, m->ld,
               (int)m->cols);
}

template <class T, int NC> static void launch_fwd(kn_ctx *ctx, const kn_attn_fwd *a)
{
    const kn_attn_shape *s = &a->shape;
    const size_t tile = SMEM16(TILE * (s->head_dim + 1) * sizeof(float));
    const size_t smem = 3 * tile + SMEM16(TILE * (TILE + 1) * sizeof(float));

    cudaFuncSetAttribute(attn_fwd<T, NC>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
    LAUNCH((attn_fwd<T, NC>), attn_grid(s->max_q, TILE, s->heads, s->n_seqs), ATTN_THREADS, smem,
           ctx->stream, (T *)a->o.p, a->o.ld, a->lse, (const T *)a->q.p, a->q.ld, (const T *)a->k.p,
           a->k.ld, (const T *)a->v.p, a->v.ld, attn_shape(s));
}

template <class T, int NC> static void launch_bwd(kn_ctx *ctx, const kn_attn_bwd *b)
{
    const kn_attn_shape *s = &b->shape;
    const size_t tile = SMEM16(TILE * (s->head_dim + 1) * sizeof(float));
    const size_t smem = 4 * tile + 2 * SMEM16(TILE * (TILE + 1) * sizeof(float));
    const int64_t n = b->q.rows * s->heads;
    const attn_bwd_args<T> a = attn_bwd_of<T>(b);

    zero_mat<T>(ctx, &b->dq);
    zero_mat<T>(ctx, &b->dk);
    zero_mat<T>(ctx, &b->dv);
    if (n == 0 || s->n_seqs == 0)
        return;
    LAUNCH(attn_delta<T>, (unsigned)((n + 7) / 8), 256, 0, ctx->stream, b->delta, a.d_o, a.lddo,
           a.o, a.ldo, s->heads, s->head_dim, n);
    cudaFuncSetAttribute(attn_bwd_q<T, NC>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
    LAUNCH((attn_bwd_q<T, NC>), attn_grid(s->max_q, TILE, s->heads, s->n_seqs), ATTN_THREADS, smem,
           ctx->stream, a);
    cudaFuncSetAttribute(attn_bwd_kv<T, NC>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         (int)smem);
    LAUNCH((attn_bwd_kv<T, NC>), attn_grid(s->max_k, TILE, s->kv_heads, s->n_seqs), ATTN_THREADS,
           smem, ctx->stream, a);
}

template <class T> static void by_width_fwd(kn_ctx *ctx, const kn_attn_fwd *a)
{
    switch ((a->shape.head_dim + 31) / 32) {
    case 1:
        return launch_fwd<T, 1>(ctx, a);
    case 2:
        return launch_fwd<T, 2>(ctx, a);
    case 3:
        return launch_fwd<T, 3>(ctx, a);
    default:
        return launch_fwd<T, 4>(ctx, a);
    }
}

template <class T> static void by_width_bwd(kn_ctx *ctx, const kn_attn_bwd *a)
{
    switch ((a->shape.head_dim + 31) / 32) {
    case 1:
        return launch_bwd<T, 1>(ctx, a);
    case 2:
        return launch_bwd<T, 2>(ctx, a);
    case 3:
        return launch_bwd<T, 3>(ctx, a);
    default:
        return launch_bwd<T, 4>(ctx, a);
    }
}

int cuda_attn_fwd(kn_ctx *ctx, const kn_attn_fwd *a)
{
    const int r = kn_check_attn_fwd(a);

    if (r)
        return r < 0 ? r : 0;
    if (a->shape.n_seqs == 0 || a->shape.max_q == 0)
        return 0;
    if (!attn_grid_ok(&a->shape))
        return -EINVAL;
    const kn_mat *const mats[] = {&a->o, &a->q, &a->k, &a->v};
    if (!(ctx->without & CUDA_MMA) && cuda_attn_mma_ok(&a->shape, mats, 4))
        return cuda_attn_mma_fwd(ctx, a);
    a->q.dtype == KN_BF16 ? by_width_fwd<bf16_t>(ctx, a) : by_width_fwd<float>(ctx, a);
    return cuda_launched();
}

int cuda_attn_bwd(kn_ctx *ctx, const kn_attn_bwd *a)
{
    const int r = kn_check_attn_bwd(a);

    if (r)
        return r < 0 ? r : 0;
    if (!attn_grid_ok(&a->shape))
        return -EINVAL;
    const kn_mat *const mats[] = {&a->dq, &a->dk, &a->dv, &a->d_o, &a->o, &a->q, &a->k, &a->v};
    if (!(ctx->without & CUDA_MMA) && cuda_attn_mma_ok(&a->shape, mats, 8))
        return cuda_attn_mma_bwd(ctx, a);
    a->q.dtype == KN_BF16 ? by_width_bwd<bf16_t>(ctx, a) : by_width_bwd<float>(ctx, a);
    return cuda_launched();
}
