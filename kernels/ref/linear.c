/* linear.c - y = x W^T plus low-rank adapters, and its backward.
 *
 * LoRA: Hu et al. 2021 (arXiv:2106.09685), section 4.1. */
#include "ref.h"

#include <stdlib.h>
#include <string.h>

#include "../philox.h"
#include "weight.h"

static real *row_f32(const float *p, int64_t r, int64_t cols)
{
    return (real *)(uintptr_t)p + r * cols;
}

/* Row m of x as part `part`'s adapter sees it. */
static void dropped_row(const struct kn_mat *x, int64_t m, const struct kn_dropout *d, int part,
                        bool dropping, double *out)
{
    for (int64_t c = 0; c < x->cols; c++) {
        out[c] = ref_get(x, m, c);
        if (dropping)
            out[c] *= (double)kn_drop_factor(d, part, d->row_key[m], c);
    }
}

static const struct kn_lora *row_parts(const struct kn_lora_seg *segs, int n_segs, int64_t m)
{
    for (int i = 0; i < n_segs; i++) {
        if (m >= segs[i].row0 && m < segs[i].row0 + segs[i].rows)
            return segs[i].parts;
    }
    return NULL;
}

/* y[m] += scale * (drop(x[m]) A^T) B^T of every part; s gets the inner product. */
static void lora_fwd_row(const struct kn_linear_fwd *a, int64_t m, const struct kn_lora *parts,
                         const int64_t *first, double *x, double *y)
{
    const struct kn_weight *w = a->w;
    int64_t n0 = 0;

    for (int i = 0; i < w->n_parts; i++) {
        const struct kn_lora *l = &parts[i];
        const real *la = (const real *)l->a, *lb = (const real *)l->b;
        real *s = row_f32(a->s, m, a->s_cols) + first[i];

        if (l->r > 0)
            dropped_row(&a->x, m, &a->dropout, i, a->dropout.p > 0.0f, x);
        for (int j = 0; j < l->r; j++) {
            double sum = 0.0;
            for (int64_t c = 0; c < w->k; c++)
                sum += x[c] * (double)la[j * w->k + c];
            s[j] = (real)sum;
        }
        for (int64_t n = 0; n < w->part_n[i]; n++) {
            double sum = 0.0;
            for (int j = 0; j < l->r; j++)
                sum += (double)s[j] * (double)lb[n * l->r + j];
            y[n0 + n] += (double)l->scale * sum;
        }
        n0 += w->part_n[i];
    }
}

int ref_linear_fwd(struct kn_ctx *ctx, const struct kn_linear_fwd *a)
{
    const struct kn_weight *w = a->w;
    const int r = kn_check_linear_fwd(a, w->n, w->k, w->n_parts, w->compute);
    const real *bias = (const real *)a->bias;
    int64_t first[KN_PARTS_MAX + 1];
    double *x, *y;

    (void)ctx;
    if (r)
        return r < 0 ? r : 0;
    x = malloc((size_t)(w->k + w->n) * sizeof *x);
    if (!x)
        return -ENOMEM;
    y = x + w->k;
    kn_lora_columns(a->segs, a->n_segs, w->n_parts, first);
    for (int64_t m = 0; m < a->x.rows; m++) {
        const struct kn_lora *parts = row_parts(a->segs, a->n_segs, m);
        dropped_row(&a->x, m, NULL, 0, false, x);
        for (int64_t n = 0; n < w->n; n++) {
            const real *row = w->values + n * w->k;
            y[n] = 0.0;
            for (int64_t c = 0; c < w->k; c++)
                y[n] += x[c] * (double)row[c];
            if (bias)
                y[n] += (double)bias[n];
        }
        if (a->n_segs > 0 && a->s_cols > 0)
            memset(row_f32(a->s, m, a->s_cols), 0, (size_t)a->s_cols * sizeof(real));
        if (parts)
            lora_fwd_row(a, m, parts, first, x, y);
        for (int64_t n = 0; n < w->n; n++)
            ref_put(&a->y, m, n, y[n] + (a->residual ? ref_get(a->residual, m, n) : 0.0));
    }
    free(x);
    return 0;
}

