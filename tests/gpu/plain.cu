/* plain.cu - see plain.h. What a technique saves is measured against these: the same values
 * (float32 inside, rounded to the matrices' type after each step, as eager PyTorch does),
 * one step a kernel, 16 bytes an access. */
#include "plain.h"

#include "plain_logprob.cuh"
#include "plain_lora.cuh"

struct gain_of {
    const float *w;
    __device__ float operator()(float a, float, int64_t, int c) const { return a * w[c]; }
};
struct row_scale_of {
    const float *by;
    __device__ float operator()(float a, float, int64_t row, int) const { return a * by[row]; }
};
struct norm_back_of { /* a: w dy, b: x */
    const float *rstd, *mean;
    __device__ float operator()(float a, float b, int64_t row, int) const
    {
        return rstd[row] * (a - b * rstd[row] * mean[row]);
    }
};
struct silu_of {
    __device__ float operator()(float a, float, int64_t, int) const
    {
        return a / (1.0f + expf(-a));
    }
};
struct silu_back_of { /* a: the gradient of silu(b) */
    __device__ float operator()(float a, float b, int64_t, int) const
    {
        const float sig = 1.0f / (1.0f + expf(-b));
        return a * (sig + b * sig * (1.0f - sig));
    }
};
struct turn_of { /* cos, or sin */
    const int32_t *pos;
    const float *table;
    int head_dim, from;
    float sign;
    __device__ float operator()(float a, float, int64_t row, int c) const
    {
        const int d = c % head_dim % (head_dim / 2);
        return sign * a * table[(size_t)pos[row] * head_dim + from + d];
    }
};
template <class T> struct rotate_half_of {
    const T *x;
    int64_t ld;
    int head_dim;
    __device__ float operator()(float, float, int64_t row, int c) const
    {
        const int half = head_dim / 2;
        return c % head_dim < half ? -tof(x[row * ld + c + half]) : tof(x[row * ld + c - half]);
    }
};

