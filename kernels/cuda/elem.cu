/* elem.cu - row-wise moves and pointwise steps: embedding, gather, RoPE, SwiGLU. */
#include "cuda.cuh"

enum { ELEM_THREADS = 256 };

template <class T>
__global__ void embed_rows(T *y, int64_t ldy, const T *table, int64_t ldt, const int32_t *ids,
                           int64_t vocab, int cols)
{
    const int32_t id = ids[blockIdx.x];
    T *yr = y + (size_t)blockIdx.x * ldy;
    const bool known = id >= 0 && id < vocab;

    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        yr[c] = known ? table[(size_t)id * ldt + c] : fromf<T>(NAN);
}

template <class T>
__global__ void gather_rows(T *y, int64_t ldy, bool add, const T *x, int64_t ldx,
                            const int32_t *start, const int32_t *idx, const float *coef, int cols)
{
    const int32_t row = (int32_t)blockIdx.x;
    const int32_t from = start ? start[row] : row, to = start ? start[row + 1] : row + 1;
    T *yr = y + (size_t)row * ldy;

    for (int c = threadIdx.x; c < cols; c += blockDim.x) {
        float sum = add ? tof(yr[c]) : 0.0f;
        for (int32_t j = from; j < to; j++) {
            const float v = tof(x[(size_t)idx[j] * ldx + c]);
            sum += coef ? coef[j] * v : v;
        }
        yr[c] = fromf<T>(sum);
    }
}

template <class T>
__global__ void rope_rows(T *x, int64_t ld, const int32_t *pos, const float *table, int heads,
                          int head_dim, float sign)
{
    const int half = head_dim / 2;
    const float *cs = table + (size_t)pos[blockIdx.x] * head_dim;
    T *xr = x + (size_t)blockIdx.x * ld;

    for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
        const int d = i % half;
        T *p = xr + (size_t)(i / half) * head_dim + d;
        const float u = tof(p[0]), v = tof(p[half]), c = cs[d], s = sign * cs[half + d];
        p[0] = fromf<T>(u * c - v * s);
        p[half] = fromf<T>(v * c + u * s);
    }
}

template <class T>
__global__ void swiglu_fwd(T *y, int64_t ldy, const T *gu, int64_t ldgu, int cols)
{
    const T *g = gu + (size_t)blockIdx.x * ldgu;
    T *yr = y + (size_t)blockIdx.x * ldy;

    for (int c = threadIdx.x; c < cols; c += blockDim.x) {
        const float v = tof(g[c]);
        yr[c] = fromf<T>(v / (1.0f + expf(-v)) * tof(g[cols + c]));
    }
}

template <class T>
__global__ void swiglu_bwd(T *dgu, int64_t lddgu, const T *dy, int64_t lddy, const T *gu,
                           int64_t ldgu, T *y, int64_t ldy, int cols)
{
    const T *g = gu + (size_t)blockIdx.x * ldgu, *dyr = dy + (size_t)blockIdx.x * lddy;
    T *d = dgu + (size_t)blockIdx.x * lddgu;

    for (int c = threadIdx.x; c < cols; c += blockDim.x) {
        const float v = tof(g[c]), u = tof(g[cols + c]), dv = tof(dyr[c]);
        const float sig = 1.0f / (1.0f + expf(-v)), silu = v * sig;
        d[c] = fromf<T>(dv * u * (sig + silu * (1.0f - sig)));
        d[cols + c] = fromf<T>(dv * silu);
        if (y)
            y[(size_t)blockIdx.x * ldy + c] = fromf<T>(silu * u);
    }
}

template <class T> static void launch_embed(kn_ctx *ctx, const kn_embed *a)
{
    LAUNCH(embed_rows<T>, (unsigned)a->y.rows, ELEM_THREADS, 0, ctx->stream, (T *)a->y.p, a->y.ld,
           (const T *)a->table.p, a->table.ld, a->ids, a->table.rows, (int)a->y.cols);
}

template <class T> static void launch_gather(kn_ctx *ctx, const kn_gather *a)
{
    LAUNCH(gather_rows<T>, (unsigned)a->y.rows, ELEM_THREADS, 0, ctx->stream, (T *)a->y.p, a->y.ld,
           a->add, (const T *)a->x.p, a->x.ld, a->start, a->idx, a->coef, (int)a->y.cols);
}

template <class T> static void launch_rope(kn_ctx *ctx, const kn_rope *a)
{
    LAUNCH(rope_rows<T>, (unsigned)a->x.rows, ELEM_THREADS, 0, ctx->stream, (T *)a->x.p, a->x.ld,
           a->pos, a->cos_sin, a->heads, a->head_dim, a->inverse ? -1.0f : 1.0f);
}

template <class T> static void launch_swiglu_fwd(kn_ctx *ctx, const kn_swiglu_fwd *a)
{
    LAUNCH(swiglu_fwd<T>, (unsigned)a->y.rows, ELEM_THREADS, 0, ctx->stream, (T *)a->y.p, a->y.ld,
           (const T *)a->gu.p, a->gu.ld, (int)a->y.cols);
}

template <class T> static void launch_swiglu_bwd(kn_ctx *ctx, const kn_swiglu_bwd *a)
{
    LAUNCH(swiglu_bwd<T>, (unsigned)a->dy.rows, ELEM_THREADS, 0, ctx->stream, (T *)a->dgu.p,
           a->dgu.ld, (const T *)a->dy.p, a->dy.ld, (const T *)a->gu.p, a->gu.ld, (T *)a->y.p,
           a->y.ld, (int)a->dy.cols);
}

int cuda_embed(kn_ctx *ctx, const kn_embed *a)
{
    const int r = kn_check_embed(a);

    if (r)
        return r < 0 ? r : 0;
    a->y.dtype == KN_BF16 ? launch_embed<bf16_t>(ctx, a) : launch_embed<float>(ctx, a);
    return cuda_launched();
}

int cuda_gather(kn_ctx *ctx, const kn_gather *a)
{
    const int r = kn_check_gather(a);

    if (r)
        return r < 0 ? r : 0;
    a->y.dtype == KN_BF16 ? launch_gather<bf16_t>(ctx, a) : launch_gather<float>(ctx, a);
    return cuda_launched();
}

int cuda_rope(kn_ctx *ctx, const kn_rope *a)
{
    const int r = kn_check_rope(a);

    if (r)
        return r < 0 ? r : 0;
    a->x.dtype == KN_BF16 ? launch_rope<bf16_t>(ctx, a) : launch_rope<float>(ctx, a);
    return cuda_launched();
}

int cuda_swiglu_fwd(kn_ctx *ctx, const kn_swiglu_fwd *a)
{
    const int r = kn_check_swiglu_fwd(a);

    if (r)
        return r < 0 ? r : 0;
    a->y.dtype == KN_BF16 ? launch_swiglu_fwd<bf16_t>(ctx, a) : launch_swiglu_fwd<float>(ctx, a);
    return cuda_launched();
}

int cuda_swiglu_bwd(kn_ctx *ctx, const kn_swiglu_bwd *a)
{
    const int r = kn_check_swiglu_bwd(a);

    if (r)
        return r < 0 ? r : 0;
    a->dy.dtype == KN_BF16 ? launch_swiglu_bwd<bf16_t>(ctx, a) : launch_swiglu_bwd<float>(ctx, a);
    return cuda_launched();
}
