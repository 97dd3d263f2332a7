/* norm.cu - RMS normalisation, forward and backward: a block per row.
 *
 * Bandwidth: the forward reads x once from memory (the second read hits the
 * cache) and writes y; the backward reads x and dy and writes dx. 16 bytes an access. */
#include "cuda.cuh"

template <class T>
__global__ void __launch_bounds__(256)
    rmsnorm_fwd(T *y, int64_t ldy, float *rstd, const T *x, int64_t ldx, const float *w, int cols,
                int eights, float eps)
{
    const T *xr = x + (size_t)blockIdx.x * ldx;
    T *yr = y + (size_t)blockIdx.x * ldy;
    float sum = 0.0f;

    for (int c = threadIdx.x * 8; c < eights; c += blockDim.x * 8) {
        const vec8<T> v = load8(xr + c);
        for (int e = 0; e < 8; e++)
            sum += tof(v.v[e]) * tof(v.v[e]);
    }
    for (int c = eights + threadIdx.x; c < cols; c += blockDim.x)
        sum += tof(xr[c]) * tof(xr[c]);
    const float r = 1.0f / sqrtf(block_sum(sum) / (float)cols + eps);
    for (int c = threadIdx.x * 8; c < eights; c += blockDim.x * 8) {
        const vec8<float> g = load8(w + c);
        vec8<T> v = load8(xr + c);
        for (int e = 0; e < 8; e++)
            v.v[e] = fromf<T>(tof(fromf<T>(tof(v.v[e]) * r)) * g.v[e]);
        store8(yr + c, v);
    }
    for (int c = eights + threadIdx.x; c < cols; c += blockDim.x)
        yr[c] = fromf<T>(tof(fromf<T>(tof(xr[c]) * r)) * w[c]);
    if (threadIdx.x == 0 && rstd)
        rstd[blockIdx.x] = r;
}

/* mean: of w dy xhat, over the row. old: what dx is added to, or 0. */
__device__ static inline float norm_dx(float x, float dy, float w, float r, float mean, float old)
{
    return r * (w * dy - x * r * mean) + old;
}

template <class T>
__global__ void __launch_bounds__(256)
    rmsnorm_bwd(T *dx, int64_t lddx, bool add, const T *dy, int64_t lddy, const T *x, int64_t ldx,
                const float *w, const float *rstd, int cols, int eights)
{
    const size_t row = blockIdx.x;
    const T *xr = x + row * ldx, *dyr = dy + row * lddy;
    T *dxr = dx + row * lddx;
    const float r = rstd[row];
    float sum = 0.0f;

    for (int c = threadIdx.x * 8; c < eights; c += blockDim.x * 8) {
        const vec8<T> v = load8(xr + c), d = load8(dyr + c);
        const vec8<float> g = load8(w + c);
        for (int e = 0; e < 8; e++)
            sum += tof(d.v[e]) * g.v[e] * tof(v.v[e]);
    }
    for (int c = eights + threadIdx.x; c < cols; c += blockDim.x)
        sum += tof(dyr[c]) * w[c] * tof(xr[c]);
    sum = block_sum(sum) * r / (float)cols;
    for (int c = threadIdx.x * 8; c < eights; c += blockDim.x * 8) {
        const vec8<T> v = load8(xr + c), d = load8(dyr + c);
        const vec8<float> g = load8(w + c);
        vec8<T> out = add ? load8(dxr + c) : v;
        for (int e = 0; e < 8; e++)
            out.v[e] = fromf<T>(
                norm_dx(tof(v.v[e]), tof(d.v[e]), g.v[e], r, sum, add ? tof(out.v[e]) : 0.0f));
        store8(dxr + c, out);
    }
    for (int c = eights + threadIdx.x; c < cols; c += blockDim.x)
        dxr[c] = fromf<T>(norm_dx(tof(xr[c]), tof(dyr[c]), w[c], r, sum, add ? tof(dxr[c]) : 0.0f));
}

template <class T> static void launch_fwd(kn_ctx *ctx, const kn_rmsnorm_fwd *a)
{
    const int eights = cuda_eights(
        a->x.cols, {{a->y.p, a->y.ld, sizeof(T)}, {a->x.p, a->x.ld, sizeof(T)}, {a->w, 0, 4}});

    LAUNCH(rmsnorm_fwd<T>, (unsigned)a->x.rows, 256, 0, ctx->stream, (T *)a->y.p, a->y.ld, a->rstd,
           (const T *)a->x.p, a->x.ld, a->w, (int)a->x.cols, eights, a->eps);
}

template <class T> static void launch_bwd(kn_ctx *ctx, const kn_rmsnorm_bwd *a)
{
    const int eights = cuda_eights(a->x.cols, {{a->dx.p, a->dx.ld, sizeof(T)},
                                               {a->dy.p, a->dy.ld, sizeof(T)},
                                               {a->x.p, a->x.ld, sizeof(T)},
                                               {a->w, 0, 4}});

    LAUNCH(rmsnorm_bwd<T>, (unsigned)a->x.rows, 256, 0, ctx->stream, (T *)a->dx.p, a->dx.ld,
           a->add_dx, (const T *)a->dy.p, a->dy.ld, (const T *)a->x.p, a->x.ld, a->w, a->rstd,
           (int)a->x.cols, eights);
}

int cuda_rmsnorm_fwd(kn_ctx *ctx, const kn_rmsnorm_fwd *a)
{
    const int r = kn_check_rmsnorm_fwd(a);

    if (r)
        return r < 0 ? r : 0;
    if (a->x.dtype == KN_BF16)
        launch_fwd<bf16_t>(ctx, a);
    else
        launch_fwd<float>(ctx, a);
    return cuda_launched();
}

int cuda_rmsnorm_bwd(kn_ctx *ctx, const kn_rmsnorm_bwd *a)
{
    const int r = kn_check_rmsnorm_bwd(a);

    if (r)
        return r < 0 ? r : 0;
    if (a->x.dtype == KN_BF16)
        launch_bwd<bf16_t>(ctx, a);
    else
        launch_bwd<float>(ctx, a);
    return cuda_launched();
}