/* dS = scale * dy B for one row; its share of dx is added to dx. */
static void lora_bwd_row(const struct kn_linear_bwd *a, int64_t m, const struct kn_lora *parts,
                         const int64_t *first, double *dx)
{
    const struct kn_weight *w = a->w;
    int64_t n0 = 0;

    for (int i = 0; i < w->n_parts; i++) {
        const struct kn_lora *l = &parts[i];
        const real *la = (const real *)l->a, *lb = (const real *)l->b;
        real *ds = row_f32(a->ds, m, a->s_cols) + first[i];

        for (int j = 0; j < l->r; j++) {
            double sum = 0.0;
            for (int64_t n = 0; n < w->part_n[i]; n++)
                sum += ref_get(&a->dy, m, n0 + n) * (double)lb[n * l->r + j];
            ds[j] = (real)((double)l->scale * sum);
        }
        for (int64_t c = 0; dx && c < w->k; c++) {
            double sum = 0.0;
            for (int j = 0; j < l->r; j++)
                sum += (double)ds[j] * (double)la[j * w->k + c];
            if (l->r > 0 && a->dropout.p > 0.0f)
                sum *= (double)kn_drop_factor(&a->dropout, i, a->dropout.row_key[m], c);
            dx[c] += sum;
        }
        n0 += w->part_n[i];
    }
}

/* da += dS^T drop(x) and db += scale * dy^T s over the rows of one segment. */
static int lora_bwd_grads(const struct kn_linear_bwd *a, const struct kn_lora_seg *seg, int part,
                          int64_t s0, int64_t n0)
{
    const struct kn_lora *l = &seg->parts[part];
    const int64_t k = a->w->k, n_part = a->w->part_n[part];
    double *da = calloc((size_t)(l->r * (k + n_part) + k + 1), sizeof *da), *db, *x;

    if (!da)
        return -ENOMEM;
    db = da + l->r * k;
    x = db + l->r * n_part;
    for (int64_t m = seg->row0; m < seg->row0 + seg->rows; m++) {
        const real *s = row_f32(a->s, m, a->s_cols) + s0, *ds = row_f32(a->ds, m, a->s_cols) + s0;
        dropped_row(&a->x, m, &a->dropout, part, a->dropout.p > 0.0f, x);
        for (int j = 0; j < l->r; j++) {
            for (int64_t c = 0; c < k; c++)
                da[j * k + c] += (double)ds[j] * x[c];
            for (int64_t n = 0; n < n_part; n++)
                db[n * l->r + j] += (double)l->scale * (double)s[j] * ref_get(&a->dy, m, n0 + n);
        }
    }
    for (int64_t i = 0; l->da && i < l->r * k; i++)
        ((real *)l->da)[i] = (real)((double)((real *)l->da)[i] + da[i]);
    for (int64_t i = 0; l->db && i < n_part * l->r; i++)
        ((real *)l->db)[i] = (real)((double)((real *)l->db)[i] + db[i]);
    free(da);
    return 0;
}

static void linear_bwd_row(const struct kn_linear_bwd *a, int64_t m, const int64_t *first,
                           double *dx)
{
    const struct kn_weight *w = a->w;
    const struct kn_lora *parts = row_parts(a->segs, a->n_segs, m);

    memset(dx, 0, (size_t)w->k * sizeof *dx);
    for (int64_t n = 0; a->dx.p && n < w->n; n++) {
        const double dy = ref_get(&a->dy, m, n);
        for (int64_t c = 0; c < w->k; c++)
            dx[c] += dy * (double)w->values[n * w->k + c];
    }
    if (parts)
        lora_bwd_row(a, m, parts, first, a->dx.p ? dx : NULL);
    for (int64_t c = 0; a->dx.p && c < w->k; c++)
        ref_put(&a->dx, m, c, dx[c] + (a->add_dx ? ref_get(&a->dx, m, c) : 0.0));
}

int ref_linear_bwd(struct kn_ctx *ctx, const struct kn_linear_bwd *a)
{
    const struct kn_weight *w = a->w;
    int r = kn_check_linear_bwd(a, w->n, w->k, w->n_parts, w->compute, w->no_backward);
    int64_t first[KN_PARTS_MAX + 1];
    double *dx;

    (void)ctx;
    if (r)
        return r < 0 ? r : 0;
    dx = malloc((size_t)w->k * sizeof *dx);
    if (!dx)
        return -ENOMEM;
    kn_lora_columns(a->segs, a->n_segs, w->n_parts, first);
    for (int64_t m = 0; m < a->dy.rows; m++)
        linear_bwd_row(a, m, first, dx);
    free(dx);
    for (int i = 0; i < a->n_segs; i++) {
        int64_t n0 = 0;
        for (int j = 0; j < w->n_parts && r == 0; j++) {
            if (a->segs[i].parts[j].r > 0)
                r = lora_bwd_grads(a, &a->segs[i], j, first[j], n0);
            n0 += w->part_n[j];
        }
    }
    return r;
}
