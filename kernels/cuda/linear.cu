/* linear.cu - base and adapters in one product, by extending K.
 *
 *   forward   S = drop(x) A^T;   y  = [x | scale S | 1] [W | B | bias]^T + residual
 *   backward  dS = scale dy B;   dx = [dy | dS] [W ; A]
 *             dA += dS^T drop(x);   dB += dy^T (scale S)
 *
 * B lies in the trailing columns of W's buffer, A in its trailing rows, block by
 * block when several parts are stacked. The extension has a fixed width per
 * weight: with the adapter off its columns are zero and the product is the same,
 * so the bits are those of B = 0. A bias stands in the last column, wherever the
 * adapters end: its place in K decides what it is summed up with first. With
 * dropout, S and dA see their own masked copy of x, and dx's adapter part is masked
 * and added in float32. */
#include "lora.cuh"

namespace
{
lora_at lora_of(const kn_weight *w, const kn_lora *parts, const int64_t *first)
{
    lora_at l = {};

    l.n_parts = w->n_parts;
    for (int i = 0; i < w->n_parts; i++) {
        l.first[i + 1] = first[i + 1];
        l.n0[i + 1] = l.n0[i] + w->part_n[i];
        if (!parts)
            continue;
        l.r[i] = parts[i].r;
        l.a[i] = parts[i].a;
        l.b[i] = parts[i].b;
        l.da[i] = parts[i].da;
        l.db[i] = parts[i].db;
        l.scale[i] = parts[i].scale;
    }
    return l;
}

/* One row range of a call: what of its operands belongs to it. */
struct range {
    int64_t row0, rows;
    lora_at l;
    bool on; /* there is an adapter */
    int64_t cols() const { return l.first[l.n_parts]; }
};

lora_rows rows_from(const kn_mat &m, int64_t row0)
{
    return {lora_offset(m.p, row0 * m.ld, m.dtype), m.ld, m.dtype};
}

lora_rows behind(const lora_rows &m, int64_t col)
{
    return {lora_offset(m.p, col, m.t), m.ld, m.t};
}

/* Element `i` of W's buffer. */
char *weight_at(const kn_weight *w, int64_t i)
{
    return lora_offset(w->p, i, w->compute);
}

/* W's rows that hold A of part i and what follows it. */
char *a_rows(const kn_weight *w, const lora_at &l, int part)
{
    return weight_at(w, (w->n + l.first[part]) * w->ld);
}

kn_dropout drop_from(const kn_dropout &drop, int64_t row0)
{
    kn_dropout d = drop;

    d.row_key += row0;
    return d;
}

/* m with room for `ext` columns at column kp: its rows themselves, or a copy. */
int with_room(kn_ctx *ctx, cuda_buffer *scratch, const kn_mat *m, int64_t room, const range &at,
              int64_t kp, int64_t ext, lora_rows *ret)
{
    const int64_t ld = kp + ext;
    const size_t bytes = (size_t)(at.rows * ld) * cuda_size(m->dtype);
    int r;

    *ret = rows_from(*m, at.row0);
    if (m->cols + room >= ld && m->ld >= ld)
        return 0;
    r = cuda_reserve(scratch, bytes);
    if (r)
        return r;
    /* Columns [cols, kp) are padding: zero, as in m. */
    cudaMemsetAsync(scratch->p, 0, bytes, ctx->stream);
    const lora_rows to = {scratch->p, ld, m->dtype};
    r = lora_copy(ctx, to, *ret, at.rows, m->cols);
    *ret = to;
    return r;
}

/* S (float32) of a range: one product, or one per part under dropout. */
int find_s(kn_ctx *ctx, const kn_linear_fwd *a, const range &at, const lora_rows &x)
{
    const kn_weight *w = a->w;
    float *s = a->s + at.row0 * a->s_cols;
    const lora_at &l = at.l;
    cuda_gemm g = {};
    int r = 0;

    g.m = at.rows;
    g.k = w->k;
    g.ldb = w->ld;
    g.b_rows_are_n = true;
    g.ab = w->compute;
    g.cd = KN_F32;
    g.ldd = a->s_cols;
    g.alpha = 1.0f;
    if (a->dropout.p == 0.0f) {
        g.n = at.cols();
        g.a = x.p;
        g.lda = x.ld;
        g.b = a_rows(w, l, 0);
        g.d = s;
        return cuda_gemm_run(ctx, &g);
    }
    const int64_t kp = cuda_round(w->k);
    r = cuda_reserve(&ctx->dy_ext, (size_t)(at.rows * kp) * cuda_size(w->compute));
    for (int i = 0; i < l.n_parts && r == 0; i++) {
        if (l.r[i] == 0)
            continue;
        g.n = l.r[i];
        g.a = ctx->dy_ext.p;
        g.lda = kp;
        g.b = a_rows(w, l, i);
        g.d = s + l.first[i];
        r = lora_drop(ctx, {ctx->dy_ext.p, kp, w->compute}, x, at.rows, w->k,
                      drop_from(a->dropout, at.row0), i);
        if (!r)
            r = cuda_gemm_run(ctx, &g);
    }
    return r;
}

int forward_rows(kn_ctx *ctx, const kn_linear_fwd *a, const range &at)
{
    const kn_weight *w = a->w;
    const int64_t kp = cuda_round(w->k);
    float *s = a->s ? a->s + at.row0 * a->s_cols : NULL;
    cuda_gemm g = {};
    lora_rows x;
    int r;

    if (at.rows == 0)
        return 0;
    r = lora_put_weight(ctx, w, at.l, a->bias);
    if (!r)
        r = with_room(ctx, &ctx->x_ext, &a->x, a->x_room, at, kp, w->ext, &x);
    if (!r && a->n_segs > 0 && s)
        r = cuda_error(cudaMemsetAsync(s, 0, (size_t)(at.rows * a->s_cols) * 4, ctx->stream));
    if (!r && at.on)
        r = find_s(ctx, a, at, x);
    if (!r)
        r = lora_put_s(ctx, behind(x, kp), at.rows, w->ext, at.on ? s : NULL, a->s_cols, at.l,
                       a->bias != NULL, false);
    if (r)
        return r;
    g.m = at.rows;
    g.n = w->n;
    g.k = kp + w->ext;
    g.a = x.p;
    g.lda = x.ld;
    g.b = w->p;
    g.ldb = w->ld;
    g.b_rows_are_n = true;
    g.ab = w->compute;
    g.d = rows_from(a->y, at.row0).p;
    g.ldd = a->y.ld;
    g.cd = a->y.dtype;
    g.alpha = 1.0f;
    if (a->residual) {
        g.c = rows_from(*a->residual, at.row0).p;
        g.ldc = a->residual->ld;
        g.beta = 1.0f;
    }
    return cuda_gemm_run(ctx, &g);
}

/* The operands of dA and dB of a range. */
struct grad_of {
    lora_rows dy, x, s; /* dy: with dS behind column N; s: scale * S */
    lora_rows masked;   /* under dropout: room for an x; else p NULL */
};

/* x as part i's A sees it. */
int part_x(kn_ctx *ctx, const kn_linear_bwd *a, const range &at, const grad_of &of, int i,
           lora_rows *ret)
{
    *ret = of.masked.p ? of.masked : of.x;
    return of.masked.p ? lora_drop(ctx, of.masked, of.x, at.rows, a->w->k,
                                   drop_from(a->dropout, at.row0), i)
                       : 0;
}

/* bf16 on tensor cores, every sum in strips. */
int gradients_mma(kn_ctx *ctx, const kn_linear_bwd *a, const range &at, const grad_of &of)
{
    const kn_weight *w = a->w;
    const lora_rows ds = behind(of.dy, w->n);
    int r = lora_grad_begin(ctx, w, at.l, at.rows);

    if (!r)
        r = lora_grad_b(ctx, w, at.l, of.s, of.dy, at.rows);
    if (!r && !of.masked.p)
        r = lora_grad_a(ctx, w, at.l, -1, ds, of.x, at.rows);
    for (int i = 0; i < at.l.n_parts && r == 0 && of.masked.p; i++) {
        lora_rows x;
        if (at.l.r[i] == 0)
            continue;
        r = part_x(ctx, a, at, of, i, &x);
        if (!r)
            r = lora_grad_a(ctx, w, at.l, i, ds, x, at.rows);
    }
    return r ? r : lora_grad_end(ctx, w, at.l, at.rows);
}

/* float32, and what is not aligned: the library's products. */
int gradients_gemm(kn_ctx *ctx, const kn_linear_bwd *a, const range &at, const grad_of &of)
{
    const kn_weight *w = a->w;
    const lora_at &l = at.l;
    const int64_t total = at.cols();
    cuda_gemm g = {};
    int r = cuda_reserve(&ctx->grad, (size_t)(total * w->k + w->n * total) * 4);

    if (r)
        return r;
    float *da = (float *)ctx->grad.p, *db = da + total * w->k;
    g.ab = w->compute;
    g.cd = KN_F32;
    g.alpha = 1.0f;
    g.k = at.rows;
    g.a_is_k_m = true;
    /* dB (N, total) = dy^T (scale S); off-diagonal blocks are computed and ignored */
    g.m = w->n;
    g.n = total;
    g.a = of.dy.p;
    g.lda = of.dy.ld;
    g.b = of.s.p;
    g.ldb = of.s.ld;
    g.d = db;
    g.ldd = total;
    r = cuda_gemm_run(ctx, &g);
    for (int i = 0; i < l.n_parts && r == 0; i++) {
        lora_rows x;
        if (l.r[i] == 0)
            continue;
        if (l.db[i])
            r = lora_add_block(ctx, l.db[i], db + l.n0[i] * total + l.first[i], total, w->part_n[i],
                               l.r[i]);
        if (!r && l.da[i])
            r = part_x(ctx, a, at, of, i, &x);
        if (r || !l.da[i])
            continue;
        g.m = l.r[i];
        g.n = w->k;
        g.a = behind(of.dy, w->n + l.first[i]).p;
        g.b = x.p;
        g.ldb = x.ld;
        g.d = da + l.first[i] * w->k;
        g.ldd = w->k;
        r = cuda_gemm_run(ctx, &g);
        if (!r)
            r = lora_add_block(ctx, l.da[i], da + l.first[i] * w->k, w->k, l.r[i], w->k);
    }
    return r;
}

/* dA and dB of a range. dy: (rows, N) with dS behind column N. */
int gradients(kn_ctx *ctx, const kn_linear_bwd *a, const range &at, const lora_rows &dy)
{
    const kn_weight *w = a->w;
    const bool dropping = a->dropout.p > 0.0f;
    const int64_t kp = cuda_round(w->k), elements = at.rows * (w->ext + (dropping ? kp : 0));
    int r = cuda_reserve(&ctx->x_ext, (size_t)elements * cuda_size(w->compute));

    if (r)
        return r;
    grad_of of = {dy, rows_from(a->x, at.row0), {ctx->x_ext.p, w->ext, w->compute}, {}};
    if (dropping)
        of.masked = {lora_offset(ctx->x_ext.p, at.rows * w->ext, w->compute), kp, w->compute};
    r = lora_put_s(ctx, of.s, at.rows, w->ext, (float *)a->s + at.row0 * a->s_cols, a->s_cols, at.l,
                   false, false);
    if (r)
        return r;
    return lora_grad_ok(w, dropping ? of.masked : of.x, dy) ? gradients_mma(ctx, a, at, of)
                                                            : gradients_gemm(ctx, a, at, of);
}

/* dx under dropout: the adapter's share is masked part by part, in float32. */
int masked_dx(kn_ctx *ctx, const kn_linear_bwd *a, const range &at, const lora_rows &dy)
{
    const kn_weight *w = a->w;
    const lora_at &l = at.l;
    cuda_gemm g = {};
    int r = cuda_reserve(&ctx->grad, (size_t)(2 * at.rows * w->k) * 4);

    if (r)
        return r;
    float *sum = (float *)ctx->grad.p, *share = sum + at.rows * w->k;
    g.m = at.rows;
    g.n = w->k;
    g.lda = dy.ld;
    g.ldb = w->ld;
    g.ab = w->compute;
    g.cd = KN_F32;
    g.ldd = w->k;
    g.alpha = 1.0f;
    g.k = w->n;
    g.a = dy.p;
    g.b = w->p;
    g.d = sum;
    r = cuda_gemm_run(ctx, &g);
    for (int i = 0; i < l.n_parts && r == 0; i++) {
        if (l.r[i] == 0)
            continue;
        g.k = l.r[i];
        g.a = behind(dy, w->n + l.first[i]).p;
        g.b = a_rows(w, l, i);
        g.d = share;
        r = cuda_gemm_run(ctx, &g);
        if (!r)
            r = lora_add_dropped(ctx, sum, share, at.rows, w->k, drop_from(a->dropout, at.row0), i);
    }
    return r ? r : lora_put_sum(ctx, rows_from(a->dx, at.row0), a->add_dx, sum, at.rows, w->k);
}

int backward_rows(kn_ctx *ctx, const kn_linear_bwd *a, const range &at)
{
    const kn_weight *w = a->w;
    const bool adapter = at.on && at.cols() > 0;
    float *ds = a->ds ? a->ds + at.row0 * a->s_cols : NULL;
    cuda_gemm g = {};
    lora_rows dy;
    int r;

    if (at.rows == 0)
        return 0;
    /* [W ; A] must be adjacent rows, so dS stands right behind dy's N columns. */
    r = lora_put_weight(ctx, w, at.l, NULL);
    if (!r)
        r = with_room(ctx, &ctx->dy_ext, &a->dy, a->dy_room, at, w->n, w->ext, &dy);
    if (r)
        return r;
    g.m = at.rows;
    g.lda = dy.ld;
    g.a = dy.p;
    g.ldb = w->ld;
    g.ab = w->compute;
    g.alpha = 1.0f;
    if (adapter) {
        g.n = at.cols();
        g.k = w->n;
        g.b = weight_at(w, cuda_round(w->k));
        g.d = ds;
        g.ldd = a->s_cols;
        g.cd = KN_F32;
        r = cuda_gemm_run(ctx, &g);
    }
    if (!r)
        r = lora_put_s(ctx, behind(dy, w->n), at.rows, w->ext, at.on ? ds : NULL, a->s_cols, at.l,
                       false, true);
    if (!r && a->dx.p && at.on && a->dropout.p > 0.0f) {
        r = masked_dx(ctx, a, at, dy);
    } else if (!r && a->dx.p) {
        g.n = w->k;
        g.k = w->n + w->ext;
        g.b = w->p;
        g.d = rows_from(a->dx, at.row0).p;
        g.ldd = a->dx.ld;
        g.cd = a->dx.dtype;
        g.beta = a->add_dx ? 1.0f : 0.0f;
        r = cuda_gemm_run(ctx, &g);
    }
    return r || !adapter ? r : gradients(ctx, a, at, dy);
}

/* Every row once: segments with their adapter, what lies between with none. */
template <class F>
int each_range(const kn_weight *w, const kn_lora_seg *segs, int n_segs, const int64_t *first,
               int64_t rows, F run)
{
    int64_t at_row = 0;
    int r = 0;

    for (int i = 0; i < n_segs && r == 0; i++) {
        r = run(range{at_row, segs[i].row0 - at_row, lora_of(w, NULL, first), false});
        if (!r)
            r = run(range{segs[i].row0, segs[i].rows, lora_of(w, segs[i].parts, first), true});
        at_row = segs[i].row0 + segs[i].rows;
    }
    return r ? r : run(range{at_row, rows - at_row, lora_of(w, NULL, first), false});
}

/* The call `a` with a weight that is ready for products. */
template <class A, class F> int with_weight(kn_ctx *ctx, A a, F run)
{
    const kn_weight *w = a.w;
    kn_weight ready;
    int r = cuda_weight_take(ctx, w, &ready), given;

    if (r)
        return r;
    a.w = &ready;
    r = run(&a);
    given = cuda_weight_give(ctx, w);
    return r ? r : given;
}
} // namespace

