/* vec_attn.c - attention of one sequence and one key head.
 *
 * Keys and values are laid out once per (sequence, key head); then blocks of
 * QROWS queries meet all the keys they see: scores, softmax, weighted values are
 * three products in registers (vec_mm.c). Keys count from the sequence's first,
 * so lane and order of every sum depend on a key's place in its sequence alone;
 * keys a query does not see enter as exact zeros. */
#include <math.h>

#include "vec.h"

enum { QROWS = 24 };

struct attn_part {
    int64_t q0, k0, lq, lk; /* first rows and lengths */
    int64_t ld;             /* of buffers along the keys: lk rounded up */
    int64_t hd, kc;         /* head size, first column of the key head */
    float *kt, *vt;         /* (hd, ld): transposed */
    const float *k, *v;     /* (lk, hd) as float */
    int64_t ldk, ldv;
};

static int64_t round_up(int64_t n)
{
    return (n + 15) / 16 * 16;
}

/* Bytes of one (rows, cols) float buffer, a whole number of cache lines. */
static size_t buffer(int64_t rows, int64_t cols)
{
    return (size_t)(rows * round_up(cols)) * sizeof(float);
}

static float *take(char **scratch, int64_t rows, int64_t cols)
{
    float *p = (float *)(void *)*scratch;

    *scratch += buffer(rows, cols);
    return p;
}

size_t VNAME(vec_attn_fwd_bytes)(const struct kn_attn_shape *s)
{
    const int64_t lk = s->max_k, hd = s->head_dim;
    return buffer(hd, lk) + buffer(lk, hd) + buffer(QROWS, lk) + 2 * buffer(QROWS, hd);
}

size_t VNAME(vec_attn_bwd_bytes)(const struct kn_attn_shape *s)
{
    const int64_t lk = s->max_k, hd = s->head_dim;
    return 2 * buffer(hd, lk) + 4 * buffer(lk, hd) + 2 * buffer(QROWS, lk) + 4 * buffer(QROWS, hd);
}

/* Rows [r0, r0 + rows) and hd columns of m as float: where they lie, or a copy. */
static const float *as_float(const struct kn_mat *m, int64_t r0, int64_t rows, int64_t col,
                             int64_t hd, float *copy, int64_t *ret_ld)
{
    if (m->dtype == KN_F32) {
        *ret_ld = m->ld;
        return (const float *)m->p + r0 * m->ld + col;
    }
    *ret_ld = round_up(hd);
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *x = (const bf16 *)m->p + (r0 + r) * m->ld + col;
        for (int64_t c = 0; c < hd; c += VW)
            vf_put(copy, r * *ret_ld + c, hd - c, KN_F32, vf_get(x, c, hd - c, KN_BF16));
    }
    return copy;
}

static void transpose(const float *x, int64_t ldx, int64_t rows, int64_t cols, float *t,
                      int64_t ldt)
{
    for (int64_t r0 = 0; r0 < rows; r0 += 16) {
        const int64_t r1 = rows - r0 < 16 ? rows : r0 + 16;
        for (int64_t c = 0; c < cols; c++) {
            for (int64_t r = r0; r < r1; r++)
                t[c * ldt + r] = x[r * ldx + c];
        }
    }
}

static struct attn_part part_of(const struct kn_attn_shape *s, int seq, int kv_head)
{
    struct attn_part p = {.q0 = s->cu_q[seq], .k0 = s->cu_k[seq], .hd = s->head_dim};

    p.lq = s->cu_q[seq + 1] - p.q0;
    p.lk = s->cu_k[seq + 1] - p.k0;
    p.ld = round_up(p.lk);
    p.kc = (int64_t)kv_head * p.hd;
    return p;
}

/* The keys query i sees: [*lo, *hi). */
static void visible(const struct kn_attn_shape *s, const struct attn_part *p, int64_t i,
                    int64_t *lo, int64_t *hi)
{
    *hi = i + p->lk - p->lq + 1;
    *lo = s->window > 0 && *hi > s->window ? *hi - s->window : 0;
}

