/* logprob.c - log-probabilities and their gradient from a chunk of logits. */
#include "ref.h"

#include <math.h>

static void logprob_row(const struct kn_logprob *a, int64_t i)
{
    real *z = (real *)a->z.p + i * a->z.ld;
    const int64_t n = a->z.cols, target = a->target[i];
    double max = (double)z[0], sum = 0.0, sum2 = 0.0, sum_z = 0.0, sum_ez = 0.0, lse;
    int64_t best = 0;

    for (int64_t c = 1; c < n; c++) {
        if ((double)z[c] > max) {
            max = (double)z[c];
            best = c;
        }
    }
    for (int64_t c = 0; c < n; c++) {
        const double v = (double)z[c], e = exp(v - max);
        sum += e;
        sum2 += e * e;
        sum_z += v;
        sum_ez += e * v;
    }
    lse = max + log(sum);
    if (a->lse)
        ((real *)a->lse)[i] = (real)lse;
    if (a->logp)
        ((real *)a->logp)[i] = (real)((double)z[target] - lse);
    if (a->sum_z)
        ((real *)a->sum_z)[i] = (real)sum_z;
    if (a->sum_pz)
        ((real *)a->sum_pz)[i] = (real)(sum_ez / sum);
    if (a->lse2)
        ((real *)a->lse2)[i] = (real)(2.0 * max + log(sum2));
    if (a->hit)
        a->hit[i] = best == target;
    if (!a->grad)
        return;
    /* Ascending, so that the narrower bf16 never overtakes what is still read. */
    for (int64_t c = 0; c < n; c++) {
        const double d = (c == target ? 1.0 : 0.0) - exp((double)z[c] - lse);
        ref_store(z, c, a->grad_dtype, d);
    }
}

int ref_logprob(struct kn_ctx *ctx, const struct kn_logprob *a)
{
    const int r = kn_check_logprob(a);

    (void)ctx;
    if (r)
        return r < 0 ? r : 0;
    for (int64_t i = 0; i < a->z.rows; i++) {
        if (a->target[i] < 0 || a->target[i] >= a->z.cols)
            return -EINVAL;
    }
    for (int64_t i = 0; i < a->z.rows; i++)
        logprob_row(a, i);
    return 0;
}
