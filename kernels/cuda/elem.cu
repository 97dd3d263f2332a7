/* elem.cu - row-wise moves and pointwise steps: embedding, gather, RoPE, SwiGLU;
 * 16 bytes an access where rows allow it. */
#include "cuda.cuh"

enum { ELEM_THREADS = 256 };

template <class T>
__global__ void embed_rows(T *y, int64_t ldy, const T *table, int64_t ldt, const int32_t *ids,
                           int64_t vocab, int cols, int eights)
{
    const int32_t id = ids[blockIdx.x];
    T *yr = y + (size_t)blockIdx.x * ldy;

    if (id < 0 || id >= vocab) {
        for (int c = threadIdx.x; c < cols; c += blockDim.x)
            yr[c] = fromf<T>(NAN);
        return;
    }
    for (int c = threadIdx.x * 8; c < eights; c += blockDim.x * 8)
        store8(yr + c, load8(table + (size_t)id * ldt + c));
    for (int c = eights + threadIdx.x; c < cols; c += blockDim.x)
        yr[c] = table[(size_t)id * ldt + c];
}

template <class T>
__global__ void gather_rows(T *y, int64_t ldy, bool add, const T *x, int64_t ldx,
                            const int32_t *start, const int32_t *idx, const float *coef, int cols,
                            int eights)
{
    const int32_t row = (int32_t)blockIdx.x;
    const int32_t from = start ? start[row] : row, to = start ? start[row + 1] : row + 1;
    T *yr = y + (size_t)row * ldy;

    for (int c = threadIdx.x * 8; c < eights; c += blockDim.x * 8) {
        float sum[8] = {};
        vec8<T> out;
        if (add) {
            out = load8(yr + c);
            for (int e = 0; e < 8; e++)
                sum[e] = tof(out.v[e]);
        }
        for (int32_t j = from; j < to; j++) {
            const vec8<T> v = load8(x + (size_t)idx[j] * ldx + c);
            for (int e = 0; e < 8; e++)
                sum[e] += coef ? coef[j] * tof(v.v[e]) : tof(v.v[e]);
        }
        for (int e = 0; e < 8; e++)
            out.v[e] = fromf<T>(sum[e]);
        store8(yr + c, out);
    }
    for (int c = eights + threadIdx.x; c < cols; c += blockDim.x) {
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

/* The same eight pairs at a time; half a head is a multiple of 8. */
template <class T>
__global__ void rope_eights(T *x, int64_t ld, const int32_t *pos, const float *table, int heads,
                            int head_dim, float sign)
{
    const int half = head_dim / 2, pieces = half / 8;
    const float *cs = table + (size_t)pos[blockIdx.x] * head_dim;
    T *xr = x + (size_t)blockIdx.x * ld;

    for (int i = threadIdx.x; i < heads * pieces; i += blockDim.x) {
        const int d = i % pieces * 8;
        T *p = xr + (size_t)(i / pieces) * head_dim + d;
        const vec8<float> c = load8(cs + d), s = load8(cs + half + d);
        vec8<T> a = load8(p), b = load8(p + half);
        for (int e = 0; e < 8; e++) {
            const float u = tof(a.v[e]), v = tof(b.v[e]), sn = sign * s.v[e];
            a.v[e] = fromf<T>(u * c.v[e] - v * sn);
            b.v[e] = fromf<T>(v * c.v[e] + u * sn);
        }
        store8(p, a);
        store8(p + half, b);
    }
}

__device__ static inline float swiglu_of(float g, float u)
{
    return g / (1.0f + expf(-g)) * u;
}

template <class T>
__global__ void swiglu_fwd(T *y, int64_t ldy, const T *gu, int64_t ldgu, int cols, int eights)
{
    const T *g = gu + (size_t)blockIdx.x * ldgu, *u = g + cols;
    T *yr = y + (size_t)blockIdx.x * ldy;

    for (int c = threadIdx.x * 8; c < eights; c += blockDim.x * 8) {
        vec8<T> a = load8(g + c), b = load8(u + c);
        for (int e = 0; e < 8; e++)
            a.v[e] = fromf<T>(swiglu_of(tof(a.v[e]), tof(b.v[e])));
        store8(yr + c, a);
    }
    for (int c = eights + threadIdx.x; c < cols; c += blockDim.x)
        yr[c] = fromf<T>(swiglu_of(tof(g[c]), tof(u[c])));
}

struct swiglu_grad {
    float dg, du, y;
};

__device__ static inline swiglu_grad swiglu_back(float g, float u, float dy)
{
    const float sig = 1.0f / (1.0f + expf(-g)), silu = g * sig;

    return {dy * u * (sig + silu * (1.0f - sig)), dy * silu, silu * u};
}

template <class T>
__global__ void swiglu_bwd(T *dgu, int64_t lddgu, const T *dy, int64_t lddy, const T *gu,
                           int64_t ldgu, T *y, int64_t ldy, int cols, int eights)
{
    const T *g = gu + (size_t)blockIdx.x * ldgu, *dyr = dy + (size_t)blockIdx.x * lddy;
    T *d = dgu + (size_t)blockIdx.x * lddgu, *yr = y ? y + (size_t)blockIdx.x * ldy : y;

    for (int c = threadIdx.x * 8; c < eights; c += blockDim.x * 8) {
        vec8<T> a = load8(g + c), b = load8(g + cols + c), out = load8(dyr + c);
        for (int e = 0; e < 8; e++) {
            const swiglu_grad s = swiglu_back(tof(a.v[e]), tof(b.v[e]), tof(out.v[e]));
            a.v[e] = fromf<T>(s.dg);
            b.v[e] = fromf<T>(s.du);
            out.v[e] = fromf<T>(s.y);
        }
        store8(d + c, a);
        store8(d + cols + c, b);
        if (y)
            store8(yr + c, out);
    }
    for (int c = eights + threadIdx.x; c < cols; c += blockDim.x) {
        const swiglu_grad s = swiglu_back(tof(g[c]), tof(g[cols + c]), tof(dyr[c]));
        d[c] = fromf<T>(s.dg);
        d[cols + c] = fromf<T>(s.du);
        if (y)
            yr[c] = fromf<T>(s.y);
    }
}

template <class T> static cuda_rows rows_of(const kn_mat &m)
{
    return {m.p, m.ld, sizeof(T)};
}

template <class T> static void launch_embed(kn_ctx *ctx, const kn_embed *a)
{
    LAUNCH(embed_rows<T>, (unsigned)a->y.rows, ELEM_THREADS, 0, ctx->stream, (T *)a->y.p, a->y.ld,
           (const T *)a->table.p, a->table.ld, a->ids, a->table.rows, (int)a->y.cols,
           cuda_eights(a->y.cols, {rows_of<T>(a->y), rows_of<T>(a->table)}));
}

template <class T> static void launch_gather(kn_ctx *ctx, const kn_gather *a)
{
    LAUNCH(gather_rows<T>, (unsigned)a->y.rows, ELEM_THREADS, 0, ctx->stream, (T *)a->y.p, a->y.ld,
           a->add, (const T *)a->x.p, a->x.ld, a->start, a->idx, a->coef, (int)a->y.cols,
           cuda_eights(a->y.cols, {rows_of<T>(a->y), rows_of<T>(a->x)}));
}

template <class T> static void launch_rope(kn_ctx *ctx, const kn_rope *a)
{
    const bool eights =
        a->head_dim % 16 == 0 && cuda_eights(8, {rows_of<T>(a->x), {a->cos_sin, 0, 4}});

    LAUNCH(eights ? rope_eights<T> : rope_rows<T>, (unsigned)a->x.rows, ELEM_THREADS, 0,
           ctx->stream, (T *)a->x.p, a->x.ld, a->pos, a->cos_sin, a->heads, a->head_dim,
           a->inverse ? -1.0f : 1.0f);
}

/* u begins `cols` behind g: at 16 bytes if that is a multiple of 8. */
static int swiglu_eights(int64_t cols, std::initializer_list<cuda_rows> rows)
{
    return cols % 8 ? 0 : cuda_eights(cols, rows);
}

template <class T> static void launch_swiglu_fwd(kn_ctx *ctx, const kn_swiglu_fwd *a)
{
    LAUNCH(swiglu_fwd<T>, (unsigned)a->y.rows, ELEM_THREADS, 0, ctx->stream, (T *)a->y.p, a->y.ld,
           (const T *)a->gu.p, a->gu.ld, (int)a->y.cols,
           swiglu_eights(a->y.cols, {rows_of<T>(a->y), rows_of<T>(a->gu)}));
}

template <class T> static void launch_swiglu_bwd(kn_ctx *ctx, const kn_swiglu_bwd *a)
{
    LAUNCH(swiglu_bwd<T>, (unsigned)a->dy.rows, ELEM_THREADS, 0, ctx->stream, (T *)a->dgu.p,
           a->dgu.ld, (const T *)a->dy.p, a->dy.ld, (const T *)a->gu.p, a->gu.ld, (T *)a->y.p,
           a->y.ld, (int)a->dy.cols,
           swiglu_eights(a->dy.cols, {rows_of<T>(a->dgu), rows_of<T>(a->dy), rows_of<T>(a->gu),
                                      rows_of<T>(a->y)}));
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