/* scores (rows, [j0, j1)) = x (rows, hd) times a transposed (hd, lk). */
static void against_keys(const struct attn_part *p, const float *x, int64_t ldx, int64_t rows,
                         const float *t, int64_t j0, int64_t j1, float *scores)
{
    VNAME(vec_mm)
    (&(struct cpu_mm){.rows = rows,
                      .cols = j1 - j0,
                      .depth = p->hd,
                      .a = x,
                      .a_row = ldx,
                      .a_depth = 1,
                      .b = t + j0,
                      .ldb = p->ld,
                      .c = scores + j0,
                      .ldc = p->ld});
}

/* out (rows, hd) = weights (rows, [j0, j1)) times y (lk, hd). */
static void over_keys(const struct attn_part *p, const float *weights, int64_t rows, int64_t j0,
                      int64_t j1, const float *y, int64_t ldy, float *out, int64_t ld_out)
{
    VNAME(vec_mm)
    (&(struct cpu_mm){.rows = rows,
                      .cols = p->hd,
                      .depth = j1 - j0,
                      .a = weights + j0,
                      .a_row = p->ld,
                      .a_depth = 1,
                      .b = y + j0 * ldy,
                      .ldb = ldy,
                      .c = out,
                      .ldc = ld_out});
}

/* sum (lk, hd) += weights (rows, [j0, j1))^T times x (rows, hd). */
static void onto_keys(const struct attn_part *p, const float *weights, int64_t rows, int64_t j0,
                      int64_t j1, const float *x, int64_t ldx, float *sum, int64_t ld_sum)
{
    VNAME(vec_mm)
    (&(struct cpu_mm){.rows = j1 - j0,
                      .cols = p->hd,
                      .depth = rows,
                      .a = weights + j0,
                      .a_row = 1,
                      .a_depth = p->ld,
                      .b = x,
                      .ldb = ldx,
                      .c = sum + j0 * ld_sum,
                      .ldc = ld_sum,
                      .add = true,
                      .alpha = 1.0f});
}

VINLINE vi seen(int64_t j, int64_t lo, int64_t hi)
{
    const vi at = vi_lanes() + (int32_t)j;
    return (at >= (vi){0} + (int32_t)lo) & (at < (vi){0} + (int32_t)hi);
}

/* e^(scale s - max) in place over [j0, j1), 0 where not seen; returns the sum. */
static float softmax_row(float *s, float scale, int64_t j0, int64_t j1, int64_t lo, int64_t hi,
                         float *ret_max)
{
    vf max = vf_set(-INFINITY), sum = {0};
    float m;

    for (int64_t j = j0; j < hi; j += VW) {
        const vf v = vf_load(s + j) * vf_set(scale);
        max = vf_max(vf_select(seen(j, lo, hi), v, vf_set(-INFINITY)), max);
    }
    m = vf_largest(max);
    for (int64_t j = j0; j < j1; j += VW) {
        vf e = {0};
        if (j < hi) {
            e = vf_exp(vf_fma(vf_load(s + j), vf_set(scale), vf_set(-m)));
            e = vf_select(seen(j, lo, hi), e, (vf){0});
            sum += e;
        }
        vf_store(s + j, e);
    }
    *ret_max = m;
    return vf_sum(sum);
}

