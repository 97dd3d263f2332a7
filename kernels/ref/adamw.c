/* adamw.c - the gradient's norm and AdamW: Loshchilov & Hutter 2019
 * (arXiv:1711.05101), as torch.optim.AdamW computes it. */
#include "ref.h"

#include <math.h>

int ref_grad_sweep(struct kn_ctx *ctx, const struct kn_grad_sweep *a)
{
    const real *g = (const real *)a->g;
    double sum = 0.0;
    int64_t bad = 0;

    (void)ctx;
    if (kn_check_grad_sweep(a))
        return -EINVAL;
    for (int64_t i = 0; i < a->n; i++) {
        sum += (double)g[i] * (double)g[i];
        bad += !isfinite(g[i]);
    }
    a->sweep->sum_sq = sum;
    a->sweep->nonfinite = bad;
    return 0;
}

int ref_adamw(struct kn_ctx *ctx, const struct kn_adamw *a)
{
    const int r = kn_check_adamw(a);
    const struct kn_adamw_step *s = a->step;
    real *p = (real *)a->p, *m = (real *)a->m, *v = (real *)a->v;
    const real *grad = (const real *)a->g;
    double clip = 1.0;

    (void)ctx;
    if (r)
        return r < 0 ? r : 0;
    if (a->sweep->nonfinite)
        return 0;
    if (s->max_grad_norm > 0.0f)
        clip = fmin(1.0, (double)s->max_grad_norm / (sqrt(a->sweep->sum_sq) + 1e-6));
    for (int64_t i = 0; i < a->n; i++) {
        const double g = (double)grad[i] * clip;
        double w = (double)p[i] * (1.0 - (double)s->lr * (double)s->weight_decay);
        const double m1 = (double)s->beta1 * (double)m[i] + (1.0 - (double)s->beta1) * g;
        const double v1 = (double)s->beta2 * (double)v[i] + (1.0 - (double)s->beta2) * g * g;
        m[i] = (real)m1;
        v[i] = (real)v1;
        w -= (double)s->lr / (double)s->bias1 * m1 /
             (sqrt(v1) / sqrt((double)s->bias2) + (double)s->eps);
        p[i] = (real)w;
    }
    return 0;
}
