/* vec_move.c - widening, dropout and gathering rows. */
#include "../philox.h"
#include "vec.h"

/* The factors of columns [c, c + 4 * VW) of one row: lane i of word w belongs to
 * column c + 4 i + w. The rounds are kn_philox's, VW counters side by side. */
static void drop_factors(const struct kn_dropout *d, int part, uint64_t row_key, int64_t col,
                         float *out)
{
    const uint64_t threshold = kn_drop_threshold(d->p);
    const float kept = 1.0f / (1.0f - d->p);
    uint32_t x0[VW], x1[VW], x2[VW], x3[VW];
    uint32_t k0 = (uint32_t)d->seed, k1 = (uint32_t)(d->seed >> 32);

    for (int i = 0; i < VW; i++) {
        x0[i] = (uint32_t)(col / 4) + (uint32_t)i;
        x1[i] = (uint32_t)row_key;
        x2[i] = (uint32_t)(row_key >> 32);
        x3[i] = d->stream + (uint32_t)part;
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < VW; i++) {
            const uint64_t p0 = (uint64_t)0xD2511F53u * x0[i], p1 = (uint64_t)0xCD9E8D57u * x2[i];
            const uint32_t y0 = (uint32_t)(p1 >> 32) ^ x1[i] ^ k0;
            const uint32_t y2 = (uint32_t)(p0 >> 32) ^ x3[i] ^ k1;
            x0[i] = y0;
            x1[i] = (uint32_t)p1;
            x2[i] = y2;
            x3[i] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < VW; i++) {
        out[4 * i] = x0[i] >= threshold ? kept : 0.0f;
        out[4 * i + 1] = x1[i] >= threshold ? kept : 0.0f;
        out[4 * i + 2] = x2[i] >= threshold ? kept : 0.0f;
        out[4 * i + 3] = x3[i] >= threshold ? kept : 0.0f;
    }
}

/* col0 is a multiple of 4. */
static void widen_row(const struct cpu_widen *w, int64_t r, const void *src, float *dst)
{
    float factors[4 * VW];

    for (int64_t c = 0; c < w->cols; c += VW) {
        const int64_t n = w->cols - c;
        vf v = w->multiply ? vf_get(dst, c, n, KN_F32) : vf_get(src, c, n, w->dtype);
        if (w->drop) {
            if (c % (4 * VW) == 0)
                drop_factors(w->drop, w->part, w->drop->row_key[w->row0 + r], w->col0 + c, factors);
            v *= vf_load(factors + c % (4 * VW));
        }
        vf_put(dst, c, n, KN_F32, v);
    }
}

void VNAME(vec_widen)(const struct cpu_widen *w)
{
    const size_t size = w->dtype == KN_BF16 ? 2 : 4;

    for (int64_t r = 0; r < w->rows; r++)
        widen_row(w, r, (const char *)w->src + (size_t)(r * w->ld_src) * size,
                  w->dst + r * w->ld_dst);
}

void VNAME(vec_gather)(const struct kn_gather *a, int64_t r0, int64_t r1)
{
    const enum kn_dtype t = a->y.dtype;

    for (int64_t r = r0; r < r1; r++) {
        const int64_t first = a->start ? a->start[r] : r, end = a->start ? a->start[r + 1] : r + 1;
        char *y = vec_row(&a->y, r);
        for (int64_t c = 0; c < a->y.cols; c += VW) {
            const int64_t n = a->y.cols - c;
            vf sum = a->add ? vf_get(y, c, n, t) : (vf){0};
            for (int64_t j = first; j < end; j++) {
                const vf x = vf_get(vec_row(&a->x, a->idx[j]), c, n, t);
                sum = a->coef ? vf_fma(vf_set(a->coef[j]), x, sum) : sum + x;
            }
            vf_put(y, c, n, t, sum);
        }
    }
}
