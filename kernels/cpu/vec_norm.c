/* vec_norm.c - RMS normalisation, rows of one call. */
#include <math.h>

#include "vec.h"

void VNAME(vec_rmsnorm_fwd)(const struct kn_rmsnorm_fwd *a, int64_t r0, int64_t r1)
{
    const int64_t cols = a->x.cols;
    const enum kn_dtype t = a->x.dtype;

    for (int64_t r = r0; r < r1; r++) {
        const void *x = vec_row(&a->x, r);
        void *y = vec_row(&a->y, r);
        vf sum = {0};
        float rstd;

        for (int64_t c = 0; c < cols; c += VW) {
            const vf v = vf_get(x, c, cols - c, t);
            sum = vf_fma(v, v, sum);
        }
        rstd = 1.0f / sqrtf(vf_sum(sum) / (float)cols + a->eps);
        if (a->rstd)
            a->rstd[r] = rstd;
        for (int64_t c = 0; c < cols; c += VW) {
            vf v = vf_get(x, c, cols - c, t) * vf_set(rstd);
            if (t == KN_BF16)
                v = vf_widen(vf_narrow(v));
            vf_put(y, c, cols - c, t, v * vf_get(a->w, c, cols - c, KN_F32));
        }
    }
}

void VNAME(vec_rmsnorm_bwd)(const struct kn_rmsnorm_bwd *a, int64_t r0, int64_t r1)
{
    const int64_t cols = a->x.cols;
    const enum kn_dtype t = a->x.dtype;

    for (int64_t r = r0; r < r1; r++) {
        const void *x = vec_row(&a->x, r), *dy = vec_row(&a->dy, r);
        void *dx = vec_row(&a->dx, r);
        const vf rstd = vf_set(a->rstd[r]);
        vf sum = {0}, mean;

        for (int64_t c = 0; c < cols; c += VW) {
            const vf wdy = vf_get(a->w, c, cols - c, KN_F32) * vf_get(dy, c, cols - c, t);
            sum = vf_fma(wdy, vf_get(x, c, cols - c, t) * rstd, sum);
        }
        mean = vf_set(vf_sum(sum) / (float)cols);
        for (int64_t c = 0; c < cols; c += VW) {
            const int64_t n = cols - c;
            const vf wdy = vf_get(a->w, c, n, KN_F32) * vf_get(dy, c, n, t);
            const vf xhat = vf_get(x, c, n, t) * rstd;
            vf v = rstd * (wdy - xhat * mean);
            if (a->add_dx)
                v += vf_get(dx, c, n, t);
            vf_put(dx, c, n, t, v);
        }
    }
}
