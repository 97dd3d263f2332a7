/* rope.c - rotate-half rotary embedding, in place. */
#include "ref.h"

int ref_rope(struct kn_ctx *ctx, const struct kn_rope *a)
{
    const int r = kn_check_rope(a), half = a->head_dim / 2;

    (void)ctx;
    if (r)
        return r < 0 ? r : 0;
    for (int64_t t = 0; t < a->x.rows; t++) {
        if (a->pos[t] < 0)
            return -EINVAL;
    }
    for (int64_t t = 0; t < a->x.rows; t++) {
        const real *cosines = (const real *)a->cos_sin + (int64_t)a->pos[t] * a->head_dim;
        for (int h = 0; h < a->heads; h++) {
            for (int i = 0; i < half; i++) {
                const int64_t c = (int64_t)h * a->head_dim + i;
                const double u = ref_get(&a->x, t, c), v = ref_get(&a->x, t, c + half);
                const double cosine = (double)cosines[i];
                const double sine = (a->inverse ? -1.0 : 1.0) * (double)cosines[half + i];
                ref_put(&a->x, t, c, u * cosine - v * sine);
                ref_put(&a->x, t, c + half, v * cosine + u * sine);
            }
        }
    }
    return 0;
}
