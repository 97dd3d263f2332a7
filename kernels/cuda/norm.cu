/* norm.cu - RMS normalisation, forward and backward: a block per row.
 *
 * Bandwidth: the forward reads x once from memory (the second read hits the
 * cache) and writes y; the backward reads x and dy and writes dx. */
#include "cuda.cuh"

template <class T>
__global__ void __launch_bounds__(256)
    rmsnorm_fwd(T *y, int64_t ldy, float *rstd, const T *x, int64_t ldx, const float *w, int cols,
                float eps)
{
    const T *xr = x + (size_t)blockIdx.x * ldx;
    T *yr = y + (size_t)blockIdx.x * ldy;
    float sum = 0.0f;

    for (int c = threadIdx.x; c < cols; c += blockDim.x) {
        const float v = tof(xr[c]);
        sum += v * v;
    }
    const float r = 1.0f / sqrtf(block_sum(sum) / (float)cols + eps);
    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        yr[c] = fromf<T>(tof(fromf<T>(tof(xr[c]) * r)) * w[c]);
    if (threadIdx.x == 0 && rstd)
        rstd[blockIdx.x] = r;
}

template <class T>
__global__ void __launch_bounds__(256)
    rmsnorm_bwd(T *dx, int64_t lddx, bool add, const T *dy, int64_t lddy, const T *x, int64_t ldx,
                const float *w, const float *rstd, int cols)
{
    const size_t row = blockIdx.x;
    const T *xr = x + row * ldx, *dyr = dy + row * lddy;
    T *dxr = dx + row * lddx;
    const float r = rstd[row];
    float sum = 0.0f;

    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        sum += tof(dyr[c]) * w[c] * tof(xr[c]);
    sum = block_sum(sum) * r / (float)cols; /* mean of w dy xhat */
    for (int c = threadIdx.x; c < cols; c += blockDim.x) {
        float v = r * (w[c] * tof(dyr[c]) - tof(xr[c]) * r * sum);
        if (add)
            v += tof(dxr[c]);
        dxr[c] = fromf<T>(v);
    }
}

template <class T> static void launch_fwd(kn_ctx *ctx, const kn_rmsnorm_fwd *a)
{
    LAUNCH(rmsnorm_fwd<T>, (unsigned)a->x.rows, 256, 0, ctx->stream, (T *)a->y.p, a->y.ld, a->rstd,
           (const T *)a->x.p, a->x.ld, a->w, (int)a->x.cols, a->eps);
}

template <class T> static void launch_bwd(kn_ctx *ctx, const kn_rmsnorm_bwd *a)
{
    LAUNCH(rmsnorm_bwd<T>, (unsigned)a->x.rows, 256, 0, ctx->stream, (T *)a->dx.p, a->dx.ld,
           a->add_dx, (const T *)a->dy.p, a->dy.ld, (const T *)a->x.p, a->x.ld, a->w, a->rstd,
           (int)a->x.cols);
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
