/* vec_move.c - widening, dropout and gathering rows. */
#include "../philox.h"
#include "vec.h"

/* High and low words of x * m, lane by lane. */
VINLINE void mul_words(vu x, uint32_t m, vu *ret_high, vu *ret_low)
{
    const vq by = (vq){0} + m, low = {0}, even = vq_mul((vq)x, by), odd = vq_mul((vq)x >> 32, by);
    const vq upper = low + 0xffffffff00000000u;

    *ret_high = (vu)((even >> 32) | (odd & upper));
    *ret_low = (vu)((even & ~upper) | (odd << 32));
}

/* The factors of columns [c, c + 4 * VW) of one row. The rounds are kn_philox's,
 * VW counters side by side: word w of lane i belongs to column c + 4 i + w. */
static void drop_factors(const struct kn_dropout *d, int part, uint64_t row_key, int64_t col,
                         float *out)
{
    const uint64_t threshold = kn_drop_threshold(d->p);
    /* threshold <= 2^32 - 256: p < 1 is at most 1 - 2^-24 */
    const vu least = (vu){0} + (uint32_t)threshold;
    const vf kept = vf_set(1.0f / (1.0f - d->p));
    uint32_t k0 = (uint32_t)d->seed, k1 = (uint32_t)(d->seed >> 32);
    vu x[4] = {(vu)vi_lanes() + (uint32_t)(col / 4), (vu){0} + (uint32_t)row_key,
               (vu){0} + (uint32_t)(row_key >> 32), (vu){0} + (d->stream + (uint32_t)part)};
    vf f[4];

    for (int round = 0; round < 10; round++) {
        vu high0, low0, high1, low1;
        mul_words(x[0], 0xD2511F53u, &high0, &low0);
        mul_words(x[2], 0xCD9E8D57u, &high1, &low1);
        x[0] = high1 ^ x[1] ^ k0;
        x[1] = low1;
        x[2] = high0 ^ x[3] ^ k1;
        x[3] = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int w = 0; w < 4; w++)
        f[w] = vf_select((vi)(x[w] >= least), kept, (vf){0});
    for (int half = 0; half < 2; half++) {
        const vf even = half ? vf_upper(f[0], f[2]) : vf_lower(f[0], f[2]);
        const vf odd = half ? vf_upper(f[1], f[3]) : vf_lower(f[1], f[3]);
        vf_store(out + half * 2 * VW, vf_lower(even, odd));
        vf_store(out + half * 2 * VW + VW, vf_upper(even, odd));
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