int cuda_linear_fwd(kn_ctx *ctx, const kn_linear_fwd *a)
{
    const kn_weight *w = a->w;
    int64_t first[KN_PARTS_MAX + 1];
    const int r = kn_check_linear_fwd(a, w->n, w->k, w->n_parts, w->compute);

    if (r)
        return r < 0 ? r : 0;
    kn_lora_columns(a->segs, a->n_segs, w->n_parts, first);
    if (first[w->n_parts] + (a->bias ? 1 : 0) > w->ext)
        return -EINVAL;
    return with_weight(ctx, *a, [&](const kn_linear_fwd *f) {
        return each_range(w, a->segs, a->n_segs, first, a->x.rows,
                          [&](const range &at) { return forward_rows(ctx, f, at); });
    });
}

int cuda_linear_bwd(kn_ctx *ctx, const kn_linear_bwd *a)
{
    const kn_weight *w = a->w;
    int64_t first[KN_PARTS_MAX + 1];
    const int r = kn_check_linear_bwd(a, w->n, w->k, w->n_parts, w->compute, w->no_backward);

    if (r)
        return r < 0 ? r : 0;
    kn_lora_columns(a->segs, a->n_segs, w->n_parts, first);
    if (first[w->n_parts] > w->ext)
        return -EINVAL;
    return with_weight(ctx, *a, [&](const kn_linear_bwd *b) {
        return each_range(w, a->segs, a->n_segs, first, a->dy.rows,
                          [&](const range &at) { return backward_rows(ctx, b, at); });
    });
}
