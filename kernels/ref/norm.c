/* norm.c - RMS normalisation with a frozen gain. */
#include "ref.h"

#include <math.h>

int ref_rmsnorm_fwd(struct kn_ctx *ctx, const struct kn_rmsnorm_fwd *a)
{
    const int r = kn_check_rmsnorm_fwd(a);
    const real *w = (const real *)a->w;

    (void)ctx;
    if (r)
        return r < 0 ? r : 0;
    for (int64_t i = 0; i < a->x.rows; i++) {
        double sum = 0.0, rstd;
        for (int64_t c = 0; c < a->x.cols; c++) {
            const double x = ref_get(&a->x, i, c);
            sum += x * x;
        }
        rstd = 1.0 / sqrt(sum / (double)a->x.cols + (double)a->eps);
        if (a->rstd)
            ((real *)a->rstd)[i] = (real)rstd;
        for (int64_t c = 0; c < a->x.cols; c++) {
            const double xhat = ref_round(ref_get(&a->x, i, c) * rstd, a->x.dtype);
            ref_put(&a->y, i, c, xhat * (double)w[c]);
        }
    }
    return 0;
}

int ref_rmsnorm_bwd(struct kn_ctx *ctx, const struct kn_rmsnorm_bwd *a)
{
    const int r = kn_check_rmsnorm_bwd(a);
    const real *w = (const real *)a->w, *rstds = (const real *)a->rstd;

    (void)ctx;
    if (r)
        return r < 0 ? r : 0;
    for (int64_t i = 0; i < a->x.rows; i++) {
        const double rstd = (double)rstds[i];
        double sum = 0.0;
        for (int64_t c = 0; c < a->x.cols; c++)
            sum += (double)w[c] * ref_get(&a->dy, i, c) * ref_get(&a->x, i, c) * rstd;
        sum /= (double)a->x.cols;
        for (int64_t c = 0; c < a->x.cols; c++) {
            const double xhat = ref_get(&a->x, i, c) * rstd;
            const double d = rstd * ((double)w[c] * ref_get(&a->dy, i, c) - xhat * sum);
            ref_put(&a->dx, i, c, a->add_dx ? ref_get(&a->dx, i, c) + d : d);
        }
    }
    return 0;
}
