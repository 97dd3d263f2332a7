/* rows.c - operations whose rows are independent: checked, then dealt to threads
 * in equal stretches. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "cpu.h"

enum { SWEEP_BLOCK = 8192 }; /* elements of one partial sum; fixes the order */

/* The stretch of n items thread t of `threads` does. */
static void stretch(int64_t n, int64_t *ret_lo, int64_t *ret_hi)
{
    const int64_t t = omp_get_thread_num(), threads = omp_get_num_threads();

    *ret_lo = n * t / threads;
    *ret_hi = n * (t + 1) / threads;
}

/* As many as for 32 multiply-adds an element. */
static int team(const struct kn_ctx *ctx, int64_t elements)
{
    return cpu_team(ctx, elements * 32);
}

#define ROWS(op, n_rows, n_cols)                        \
    do {                                                \
        const int64_t rows = (n_rows);                  \
        const int threads = team(ctx, rows * (n_cols)); \
        _Pragma("omp parallel num_threads(threads)")    \
        {                                               \
            int64_t lo, hi;                             \
            stretch(rows, &lo, &hi);                    \
            ctx->vec->op(a, lo, hi);                    \
        }                                               \
    } while (0)

int cpu_rmsnorm_fwd(struct kn_ctx *ctx, const struct kn_rmsnorm_fwd *a)
{
    const int r = kn_check_rmsnorm_fwd(a);

    if (r == 0)
        ROWS(rmsnorm_fwd, a->x.rows, a->x.cols);
    return r < 0 ? r : 0;
}

int cpu_rmsnorm_bwd(struct kn_ctx *ctx, const struct kn_rmsnorm_bwd *a)
{
    const int r = kn_check_rmsnorm_bwd(a);

    if (r == 0)
        ROWS(rmsnorm_bwd, a->x.rows, a->x.cols);
    return r < 0 ? r : 0;
}

int cpu_rope(struct kn_ctx *ctx, const struct kn_rope *a)
{
    const int r = kn_check_rope(a);

    if (r)
        return r < 0 ? r : 0;
    for (int64_t t = 0; t < a->x.rows; t++) {
        if (a->pos[t] < 0)
            return -EINVAL;
    }
    ROWS(rope, a->x.rows, a->x.cols);
    return 0;
}

int cpu_swiglu_fwd(struct kn_ctx *ctx, const struct kn_swiglu_fwd *a)
{
    const int r = kn_check_swiglu_fwd(a);

    if (r == 0)
        ROWS(swiglu_fwd, a->y.rows, a->y.cols);
    return r < 0 ? r : 0;
}

int cpu_swiglu_bwd(struct kn_ctx *ctx, const struct kn_swiglu_bwd *a)
{
    const int r = kn_check_swiglu_bwd(a);

    if (r == 0)
        ROWS(swiglu_bwd, a->dy.rows, a->dy.cols);
    return r < 0 ? r : 0;
}

int cpu_gather(struct kn_ctx *ctx, const struct kn_gather *a)
{
    const int r = kn_check_gather(a);

    if (r)
        return r < 0 ? r : 0;
    for (int64_t i = 0; i < a->y.rows; i++) {
        const int64_t first = a->start ? a->start[i] : i, end = a->start ? a->start[i + 1] : i + 1;
        if (first < 0 || end < first)
            return -EINVAL;
        for (int64_t j = first; j < end; j++) {
            if (a->idx[j] < 0 || a->idx[j] >= a->x.rows)
                return -EINVAL;
        }
    }
    ROWS(gather, a->y.rows, a->y.cols);
    return 0;
}

int cpu_logprob(struct kn_ctx *ctx, const struct kn_logprob *a)
{
    const int r = kn_check_logprob(a);

    if (r)
        return r < 0 ? r : 0;
    for (int64_t i = 0; i < a->z.rows; i++) {
        if (a->target[i] < 0 || a->target[i] >= a->z.cols)
            return -EINVAL;
    }
    ROWS(logprob, a->z.rows, a->z.cols);
    return 0;
}

int cpu_grad_sweep(struct kn_ctx *ctx, const struct kn_grad_sweep *a)
{
    const int64_t blocks = (a->n + SWEEP_BLOCK - 1) / SWEEP_BLOCK;
    struct kn_sweep *part, all = {0};
    int r = kn_check_grad_sweep(a);

    if (r == 0)
        r = cpu_scratch(ctx, 0, (size_t)blocks * sizeof *part);
    if (r)
        return r;
    part = cpu_shared(ctx);
#pragma omp parallel num_threads(team(ctx, a->n))
    {
        int64_t lo, hi;
        stretch(blocks, &lo, &hi);
        for (int64_t b = lo; b < hi; b++) {
            const int64_t at = b * SWEEP_BLOCK, n = a->n - at;
            ctx->vec->sweep(a->g + at, n < SWEEP_BLOCK ? n : SWEEP_BLOCK, &part[b]);
        }
    }
    for (int64_t b = 0; b < blocks; b++) {
        all.sum_sq += part[b].sum_sq;
        all.nonfinite += part[b].nonfinite;
    }
    *a->sweep = all;
    return 0;
}

int cpu_adamw(struct kn_ctx *ctx, const struct kn_adamw *a)
{
    const int r = kn_check_adamw(a);
    double clip = 1.0;

    if (r)
        return r < 0 ? r : 0;
    if (a->sweep->nonfinite)
        return 0;
    if (a->step->max_grad_norm > 0.0f)
        clip = fmin(1.0, (double)a->step->max_grad_norm / (sqrt(a->sweep->sum_sq) + 1e-6));
#pragma omp parallel num_threads(team(ctx, a->n))
    {
        int64_t lo, hi;
        stretch((a->n + 15) / 16, &lo, &hi);
        ctx->vec->adamw(a, (float)clip, lo * 16, hi * 16 < a->n ? hi * 16 : a->n);
    }
    return 0;
}
