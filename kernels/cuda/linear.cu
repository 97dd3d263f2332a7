/* linear.cu - base and adapters in one product, by extending K.
 *
 *   forward   S = drop(x) A^T;   y  = [x | scale S | 1] [W | B | bias]^T + residual
 *   backward  dS = scale dy B;   dx = [dy | dS] [W ; A]
 *             dA += dS^T drop(x);   dB += dy^T (scale S)
 *
 * B lies in the trailing columns of W's buffer, A in its trailing rows, block by
 * block when several parts are stacked. The extension has a fixed width per
 * weight: with the adapter off its columns are zero and the product is the same,
 * so the bits are those of B = 0. With dropout, S and dA see their own masked
 * copy of x, and dx's adapter part is masked and added in float32. */
#include "cuda.cuh"

enum { THREADS = 256 };

struct lora_at { /* the adapter of one row range, by part */
    int n_parts;
    int r[KN_PARTS_MAX];
    int64_t first[KN_PARTS_MAX + 1]; /* columns of s                               */
    int64_t n0[KN_PARTS_MAX + 1];    /* rows of W                                  */
    const float *a[KN_PARTS_MAX], *b[KN_PARTS_MAX];
    float *da[KN_PARTS_MAX], *db[KN_PARTS_MAX];
    float scale[KN_PARTS_MAX];
};

__device__ static inline int part_of_column(const lora_at &l, int64_t col)
{
    for (int i = 0; i < l.n_parts; i++) {
        if (col >= l.first[i] && col < l.first[i] + l.r[i])
            return i;
    }
    return -1;
}

/* B and the bias into columns [k_pad, k_pad + ext) of W: a block per row. */
template <class T>
__global__ void put_b(T *w, int64_t ld, int64_t k, int64_t ext, lora_at l, const float *bias)
{
    const int64_t n = blockIdx.x;

    for (int64_t c = threadIdx.x; c < ext; c += blockDim.x) {
        const int i = part_of_column(l, c);
        float v = 0.0f;
        if (i >= 0 && n >= l.n0[i] && n < l.n0[i + 1])
            v = l.b[i][(n - l.n0[i]) * l.r[i] + (c - l.first[i])];
        else if (bias && c == l.first[l.n_parts])
            v = bias[n];
        w[n * ld + k + c] = fromf<T>(v);
    }
}

/* A into rows [0, ext) of `rows`, zero where there is none: a block per row. */
template <class T> __global__ void put_a(T *rows, int64_t ld, int64_t k, lora_at l)
{
    const int64_t j = blockIdx.x;
    const int i = part_of_column(l, j);

    for (int64_t c = threadIdx.x; c < k; c += blockDim.x)
        rows[j * ld + c] = fromf<T>(i >= 0 ? l.a[i][(j - l.first[i]) * k + c] : 0.0f);
}

/* Behind each row of x: scale * s, then 1 where a bias is, then zeros. s NULL: no
 * adapter. ds: scale is applied to s itself as well (the backward's dS). */
template <class T>
__global__ void put_s(T *ext_cols, int64_t ld, int64_t ext, float *s, int64_t s_cols, lora_at l,
                      bool bias, bool in_place)
{
    const int64_t m = blockIdx.x;

    for (int64_t c = threadIdx.x; c < ext; c += blockDim.x) {
        const int i = s ? part_of_column(l, c) : -1;
        float v = 0.0f;
        if (i >= 0) {
            v = l.scale[i] * s[m * s_cols + c];
            if (in_place)
                s[m * s_cols + c] = v;
        } else if (bias && c == l.first[l.n_parts]) {
            v = 1.0f;
        }
        ext_cols[m * ld + c] = fromf<T>(v);
    }
}

template <class T>
__global__ void copy_rows(T *to, int64_t ldt, const T *from, int64_t ldf, int64_t cols)
{
    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x)
        to[(int64_t)blockIdx.x * ldt + c] = from[(int64_t)blockIdx.x * ldf + c];
}

#include "../philox.h"

