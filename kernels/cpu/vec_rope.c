/* vec_rope.c - rotate-half rotary embedding, rows of one call. */
#include "vec.h"

void VNAME(vec_rope)(const struct kn_rope *a, int64_t r0, int64_t r1)
{
    const int64_t half = a->head_dim / 2;
    const enum kn_dtype t = a->x.dtype;

    for (int64_t r = r0; r < r1; r++) {
        const float *cosine = a->cos_sin + (int64_t)a->pos[r] * a->head_dim;
        const float *sine = cosine + half;
        void *x = vec_row(&a->x, r);
        for (int h = 0; h < a->heads; h++) {
            const int64_t u0 = (int64_t)h * a->head_dim, v0 = u0 + half;
            for (int64_t i = 0; i < half; i += VW) {
                const int64_t n = half - i;
                const vf u = vf_get(x, u0 + i, n, t), v = vf_get(x, v0 + i, n, t);
                const vf c = vf_get(cosine, i, n, KN_F32);
                vf s = vf_get(sine, i, n, KN_F32);
                if (a->inverse)
                    s = (vf){0} - s;
                vf_put(x, u0 + i, n, t, u * c - v * s);
                vf_put(x, v0 + i, n, t, v * c + u * s);
            }
        }
    }
}
