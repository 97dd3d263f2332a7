/* vec_mlp.c - SwiGLU, rows of one call. */
#include "vec.h"

void VNAME(vec_swiglu_fwd)(const struct kn_swiglu_fwd *a, int64_t r0, int64_t r1)
{
    const int64_t cols = a->y.cols;
    const enum kn_dtype t = a->y.dtype;

    for (int64_t r = r0; r < r1; r++) {
        const void *gu = vec_row(&a->gu, r);
        void *y = vec_row(&a->y, r);
        for (int64_t c = 0; c < cols; c += VW) {
            const vf g = vf_get(gu, c, cols - c, t), u = vf_get(gu, cols + c, cols - c, t);
            vf_put(y, c, cols - c, t, g * vf_sigmoid(g) * u);
        }
    }
}

void VNAME(vec_swiglu_bwd)(const struct kn_swiglu_bwd *a, int64_t r0, int64_t r1)
{
    const int64_t cols = a->dy.cols;
    const enum kn_dtype t = a->gu.dtype;
    const vf one = vf_set(1.0f);

    for (int64_t r = r0; r < r1; r++) {
        const void *gu = vec_row(&a->gu, r), *dy = vec_row(&a->dy, r);
        void *dgu = vec_row(&a->dgu, r), *y = a->y.p ? vec_row(&a->y, r) : NULL;
        for (int64_t c = 0; c < cols; c += VW) {
            const int64_t n = cols - c;
            const vf g = vf_get(gu, c, n, t), u = vf_get(gu, cols + c, n, t);
            const vf d = vf_get(dy, c, n, t), s = vf_sigmoid(g), silu = g * s;
            vf_put(dgu, c, n, t, d * u * s * (one + g * (one - s)));
            vf_put(dgu, cols + c, n, t, d * silu);
            if (y)
                vf_put(y, c, n, t, silu * u);
        }
    }
}