namespace
{
const kn_ops *product;
unsigned off;

/* ---- norms and the residual ---- */

struct rstd_to {
    float *rstd;
    float eps;
    int cols;
    __device__ void operator()(float sum, int64_t row) const
    {
        rstd[row] = 1.0f / sqrtf(sum / (float)cols + eps);
    }
};
struct mean_to {
    float *mean;
    const float *rstd;
    int cols;
    __device__ void operator()(float sum, int64_t row) const
    {
        mean[row] = sum * rstd[row] / (float)cols;
    }
};

template <class T> int norm_fwd(kn_ctx *ctx, const kn_rmsnorm_fwd *a)
{
    const int64_t rows = a->x.rows, cols = a->x.cols;
    const rows_at<T> x = rows_of<T>(a->x), y = rows_of<T>(a->y);
    int r = 0;
    float *rstd = a->rstd ? a->rstd : take<float>(0, rows, &r);

    if (r)
        return r;
    LAUNCH((sum_rows<T, product_of, rstd_to>), (unsigned)rows, PLAIN_THREADS, 0, ctx->stream,
           (const T *)x.p, x.ld, (const T *)x.p, x.ld, (int)cols, product_of(),
           rstd_to{rstd, a->eps, (int)cols});
    map<T>(ctx, rows, cols, y, x, x, row_scale_of{rstd});
    map<T>(ctx, rows, cols, y, y, y, gain_of{a->w});
    return cuda_launched();
}

template <class T> int norm_bwd(kn_ctx *ctx, const kn_rmsnorm_bwd *a)
{
    const int64_t rows = a->x.rows, cols = a->x.cols;
    const rows_at<T> x = rows_of<T>(a->x), dy = rows_of<T>(a->dy), dx = rows_of<T>(a->dx);
    int r = 0;
    float *mean = take<float>(0, rows, &r);
    const rows_at<T> t = {take<T>(1, rows * cols, &r), cols};

    if (r)
        return r;
    map<T>(ctx, rows, cols, t, dy, dy, gain_of{a->w});
    LAUNCH((sum_rows<T, product_of, mean_to>), (unsigned)rows, PLAIN_THREADS, 0, ctx->stream,
           (const T *)t.p, t.ld, (const T *)x.p, x.ld, (int)cols, product_of(),
           mean_to{mean, a->rstd, (int)cols});
    map<T>(ctx, rows, cols, a->add_dx ? t : dx, t, x, norm_back_of{a->rstd, mean});
    if (a->add_dx)
        map<T>(ctx, rows, cols, dx, dx, t, add_of());
    return cuda_launched();
}

template <class T> int rope(kn_ctx *ctx, const kn_rope *a)
{
    const int64_t rows = a->x.rows, cols = a->x.cols;
    const rows_at<T> x = rows_of<T>(a->x);
    int r = 0;
    const rows_at<T> t = {take<T>(1, rows * cols, &r), cols};

    if (r)
        return r;
    map<T>(ctx, rows, cols, t, x, x, rotate_half_of<T>{x.p, x.ld, a->head_dim});
    map<T>(ctx, rows, cols, x, x, x, turn_of{a->pos, a->cos_sin, a->head_dim, 0, 1.0f});
    map<T>(ctx, rows, cols, t, t, t,
           turn_of{a->pos, a->cos_sin, a->head_dim, a->head_dim / 2, a->inverse ? -1.0f : 1.0f});
    map<T>(ctx, rows, cols, x, x, t, add_of());
    return cuda_launched();
}

/* ---- SwiGLU ---- */

template <class T> int swiglu_fwd(kn_ctx *ctx, const kn_swiglu_fwd *a)
{
    const int64_t rows = a->y.rows, cols = a->y.cols;
    const rows_at<T> y = rows_of<T>(a->y), g = rows_of<T>(a->gu), u = {g.p + cols, g.ld};

    map<T>(ctx, rows, cols, y, g, g, silu_of());
    map<T>(ctx, rows, cols, y, y, u, product_of());
    return cuda_launched();
}

template <class T> int swiglu_bwd(kn_ctx *ctx, const kn_swiglu_bwd *a)
{
    const int64_t rows = a->dy.rows, cols = a->dy.cols;
    const rows_at<T> dy = rows_of<T>(a->dy), g = rows_of<T>(a->gu), u = {g.p + cols, g.ld};
    const rows_at<T> dg = rows_of<T>(a->dgu), du = {dg.p + cols, dg.ld};
    int r = 0;
    const rows_at<T> silu = {take<T>(1, rows * cols, &r), cols};
    const rows_at<T> dsilu = {take<T>(2, rows * cols, &r), cols};

    if (r)
        return r;
    map<T>(ctx, rows, cols, silu, g, g, silu_of());
    if (a->y.p)
        map<T>(ctx, rows, cols, rows_of<T>(a->y), silu, u, product_of());
    map<T>(ctx, rows, cols, dsilu, dy, u, product_of());
    map<T>(ctx, rows, cols, du, dy, silu, product_of());
    map<T>(ctx, rows, cols, dg, dsilu, g, silu_back_of());
    return cuda_launched();
}
} // namespace

/* ---- the operations ---- */

