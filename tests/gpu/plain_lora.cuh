/* plain_lora.cuh - adapters in products of their own, beside the base's, as PEFT has them:
 * read x again for S, add to y; read dy again for dS, dB; add to dx. Included by plain.cu. */
#ifndef TESTS_GPU_PLAIN_LORA_CUH
#define TESTS_GPU_PLAIN_LORA_CUH

#include "plain_map.cuh"

namespace
{
/* float32 (rows, cols) at ldf times `by`, in the compute type, dense. */
template <class T>
__global__ void cast_rows(T *to, const float *from, int64_t ldf, int cols, float by)
{
    const int64_t row = blockIdx.x;

    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        to[row * cols + c] = fromf<T>(by * from[row * ldf + c]);
}

template <class T>
T *cast(kn_ctx *ctx, int which, const float *from, int64_t ldf, int64_t rows, int64_t cols,
        float by, int *r)
{
    T *to = take<T>(which, rows * cols, r);

    if (!*r && rows > 0)
        LAUNCH(cast_rows<T>, (unsigned)rows, PLAIN_THREADS, 0, ctx->stream, to, from, ldf,
               (int)cols, by);
    return to;
}

char *at(const kn_mat &m, int64_t column)
{
    return (char *)m.p + column * (int64_t)cuda_size(m.dtype);
}

/* d (m, n) = a op(b) + beta d, in row-major terms (cuda.cuh). */
struct factor {
    const void *p;
    int64_t ld;
    bool turned; /* a: (k, m); b: (n, k) */
};
int multiply(kn_ctx *ctx, kn_dtype ab, int64_t m, int64_t n, int64_t k, factor a, factor b, void *d,
             int64_t ldd, kn_dtype cd, bool add)
{
    cuda_gemm g = {};

    g.m = m;
    g.n = n;
    g.k = k;
    g.a = a.p;
    g.lda = a.ld;
    g.a_is_k_m = a.turned;
    g.b = b.p;
    g.ldb = b.ld;
    g.b_rows_are_n = b.turned;
    g.ab = ab;
    g.d = d;
    g.ldd = ldd;
    g.cd = cd;
    g.alpha = 1.0f;
    g.beta = add ? 1.0f : 0.0f;
    return cuda_gemm_run(ctx, &g);
}

bool one_adapter(const kn_lora_seg *segs, int n, int64_t rows, const kn_dropout *drop)
{
    return n == 0 || (n == 1 && segs[0].row0 == 0 && segs[0].rows == rows && drop->p == 0.0f);
}

template <class T> int lora_fwd(kn_ctx *ctx, const kn_linear_fwd *a, const kn_weight *w)
{
    const kn_dtype t = w->compute;
    const int64_t m = a->x.rows;
    cuda_gemm g = {};
    int64_t s0 = 0, n0 = 0;

    g.m = m;
    g.n = w->n;
    g.k = w->k;
    g.a = a->x.p;
    g.lda = a->x.ld;
    g.b = w->p;
    g.ldb = w->ld;
    g.b_rows_are_n = true;
    g.ab = t;
    g.d = a->y.p;
    g.ldd = a->y.ld;
    g.cd = a->y.dtype;
    g.alpha = 1.0f;
    if (a->residual) {
        g.c = a->residual->p;
        g.ldc = a->residual->ld;
        g.beta = 1.0f;
    }
    int r = cuda_gemm_run(ctx, &g);
    for (int i = 0; i < w->n_parts && a->n_segs && !r; n0 += w->part_n[i++]) {
        const kn_lora *l = &a->segs[0].parts[i];
        float *s = a->s + s0;
        if (l->r == 0)
            continue;
        const T *la = cast<T>(ctx, 0, l->a, w->k, l->r, w->k, 1.0f, &r);
        const T *lb = cast<T>(ctx, 1, l->b, l->r, w->part_n[i], l->r, 1.0f, &r);
        if (!r)
            r = multiply(ctx, t, m, l->r, w->k, {a->x.p, a->x.ld}, {la, w->k, true}, s, a->s_cols,
                         KN_F32, false);
        const T *ss = cast<T>(ctx, 2, s, a->s_cols, m, l->r, l->scale, &r);
        if (!r)
            r = multiply(ctx, t, m, w->part_n[i], l->r, {ss, l->r}, {lb, l->r, true}, at(a->y, n0),
                         a->y.ld, a->y.dtype, true);
        s0 += l->r;
    }
    return r ? r : cuda_launched();
}

/* One part: its share of dx, dA and dB. */
template <class T>
int lora_part_bwd(kn_ctx *ctx, const kn_linear_bwd *a, const kn_weight *w, int i, int64_t n0,
                  int64_t s0)
{
    const kn_lora *l = &a->segs[0].parts[i];
    const kn_dtype t = w->compute;
    const int64_t m = a->dy.rows, n = w->part_n[i];
    const factor dy = {at(a->dy, n0), a->dy.ld}, dy_t = {dy.p, dy.ld, true};
    int r = 0;
    const T *la = cast<T>(ctx, 0, l->a, w->k, l->r, w->k, 1.0f, &r);
    const T *lb = cast<T>(ctx, 1, l->b, l->r, n, l->r, 1.0f, &r);

    if (!r)
        r = multiply(ctx, t, m, l->r, n, dy, {lb, l->r}, a->ds + s0, a->s_cols, KN_F32, false);
    const T *ds = cast<T>(ctx, 2, a->ds + s0, a->s_cols, m, l->r, l->scale, &r);
    const T *s = cast<T>(ctx, 3, a->s + s0, a->s_cols, m, l->r, l->scale, &r);
    if (!r && a->dx.p)
        r = multiply(ctx, t, m, w->k, l->r, {ds, l->r}, {la, w->k}, a->dx.p, a->dx.ld, a->dx.dtype,
                     true);
    if (!r && l->da)
        r = multiply(ctx, t, l->r, w->k, m, {ds, l->r, true}, {a->x.p, a->x.ld}, l->da, w->k,
                     KN_F32, true);
    if (!r && l->db)
        r = multiply(ctx, t, n, l->r, m, dy_t, {s, l->r}, l->db, l->r, KN_F32, true);
    return r;
}

template <class T> int lora_bwd(kn_ctx *ctx, const kn_linear_bwd *a, const kn_weight *w)
{
    int64_t s0 = 0, n0 = 0;
    int r = 0;

    if (a->dx.p)
        r = multiply(ctx, w->compute, a->dy.rows, w->k, w->n, {a->dy.p, a->dy.ld}, {w->p, w->ld},
                     a->dx.p, a->dx.ld, a->dx.dtype, a->add_dx);
    for (int i = 0; i < w->n_parts && a->n_segs && !r; n0 += w->part_n[i++]) {
        if (a->segs[0].parts[i].r == 0)
            continue;
        r = lora_part_bwd<T>(ctx, a, w, i, n0, s0);
        s0 += a->segs[0].parts[i].r;
    }
    return r ? r : cuda_launched();
}

template <class A, class F> int with_weight(kn_ctx *ctx, const A *a, F run)
{
    kn_weight ready;
    int r = cuda_weight_take(ctx, a->w, &ready), given;

    if (r)
        return r;
    r = run(&ready);
    given = cuda_weight_give(ctx, a->w);
    return r ? r : given;
}
} // namespace

#endif