static void fwd_block(const struct kn_attn_fwd *a, const struct attn_part *p, int h, int64_t i0,
                      float *scores, float *qf, float *of)
{
    const struct kn_attn_shape *s = &a->shape;
    const int64_t rows = p->lq - i0 < QROWS ? p->lq - i0 : QROWS, qc = (int64_t)h * p->hd;
    int64_t ldq, ld_of = round_up(p->hd), j0, j1, lo, hi;
    const float *q = as_float(&a->q, p->q0 + i0, rows, qc, p->hd, qf, &ldq);
    float sums[QROWS];

    visible(s, p, i0 + rows - 1, &lo, &j1);
    visible(s, p, i0, &j0, &hi);
    j0 = j0 / VW * VW;
    against_keys(p, q, ldq, rows, p->kt, j0, j1, scores);
    for (int64_t r = 0; r < rows; r++) {
        float max;
        visible(s, p, i0 + r, &lo, &hi);
        sums[r] = softmax_row(scores + r * p->ld, s->scale, j0, j1, lo, hi, &max);
        a->lse[(p->q0 + i0 + r) * s->heads + h] = max + logf(sums[r]);
    }
    over_keys(p, scores, rows, j0, j1, p->v, p->ldv, of, ld_of);
    for (int64_t r = 0; r < rows; r++) {
        void *o = vec_row(&a->o, p->q0 + i0 + r);
        for (int64_t c = 0; c < p->hd; c += VW) {
            const vf v = vf_get(of, r * ld_of + c, p->hd - c, KN_F32) / vf_set(sums[r]);
            vf_put(o, qc + c, p->hd - c, a->o.dtype, v);
        }
    }
}

void VNAME(vec_attn_fwd)(const struct kn_attn_fwd *a, int seq, int kv_head, void *scratch)
{
    const struct kn_attn_shape *s = &a->shape;
    const int group = s->heads / s->kv_heads;
    struct attn_part p = part_of(s, seq, kv_head);
    char *at = scratch;
    float *kt = take(&at, p.hd, p.lk), *copy = take(&at, p.lk, p.hd);
    float *scores = take(&at, QROWS, p.lk), *qf = take(&at, QROWS, p.hd);
    float *of = take(&at, QROWS, p.hd);
    int64_t ld;

    if (p.lq == 0)
        return;
    const float *k = as_float(&a->k, p.k0, p.lk, p.kc, p.hd, copy, &ld);
    transpose(k, ld, p.lk, p.hd, kt, p.ld);
    p.kt = kt;
    p.v = as_float(&a->v, p.k0, p.lk, p.kc, p.hd, copy, &p.ldv);
    for (int h = kv_head * group; h < (kv_head + 1) * group; h++) {
        for (int64_t i = 0; i < p.lq; i += QROWS)
            fwd_block(a, &p, h, i, scores, qf, of);
    }
}

struct bwd_buffers {
    float *scores, *dscores, *qf, *dof, *of, *dqf;
    float *dk, *dv;
    int64_t ld; /* of dk, dv and dqf */
};

/* p = e^(scale s - lse) and ds = scale p (dp - delta), in place. */
static void bwd_row(float *s, float *dp, float scale, float lse, float delta, int64_t j0,
                    int64_t j1, int64_t lo, int64_t hi)
{
    for (int64_t j = j0; j < j1; j += VW) {
        vf e = {0}, d = {0};
        if (j < hi) {
            const vi in = seen(j, lo, hi);
            e = vf_exp(vf_fma(vf_load(s + j), vf_set(scale), vf_set(-lse)));
            e = vf_select(in, e, (vf){0});
            d = vf_set(scale) * e * (vf_load(dp + j) - vf_set(delta));
            d = vf_select(in, d, (vf){0});
        }
        vf_store(s + j, e);
        vf_store(dp + j, d);
    }
}

static float row_dot(const float *x, const float *y, int64_t n)
{
    vf sum = {0};

    for (int64_t c = 0; c < n; c += VW)
        sum = vf_fma(vf_get(x, c, n - c, KN_F32), vf_get(y, c, n - c, KN_F32), sum);
    return vf_sum(sum);
}

static void write_rows(const struct kn_mat *m, int64_t r0, int64_t rows, int64_t col, int64_t hd,
                       const float *x, int64_t ldx)
{
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < hd; c += VW)
            vf_put(vec_row(m, r0 + r), col + c, hd - c, m->dtype,
                   vf_get(x, r * ldx + c, hd - c, KN_F32));
    }
}