extern "C" {
static int plain_linear_fwd(kn_ctx *ctx, const kn_linear_fwd *a)
{
    kn_linear_fwd own = *a;
    int r = kn_check_linear_fwd(a, a->w->n, a->w->k, a->w->n_parts, a->w->compute);

    if (r)
        return r < 0 ? r : 0;
    if (off & PLAIN_NORM && a->residual) {
        if (a->residual->p == a->y.p)
            return -EINVAL;
        own.residual = NULL;
    }
    if (!(off & PLAIN_LORA)) {
        r = product->linear_fwd(ctx, &own);
    } else {
        if (a->bias || !one_adapter(a->segs, a->n_segs, a->x.rows, &a->dropout))
            return -EINVAL;
        r = with_weight(ctx, a, [&](const kn_weight *w) {
            return w->compute == KN_BF16 ? lora_fwd<bf16_t>(ctx, &own, w)
                                         : lora_fwd<float>(ctx, &own, w);
        });
    }
    if (r || own.residual == a->residual)
        return r;
    if (a->y.dtype == KN_BF16)
        map<bf16_t>(ctx, a->y.rows, a->y.cols, rows_of<bf16_t>(a->y), rows_of<bf16_t>(a->y),
                    rows_of<bf16_t>(*a->residual), add_of());
    else
        map<float>(ctx, a->y.rows, a->y.cols, rows_of<float>(a->y), rows_of<float>(a->y),
                   rows_of<float>(*a->residual), add_of());
    return cuda_launched();
}

static int plain_linear_bwd(kn_ctx *ctx, const kn_linear_bwd *a)
{
    const kn_weight *w = a->w;
    const int r = kn_check_linear_bwd(a, w->n, w->k, w->n_parts, w->compute, w->no_backward);

    if (r)
        return r < 0 ? r : 0;
    if (!one_adapter(a->segs, a->n_segs, a->dy.rows, &a->dropout))
        return -EINVAL;
    return with_weight(ctx, a, [&](const kn_weight *ready) {
        return ready->compute == KN_BF16 ? lora_bwd<bf16_t>(ctx, a, ready)
                                         : lora_bwd<float>(ctx, a, ready);
    });
}

static int plain_rmsnorm_fwd(kn_ctx *ctx, const kn_rmsnorm_fwd *a)
{
    const int r = kn_check_rmsnorm_fwd(a);

    if (r)
        return r < 0 ? r : 0;
    return a->x.dtype == KN_BF16 ? norm_fwd<bf16_t>(ctx, a) : norm_fwd<float>(ctx, a);
}

static int plain_rmsnorm_bwd(kn_ctx *ctx, const kn_rmsnorm_bwd *a)
{
    const int r = kn_check_rmsnorm_bwd(a);

    if (r)
        return r < 0 ? r : 0;
    return a->x.dtype == KN_BF16 ? norm_bwd<bf16_t>(ctx, a) : norm_bwd<float>(ctx, a);
}

static int plain_rope(kn_ctx *ctx, const kn_rope *a)
{
    const int r = kn_check_rope(a);

    if (r)
        return r < 0 ? r : 0;
    return a->x.dtype == KN_BF16 ? rope<bf16_t>(ctx, a) : rope<float>(ctx, a);
}

static int plain_swiglu_fwd(kn_ctx *ctx, const kn_swiglu_fwd *a)
{
    const int r = kn_check_swiglu_fwd(a);

    if (r)
        return r < 0 ? r : 0;
    return a->y.dtype == KN_BF16 ? swiglu_fwd<bf16_t>(ctx, a) : swiglu_fwd<float>(ctx, a);
}

static int plain_swiglu_bwd(kn_ctx *ctx, const kn_swiglu_bwd *a)
{
    const int r = kn_check_swiglu_bwd(a);

    if (r)
        return r < 0 ? r : 0;
    return a->gu.dtype == KN_BF16 ? swiglu_bwd<bf16_t>(ctx, a) : swiglu_bwd<float>(ctx, a);
}

static int plain_logprob(kn_ctx *ctx, const kn_logprob *a)
{
    const int r = kn_check_logprob(a);

    if (r)
        return r < 0 ? r : 0;
    return logprob(ctx, a);
}

const kn_ops *kn_table(int abi);

__attribute__((visibility("default"))) int kn_plain(kn_ctx *ctx, kn_ops *table, unsigned without)
{
    product = kn_table(KN_ABI);
    off = without;
    *table = *product;
    ctx->without = 0;
    if (without & PLAIN_MMA)
        ctx->without |= CUDA_MMA;
    if (without & PLAIN_SIDE)
        ctx->without |= CUDA_SIDE;
    if (without & (PLAIN_LORA | PLAIN_NORM))
        table->linear_fwd = plain_linear_fwd;
    if (without & PLAIN_LORA)
        table->linear_bwd = plain_linear_bwd;
    if (without & PLAIN_NORM) {
        table->rmsnorm_fwd = plain_rmsnorm_fwd;
        table->rmsnorm_bwd = plain_rmsnorm_bwd;
    }
    if (without & PLAIN_ROPE)
        table->rope = plain_rope;
    if (without & PLAIN_SWIGLU) {
        table->swiglu_fwd = plain_swiglu_fwd;
        table->swiglu_bwd = plain_swiglu_bwd;
    }
    if (without & PLAIN_LOGPROB)
        table->logprob = plain_logprob;
    for (int i = 0; i < SCRATCHES && without == 0; i++) {
        cudaFree(scratch[i].p); /* waits for what still reads it */
        scratch[i] = {};
    }
    return cuda_launched();
}
}
