/* vec_adamw.c - the gradient's norm and AdamW over a stretch of the buffers. */
#include <math.h>

#include "vec.h"

/* n floats in the lanes' order, in double. */
void VNAME(vec_sweep)(const float *g, int64_t n, struct kn_sweep *ret)
{
    double sum[16] = {0}, total = 0.0;
    int64_t bad = 0;

    for (int64_t i = 0; i < n; i += 16) {
        for (int64_t j = 0; j < 16 && i + j < n; j++) {
            const double v = (double)g[i + j];
            sum[j] += v * v;
            bad += !isfinite(g[i + j]);
        }
    }
    for (int j = 0; j < 16; j++)
        total += sum[j];
    ret->sum_sq = total;
    ret->nonfinite = bad;
}

void VNAME(vec_adamw)(const struct kn_adamw *a, float clip, int64_t i0, int64_t i1)
{
    const struct kn_adamw_step *s = a->step;
    const vf c = vf_set(clip), decay = vf_set((float)(1.0 - (double)s->lr * s->weight_decay));
    const vf b1 = vf_set(s->beta1), b2 = vf_set(s->beta2);
    const vf c1 = vf_set((float)(1.0 - (double)s->beta1));
    const vf c2 = vf_set((float)(1.0 - (double)s->beta2));
    const vf rate = vf_set((float)((double)s->lr / (double)s->bias1));
    const vf root = vf_set((float)sqrt((double)s->bias2)), eps = vf_set(s->eps);

    for (int64_t i = i0; i < i1; i += VW) {
        const int64_t n = i1 - i;
        const vf g = vf_get(a->g, i, n, KN_F32) * c;
        const vf m = b1 * vf_get(a->m, i, n, KN_F32) + c1 * g;
        const vf v = b2 * vf_get(a->v, i, n, KN_F32) + c2 * (g * g);
        const vf p = vf_get(a->p, i, n, KN_F32) * decay;

        vf_put(a->m, i, n, KN_F32, m);
        vf_put(a->v, i, n, KN_F32, v);
        vf_put(a->p, i, n, KN_F32, p - rate * (m / (vf_sqrt(v) / root + eps)));
    }
}