template <class T>
__global__ void drop_rows(T *to, int64_t ldt, const T *from, int64_t ldf, int64_t cols,
                          kn_dropout drop, int part)
{
    const int64_t m = blockIdx.x;

    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x)
        to[m * ldt + c] =
            fromf<T>(tof(from[m * ldf + c]) * kn_drop_factor(&drop, part, drop.row_key[m], c));
}

__global__ void add_masked(float *to, const float *from, int64_t cols, kn_dropout drop, int part)
{
    const int64_t m = blockIdx.x;

    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x)
        to[m * cols + c] += from[m * cols + c] * kn_drop_factor(&drop, part, drop.row_key[m], c);
}

template <class T>
__global__ void put_sum(T *dx, int64_t ld, bool add, const float *sum, int64_t cols)
{
    const int64_t m = blockIdx.x;

    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) {
        const float v = sum[m * cols + c];
        dx[m * ld + c] = fromf<T>(add ? tof(dx[m * ld + c]) + v : v);
    }
}

/* to (rows, cols) dense += from: the gradient of one part. */
__global__ void add_block(float *to, const float *from, int64_t ldf, int64_t cols)
{
    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x)
        to[(int64_t)blockIdx.x * cols + c] += from[(int64_t)blockIdx.x * ldf + c];
}

