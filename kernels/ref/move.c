/* move.c - gathering rows with coefficients. */
#include "ref.h"

int ref_gather(struct kn_ctx *ctx, const struct kn_gather *a)
{
    const int r = kn_check_gather(a);
    const real *coef = (const real *)a->coef;

    (void)ctx;
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
    for (int64_t i = 0; i < a->y.rows; i++) {
        const int64_t first = a->start ? a->start[i] : i, end = a->start ? a->start[i + 1] : i + 1;
        for (int64_t c = 0; c < a->y.cols; c++) {
            double sum = a->add ? ref_get(&a->y, i, c) : 0.0;
            for (int64_t j = first; j < end; j++)
                sum += (coef ? (double)coef[j] : 1.0) * ref_get(&a->x, a->idx[j], c);
            ref_put(&a->y, i, c, sum);
        }
    }
    return 0;
}