static void bwd_block(const struct kn_attn_bwd *a, const struct attn_part *p, int h, int64_t i0,
                      const struct bwd_buffers *b)
{
    const struct kn_attn_shape *s = &a->shape;
    const int64_t rows = p->lq - i0 < QROWS ? p->lq - i0 : QROWS, qc = (int64_t)h * p->hd;
    const int64_t row0 = p->q0 + i0;
    int64_t ldq, ld_do, ldo, j0, j1, lo, hi;
    const float *q = as_float(&a->q, row0, rows, qc, p->hd, b->qf, &ldq);
    const float *d_o = as_float(&a->d_o, row0, rows, qc, p->hd, b->dof, &ld_do);
    const float *o = as_float(&a->o, row0, rows, qc, p->hd, b->of, &ldo);

    visible(s, p, i0 + rows - 1, &lo, &j1);
    visible(s, p, i0, &j0, &hi);
    j0 = j0 / VW * VW;
    against_keys(p, q, ldq, rows, p->kt, j0, j1, b->scores);
    against_keys(p, d_o, ld_do, rows, p->vt, j0, j1, b->dscores);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = (row0 + r) * s->heads + h;
        const float delta = row_dot(d_o + r * ld_do, o + r * ldo, p->hd);
        a->delta[at] = delta;
        visible(s, p, i0 + r, &lo, &hi);
        bwd_row(b->scores + r * p->ld, b->dscores + r * p->ld, s->scale, a->lse[at], delta, j0, j1,
                lo, hi);
    }
    over_keys(p, b->dscores, rows, j0, j1, p->k, p->ldk, b->dqf, b->ld);
    write_rows(&a->dq, row0, rows, qc, p->hd, b->dqf, b->ld);
    onto_keys(p, b->scores, rows, j0, j1, d_o, ld_do, b->dv, b->ld);
    onto_keys(p, b->dscores, rows, j0, j1, q, ldq, b->dk, b->ld);
}

void VNAME(vec_attn_bwd)(const struct kn_attn_bwd *a, int seq, int kv_head, void *scratch)
{
    const struct kn_attn_shape *s = &a->shape;
    const int group = s->heads / s->kv_heads;
    struct attn_part p = part_of(s, seq, kv_head);
    struct bwd_buffers b = {.ld = round_up(p.hd)};
    char *at = scratch;
    float *kf = take(&at, p.lk, p.hd), *v_f = take(&at, p.lk, p.hd);

    p.kt = take(&at, p.hd, p.lk);
    p.vt = take(&at, p.hd, p.lk);
    b.dk = take(&at, p.lk, p.hd);
    b.dv = take(&at, p.lk, p.hd);
    b.scores = take(&at, QROWS, p.lk);
    b.dscores = take(&at, QROWS, p.lk);
    b.qf = take(&at, QROWS, p.hd);
    b.dof = take(&at, QROWS, p.hd);
    b.of = take(&at, QROWS, p.hd);
    b.dqf = take(&at, QROWS, p.hd);
    p.k = as_float(&a->k, p.k0, p.lk, p.kc, p.hd, kf, &p.ldk);
    p.v = as_float(&a->v, p.k0, p.lk, p.kc, p.hd, v_f, &p.ldv);
    transpose(p.k, p.ldk, p.lk, p.hd, p.kt, p.ld);
    transpose(p.v, p.ldv, p.lk, p.hd, p.vt, p.ld);
    memset(b.dk, 0, (size_t)(p.lk * b.ld) * sizeof(float));
    memset(b.dv, 0, (size_t)(p.lk * b.ld) * sizeof(float));
    for (int h = kv_head * group; h < (kv_head + 1) * group; h++) {
        for (int64_t i = 0; i < p.lq; i += QROWS)
            bwd_block(a, &p, h, i, &b);
    }
    write_rows(&a->dk, p.k0, p.lk, p.kc, p.hd, b.dk, b.ld);
    write_rows(&a->dv, p.k0, p.lk, p.kc, p.hd, b.dv, b.ld);
}
