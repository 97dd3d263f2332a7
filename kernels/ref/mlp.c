/* mlp.c - SwiGLU: Shazeer 2020 (arXiv:2002.05202), equation 6. */
#include "ref.h"

#include <math.h>

static double sigmoid(double v)
{
    return 1.0 / (1.0 + exp(-v));
}

int ref_swiglu_fwd(struct kn_ctx *ctx, const struct kn_swiglu_fwd *a)
{
    const int r = kn_check_swiglu_fwd(a);

    (void)ctx;
    if (r)
        return r < 0 ? r : 0;
    for (int64_t t = 0; t < a->y.rows; t++) {
        for (int64_t c = 0; c < a->y.cols; c++) {
            const double g = ref_get(&a->gu, t, c), u = ref_get(&a->gu, t, a->y.cols + c);
            ref_put(&a->y, t, c, g * sigmoid(g) * u);
        }
    }
    return 0;
}

/* d silu(g) = sig(g) (1 + g (1 - sig(g))). */
int ref_swiglu_bwd(struct kn_ctx *ctx, const struct kn_swiglu_bwd *a)
{
    const int r = kn_check_swiglu_bwd(a);
    const int64_t cols = a->dy.cols;

    (void)ctx;
    if (r)
        return r < 0 ? r : 0;
    for (int64_t t = 0; t < a->dy.rows; t++) {
        for (int64_t c = 0; c < cols; c++) {
            const double g = ref_get(&a->gu, t, c), u = ref_get(&a->gu, t, cols + c);
            const double dy = ref_get(&a->dy, t, c), s = sigmoid(g);
            ref_put(&a->dgu, t, c, dy * u * s * (1.0 + g * (1.0 - s)));
            ref_put(&a->dgu, t, cols + c, dy * g * s);
            if (a->y.p)
                ref_put(&a->y, t, c, g * s * u);
        }
    }
    return 0;
}
