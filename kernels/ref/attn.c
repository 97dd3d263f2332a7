/* attn.c - variable-length causal attention with grouped queries. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>

int ref_attn_offsets(const struct kn_attn_shape *s, int64_t q_rows, int64_t k_rows)
{
    if (s->n_seqs == 0)
        return 0;
    if (s->cu_q[0] < 0 || s->cu_k[0] < 0 || s->cu_q[s->n_seqs] > q_rows ||
        s->cu_k[s->n_seqs] > k_rows)
        return -EINVAL;
    for (int i = 0; i < s->n_seqs; i++) {
        const int64_t lq = (int64_t)s->cu_q[i + 1] - s->cu_q[i];
        const int64_t lk = (int64_t)s->cu_k[i + 1] - s->cu_k[i];
        if (lq < 0 || lk < lq || lq > s->max_q || lk > s->max_k)
            return -EINVAL;
    }
    return 0;
}

/* The keys [*lo, *hi) that query i of a sequence with lq queries and lk keys sees. */
static void visible(const struct kn_attn_shape *s, int64_t lq, int64_t lk, int64_t i, int64_t *lo,
                    int64_t *hi)
{
    *hi = i + lk - lq + 1;
    *lo = s->window > 0 && *hi > s->window ? *hi - s->window : 0;
}

static double dot(const struct kn_mat *x, int64_t xr, int64_t xc, const struct kn_mat *y,
                  int64_t yr, int64_t yc, int n)
{
    double sum = 0.0;
    for (int i = 0; i < n; i++)
        sum += ref_get(x, xr, xc + i) * ref_get(y, yr, yc + i);
    return sum;
}

static void attn_fwd_row(const struct kn_attn_fwd *a, int seq, int h, int64_t i, double *p)
{
    const struct kn_attn_shape *s = &a->shape;
    const int64_t q0 = s->cu_q[seq], k0 = s->cu_k[seq];
    const int64_t lq = s->cu_q[seq + 1] - q0, lk = s->cu_k[seq + 1] - k0;
    const int64_t qc = (int64_t)h * s->head_dim;
    const int64_t kc = (int64_t)(h / (s->heads / s->kv_heads)) * s->head_dim;
    double max = -INFINITY, sum = 0.0;
    int64_t lo, hi;

    visible(s, lq, lk, i, &lo, &hi);
    for (int64_t j = lo; j < hi; j++) {
        p[j] = (double)s->scale * dot(&a->q, q0 + i, qc, &a->k, k0 + j, kc, s->head_dim);
        max = fmax(max, p[j]);
    }
    for (int64_t j = lo; j < hi; j++) {
        p[j] = exp(p[j] - max);
        sum += p[j];
    }
    for (int d = 0; d < s->head_dim; d++) {
        double o = 0.0;
        for (int64_t j = lo; j < hi; j++)
            o += p[j] * ref_get(&a->v, k0 + j, kc + d);
        ref_put(&a->o, q0 + i, qc + d, o / sum);
    }
    ((real *)a->lse)[(q0 + i) * s->heads + h] = (real)(max + log(sum));
}

int ref_attn_fwd(struct kn_ctx *ctx, const struct kn_attn_fwd *a)
{
    const struct kn_attn_shape *s = &a->shape;
    const int r = kn_check_attn_fwd(a);
    double *p;

    (void)ctx;
    if (r)
        return r < 0 ? r : 0;
    if (ref_attn_offsets(s, a->q.rows, a->k.rows))
        return -EINVAL;
    p = malloc(((size_t)s->max_k + 1) * sizeof *p);
    if (!p)
        return -ENOMEM;
    for (int seq = 0; seq < s->n_seqs; seq++) {
        for (int h = 0; h < s->heads; h++) {
            for (int64_t i = 0; i < s->cu_q[seq + 1] - s->cu_q[seq]; i++)
                attn_fwd_row(a, seq, h, i, p);
        }
    }
    free(p);
    return 0;
}

/* One (sequence, key head): dk and dv gather over the group's query heads in
 * double before they are rounded once. acc: 2 * lk * head_dim zeros. */
static void attn_bwd_group(const struct kn_attn_bwd *a, int seq, int kv, double *acc)
{
    const struct kn_attn_shape *s = &a->shape;
    const int64_t q0 = s->cu_q[seq], k0 = s->cu_k[seq];
    const int64_t lq = s->cu_q[seq + 1] - q0, lk = s->cu_k[seq + 1] - k0;
    const int hd = s->head_dim, group = s->heads / s->kv_heads;
    const int64_t kc = (int64_t)kv * hd;
    double *dk = acc, *dv = acc + lk * hd, dq[128];

    for (int h = kv * group; h < (kv + 1) * group; h++) {
        const int64_t qc = (int64_t)h * hd;
        for (int64_t i = 0; i < lq; i++) {
            const double lse = (double)((const real *)a->lse)[(q0 + i) * s->heads + h];
            const double delta = dot(&a->d_o, q0 + i, qc, &a->o, q0 + i, qc, hd);
            int64_t lo, hi;
            ((real *)a->delta)[(q0 + i) * s->heads + h] = (real)delta;
            for (int d = 0; d < hd; d++)
                dq[d] = 0.0;
            visible(s, lq, lk, i, &lo, &hi);
            for (int64_t j = lo; j < hi; j++) {
                const double score = dot(&a->q, q0 + i, qc, &a->k, k0 + j, kc, hd);
                const double p = exp((double)s->scale * score - lse);
                const double dp = dot(&a->d_o, q0 + i, qc, &a->v, k0 + j, kc, hd);
                const double ds = (double)s->scale * p * (dp - delta);
                for (int d = 0; d < hd; d++) {
                    dq[d] += ds * ref_get(&a->k, k0 + j, kc + d);
                    dk[j * hd + d] += ds * ref_get(&a->q, q0 + i, qc + d);
                    dv[j * hd + d] += p * ref_get(&a->d_o, q0 + i, qc + d);
                }
            }
            for (int d = 0; d < hd; d++)
                ref_put(&a->dq, q0 + i, qc + d, dq[d]);
        }
    }
    for (int64_t j = 0; j < lk; j++) {
        for (int d = 0; d < hd; d++) {
            ref_put(&a->dk, k0 + j, kc + d, dk[j * hd + d]);
            ref_put(&a->dv, k0 + j, kc + d, dv[j * hd + d]);
        }
    }
}

static void fill_zero(const struct kn_mat *m)
{
    for (int64_t i = 0; i < m->rows; i++) {
        for (int64_t c = 0; c < m->cols; c++)
            ref_put(m, i, c, 0.0);
    }
}

int ref_attn_bwd(struct kn_ctx *ctx, const struct kn_attn_bwd *a)
{
    const struct kn_attn_shape *s = &a->shape;
    const int r = kn_check_attn_bwd(a);
    const size_t n = 2 * (size_t)s->max_k * (size_t)s->head_dim;
    double *acc;

    (void)ctx;
    if (r)
        return r < 0 ? r : 0;
    if (ref_attn_offsets(s, a->q.rows, a->k.rows))
        return -EINVAL;
    acc = malloc((n + 1) * sizeof *acc);
    if (!acc)
        return -ENOMEM;
    fill_zero(&a->dq); /* rows of no sequence */
    fill_zero(&a->dk);
    fill_zero(&a->dv);
    for (int seq = 0; seq < s->n_seqs; seq++) {
        for (int kv = 0; kv < s->kv_heads; kv++) {
            for (size_t i = 0; i < n; i++)
                acc[i] = 0.0;
            attn_bwd_group(a, seq, kv, acc);
        }
    }
    free(acc);
    return 0;
}