namespace
{
char *at(void *p, int64_t elements, kn_dtype t)
{
    return (char *)p + elements * (int64_t)cuda_size(t);
}

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

/* Writes the extension of W for one row range. */
template <class T>
int extend_weight(kn_ctx *ctx, const kn_weight *w, const lora_at &l, const float *bias)
{
    const int64_t kp = cuda_round(w->k);

    LAUNCH(put_b<T>, (unsigned)w->n, 64, 0, ctx->stream, (T *)w->p, w->ld, kp, w->ext, l, bias);
    LAUNCH(put_a<T>, (unsigned)w->ext, THREADS, 0, ctx->stream, (T *)w->p + w->n * w->ld, w->ld,
           w->k, l);
    return cuda_launched();
}

/* x with room for `ext` columns at column kp: x itself, or a copy. */
template <class T>
int with_room(kn_ctx *ctx, cuda_buffer *scratch, const kn_mat *x, int64_t room, int64_t row0,
              int64_t rows, int64_t kp, int64_t ext, T **ret, int64_t *ret_ld)
{
    const int64_t ld = kp + ext;
    int r;

    *ret = (T *)x->p + row0 * x->ld;
    *ret_ld = x->ld;
    if (x->cols + room >= ld && x->ld >= ld)
        return 0;
    r = cuda_reserve(scratch, (size_t)(rows * ld) * sizeof(T));
    if (r)
        return r;
    /* Columns [cols, kp) are padding: zero, as in x. */
    cudaMemsetAsync(scratch->p, 0, (size_t)(rows * ld) * sizeof(T), ctx->stream);
    LAUNCH(copy_rows<T>, (unsigned)rows, THREADS, 0, ctx->stream, (T *)scratch->p, ld,
           (const T *)*ret, x->ld, x->cols);
    *ret = (T *)scratch->p;
    *ret_ld = ld;
    return cuda_launched();
}

/* S (float32) of rows [row0, +rows): one product, or one per part under dropout. */
template <class T>
int find_s(kn_ctx *ctx, const kn_linear_fwd *a, const lora_at &l, const T *x, int64_t ldx,
           int64_t row0, int64_t rows)
{
    const kn_weight *w = a->w;
    float *s = a->s + row0 * a->s_cols;
    cuda_gemm g = {};
    int r = 0;

    g.m = rows;
    g.k = w->k;
    g.ldb = w->ld;
    g.b_rows_are_n = true;
    g.ab = w->compute;
    g.cd = KN_F32;
    g.ldd = a->s_cols;
    g.alpha = 1.0f;
    if (a->dropout.p == 0.0f) {
        g.n = l.first[l.n_parts];
        g.a = x;
        g.lda = ldx;
        g.b = at(w->p, w->n * w->ld, w->compute);
        g.d = s;
        return cuda_gemm_run(ctx, &g);
    }
    kn_dropout drop = a->dropout;
    drop.row_key += row0;
    r = cuda_reserve(&ctx->dy_ext, (size_t)(rows * cuda_round(w->k)) * sizeof(T));
    for (int i = 0; i < l.n_parts && r == 0; i++) {
        if (l.r[i] == 0)
            continue;
        LAUNCH(drop_rows<T>, (unsigned)rows, THREADS, 0, ctx->stream, (T *)ctx->dy_ext.p,
               cuda_round(w->k), x, ldx, w->k, drop, i);
        g.n = l.r[i];
        g.a = ctx->dy_ext.p;
        g.lda = cuda_round(w->k);
        g.b = at(w->p, (w->n + l.first[i]) * w->ld, w->compute);
        g.d = s + l.first[i];
        r = cuda_gemm_run(ctx, &g);
    }
    return r;
}

template <class T>
int forward_rows(kn_ctx *ctx, const kn_linear_fwd *a, const kn_lora *parts, const int64_t *first,
                 int64_t row0, int64_t rows)
{
    const kn_weight *w = a->w;
    const lora_at l = lora_of(w, parts, first);
    const int64_t kp = cuda_round(w->k);
    float *s = a->s ? a->s + row0 * a->s_cols : NULL;
    cuda_gemm g = {};
    int64_t ldx;
    T *x;
    int r;

    if (rows == 0)
        return 0;
    r = extend_weight<T>(ctx, w, l, a->bias);
    if (!r)
        r = with_room<T>(ctx, &ctx->x_ext, &a->x, a->x_room, row0, rows, kp, w->ext, &x, &ldx);
    if (!r && a->n_segs > 0 && s)
        r = cuda_error(cudaMemsetAsync(s, 0, (size_t)(rows * a->s_cols) * 4, ctx->stream));
    if (!r && parts)
        r = find_s<T>(ctx, a, l, x, ldx, row0, rows);
    if (r)
        return r;
    LAUNCH(put_s<T>, (unsigned)rows, 64, 0, ctx->stream, x + kp, ldx, w->ext, parts ? s : NULL,
           a->s_cols, l, a->bias != NULL, false);
    g.m = rows;
    g.n = w->n;
    g.k = kp + w->ext;
    g.a = x;
    g.lda = ldx;
    g.b = w->p;
    g.ldb = w->ld;
    g.b_rows_are_n = true;
    g.ab = w->compute;
    g.d = at(a->y.p, row0 * a->y.ld, a->y.dtype);
    g.ldd = a->y.ld;
    g.cd = a->y.dtype;
    g.alpha = 1.0f;
    if (a->residual) {
        g.c = at(a->residual->p, row0 * a->residual->ld, a->residual->dtype);
        g.ldc = a->residual->ld;
        g.beta = 1.0f;
    }
    r = cuda_launched();
    return r ? r : cuda_gemm_run(ctx, &g);
}

/* dA and dB of one row range. dy: (rows, N) with dS as T behind column np. */
template <class T>
int gradients(kn_ctx *ctx, const kn_linear_bwd *a, const lora_at &l, const T *dy, int64_t lddy,
              int64_t np, int64_t row0, int64_t rows)
{
    const kn_weight *w = a->w;
    const int64_t total = l.first[l.n_parts], kp = cuda_round(w->k);
    const T *x = (const T *)a->x.p + row0 * a->x.ld;
    const bool dropping = a->dropout.p > 0.0f;
    const size_t grad_bytes = (size_t)(total * w->k + w->n * total) * 4;
    cuda_gemm g = {};
    int r = cuda_reserve(&ctx->grad, grad_bytes);

    /* scale * S as T, in the x scratch; behind it the masked copy of x */
    if (!r)
        r = cuda_reserve(&ctx->x_ext, (size_t)(rows * (w->ext + (dropping ? kp : 0))) * sizeof(T));
    if (r)
        return r;
    T *s = (T *)ctx->x_ext.p, *masked = s + rows * w->ext;
    float *da = (float *)ctx->grad.p, *db = da + total * w->k;
    LAUNCH(put_s<T>, (unsigned)rows, 64, 0, ctx->stream, s, w->ext, w->ext,
           (float *)a->s + row0 * a->s_cols, a->s_cols, l, false, false);
    g.ab = w->compute;
    g.cd = KN_F32;
    g.alpha = 1.0f;
    g.k = rows;
    g.a_is_k_m = true;
    /* dB (N, total) = dy^T (scale S); off-diagonal blocks are computed and ignored */
    g.m = w->n;
    g.n = total;
    g.a = dy;
    g.lda = lddy;
    g.b = s;
    g.ldb = w->ext;
    g.d = db;
    g.ldd = total;
    r = cuda_gemm_run(ctx, &g);
    for (int i = 0; i < l.n_parts && r == 0; i++) {
        if (l.r[i] == 0)
            continue;
        if (l.db[i])
            LAUNCH(add_block, (unsigned)w->part_n[i], 64, 0, ctx->stream, l.db[i],
                   db + l.n0[i] * total + l.first[i], total, l.r[i]);
        const T *xi = x;
        int64_t ldxi = a->x.ld;
        if (dropping) {
            kn_dropout drop = a->dropout;
            drop.row_key += row0;
            LAUNCH(drop_rows<T>, (unsigned)rows, THREADS, 0, ctx->stream, masked, kp, x, a->x.ld,
                   w->k, drop, i);
            xi = masked;
            ldxi = kp;
        }
        g.m = l.r[i];
        g.n = w->k;
        g.a = dy + np + l.first[i];
        g.lda = lddy;
        g.b = xi;
        g.ldb = ldxi;
        g.d = da + l.first[i] * w->k;
        g.ldd = w->k;
        r = l.da[i] ? cuda_gemm_run(ctx, &g) : 0;
        if (!r && l.da[i])
            LAUNCH(add_block, (unsigned)l.r[i], THREADS, 0, ctx->stream, l.da[i],
                   da + l.first[i] * w->k, w->k, w->k);
    }
    return r ? r : cuda_launched();
}

/* dx under dropout: the adapter's share is masked part by part, in float32. */
template <class T>
int masked_dx(kn_ctx *ctx, const kn_linear_bwd *a, const lora_at &l, const T *dy, int64_t lddy,
              int64_t np, int64_t row0, int64_t rows)
{
    const kn_weight *w = a->w;
    cuda_gemm g = {};
    int r = cuda_reserve(&ctx->grad, (size_t)(2 * rows * w->k) * 4);

    if (r)
        return r;
    float *sum = (float *)ctx->grad.p, *share = sum + rows * w->k;
    g.m = rows;
    g.n = w->k;
    g.lda = lddy;
    g.ldb = w->ld;
    g.ab = w->compute;
    g.cd = KN_F32;
    g.ldd = w->k;
    g.alpha = 1.0f;
    g.k = w->n;
    g.a = dy;
    g.b = w->p;
    g.d = sum;
    r = cuda_gemm_run(ctx, &g);
    for (int i = 0; i < l.n_parts && r == 0; i++) {
        kn_dropout drop = a->dropout;
        if (l.r[i] == 0)
            continue;
        drop.row_key += row0;
        g.k = l.r[i];
        g.a = dy + np + l.first[i];
        g.b = at(w->p, (w->n + l.first[i]) * w->ld, w->compute);
        g.d = share;
        r = cuda_gemm_run(ctx, &g);
        LAUNCH(add_masked, (unsigned)rows, THREADS, 0, ctx->stream, sum, (const float *)share, w->k,
               drop, i);
    }
    if (r)
        return r;
    if (a->dx.dtype == KN_F32)
        LAUNCH(put_sum<float>, (unsigned)rows, THREADS, 0, ctx->stream,
               (float *)a->dx.p + row0 * a->dx.ld, a->dx.ld, a->add_dx, (const float *)sum, w->k);
    else
        LAUNCH(put_sum<bf16_t>, (unsigned)rows, THREADS, 0, ctx->stream,
               (bf16_t *)a->dx.p + row0 * a->dx.ld, a->dx.ld, a->add_dx, (const float *)sum, w->k);
    return cuda_launched();
}

template <class T>
int backward_rows(kn_ctx *ctx, const kn_linear_bwd *a, const kn_lora *parts, const int64_t *first,
                  int64_t row0, int64_t rows)
{
    const kn_weight *w = a->w;
    const lora_at l = lora_of(w, parts, first);
    float *ds = a->ds ? a->ds + row0 * a->s_cols : NULL;
    cuda_gemm g = {};
    int64_t lddy;
    T *dy;
    int r;

    if (rows == 0)
        return 0;
    /* [W ; A] must be adjacent rows, so dS stands right behind dy's N columns. */
    r = extend_weight<T>(ctx, w, l, NULL);
    if (!r)
        r = with_room<T>(ctx, &ctx->dy_ext, &a->dy, a->dy_room, row0, rows, w->n, w->ext, &dy,
                         &lddy);
    if (r)
        return r;
    g.m = rows;
    g.lda = lddy;
    g.a = dy;
    g.ldb = w->ld;
    g.ab = w->compute;
    g.alpha = 1.0f;
    if (parts && l.first[l.n_parts] > 0) {
        g.n = l.first[l.n_parts];
        g.k = w->n;
        g.b = at(w->p, cuda_round(w->k), w->compute);
        g.d = ds;
        g.ldd = a->s_cols;
        g.cd = KN_F32;
        r = cuda_gemm_run(ctx, &g);
        if (r)
            return r;
    }
    LAUNCH(put_s<T>, (unsigned)rows, 64, 0, ctx->stream, dy + w->n, lddy, w->ext, parts ? ds : NULL,
           a->s_cols, l, false, true);
    r = cuda_launched();
    if (!r && a->dx.p && parts && a->dropout.p > 0.0f) {
        r = masked_dx<T>(ctx, a, l, dy, lddy, w->n, row0, rows);
    } else if (!r && a->dx.p) {
        g.n = w->k;
        g.k = w->n + w->ext;
        g.b = w->p;
        g.d = at(a->dx.p, row0 * a->dx.ld, a->dx.dtype);
        g.ldd = a->dx.ld;
        g.cd = a->dx.dtype;
        g.beta = a->add_dx ? 1.0f : 0.0f;
        r = cuda_gemm_run(ctx, &g);
    }
    if (!r && parts && l.first[l.n_parts] > 0)
        r = gradients<T>(ctx, a, l, dy, lddy, w->n, row0, rows);
    return r;
}

/* Every row once: segments with their adapter, what lies between with none. */
template <class F> int each_range(const kn_lora_seg *segs, int n_segs, int64_t rows, F run)
{
    int64_t at_row = 0;
    int r = 0;

    for (int i = 0; i < n_segs && r == 0; i++) {
        r = run((const kn_lora *)NULL, at_row, segs[i].row0 - at_row);
        if (!r)
            r = run(segs[i].parts, segs[i].row0, segs[i].rows);
        at_row = segs[i].row0 + segs[i].rows;
    }
    return r ? r : run((const kn_lora *)NULL, at_row, rows - at_row);
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
        return each_range(a->segs, a->n_segs, a->x.rows,
                          [&](const kn_lora *parts, int64_t row0, int64_t rows) {
                              return w->compute == KN_BF16
                                         ? forward_rows<bf16_t>(ctx, f, parts, first, row0, rows)
                                         : forward_rows<float>(ctx, f, parts, first, row0, rows);
                          });
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
        return each_range(a->segs, a->n_segs, a->dy.rows,
                          [&](const kn_lora *parts, int64_t row0, int64_t rows) {
                              return w->compute == KN_BF16
                                         ? backward_rows<bf16_t>(ctx, b, parts, first, row0, rows)
                                         : backward_rows<float>(ctx, b, parts, first, row0, rows);
                          });
    });
}
