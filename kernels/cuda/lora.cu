/* lora.cu - the pointwise steps around the fused linear's products. Eight elements a
 * thread, 16 bytes an access, where rows begin at 16 bytes; one by one where they do
 * not: the same values. */
#include "lora.cuh"

#include "../philox.h"

#include <type_traits>

/* Extensions are multiples of KN_LD wide: a block takes ROWS rows, KN_LD columns at a time. */
enum { LORA_THREADS = 256, LANES = KN_LD / 8, ROWS = LORA_THREADS / LANES };

/* Eight floats of a row that ends at `left`; zero beyond. */
__device__ static inline void floats8(float v[8], const float *p, int64_t left)
{
    if (left >= 8 && (uintptr_t)p % 16 == 0) {
        const vec8<float> x = load8(p);
        for (int e = 0; e < 8; e++)
            v[e] = x.v[e];
        return;
    }
    for (int e = 0; e < 8; e++)
        v[e] = e < left ? p[e] : 0.0f;
}

/* The first `left` of eight elements. */
template <class T> __device__ static inline void put8(T *p, const float v[8], int64_t left)
{
    vec8<T> x;

    for (int e = 0; e < 8; e++)
        x.v[e] = fromf<T>(v[e]);
    if (left >= 8 && (uintptr_t)p % 16 == 0) {
        store8(p, x);
        return;
    }
    for (int e = 0; e < 8; e++) {
        if (e < left)
            p[e] = x.v[e];
    }
}

/* Eight columns of the extension of W's row n: B's, zeros, the bias. */
__device__ static inline void extension8(float v[8], const lora_at &l, int64_t n, int64_t c,
                                         int64_t ext, const float *bias)
{
    for (int e = 0; e < 8; e++)
        v[e] = 0.0f;
#pragma unroll
    for (int i = 0; i < KN_PARTS_MAX; i++) {
        if (i >= l.n_parts || n < l.n0[i] || n >= l.n0[i + 1] || c + 8 <= l.first[i] ||
            c >= l.first[i] + l.r[i])
            continue;
        const float *row = l.b[i] + (n - l.n0[i]) * l.r[i];
        if (c >= l.first[i]) {
            floats8(v, row + (c - l.first[i]), l.first[i] + l.r[i] - c);
            continue;
        }
        for (int e = 0; e < 8; e++) {
            const int64_t j = c + e - l.first[i];
            if (j >= 0 && j < l.r[i])
                v[e] = row[j];
        }
    }
    if (bias && c == ext - 8)
        v[7] = bias[n];
}

/* B and the bias into columns [k, k + ext) of W. */
template <class T>
__global__ void put_b(T *w, int64_t ld, int64_t k, int64_t n_rows, int64_t ext, lora_at l,
                      const float *bias)
{
    const int64_t n = (int64_t)blockIdx.x * ROWS + threadIdx.y;
    float v[8];

    for (int64_t c = threadIdx.x * 8; n < n_rows && c < ext; c += KN_LD) {
        extension8(v, l, n, c, ext, bias);
        put8(w + n * ld + k + c, v, 8);
    }
}

/* A into rows [0, ext) of `rows`, zero where there is none: a row per blockIdx.y. */
template <class T> __global__ void put_a(T *rows, int64_t ld, int64_t k, lora_at l)
{
    const int64_t j = blockIdx.y, c = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    const float *from = NULL;
    float v[8] = {};

    if (c >= k)
        return;
#pragma unroll
    for (int i = 0; i < KN_PARTS_MAX; i++) {
        if (i < l.n_parts && j >= l.first[i] && j < l.first[i] + l.r[i])
            from = l.a[i] + (j - l.first[i]) * k + c;
    }
    if (from)
        floats8(v, from, k - c);
    put8(rows + j * ld + c, v, k - c);
}

/* Eight columns, from c, behind a row: `from` is its s at that column; NULL: no adapter.
 * bias: these end the extension, and a bias its last column. */
template <class T>
__device__ static inline void put_s8(T *to, float *from, int64_t c, const lora_at &l, bool bias,
                                     bool in_place)
{
    const int64_t cols = l.first[l.n_parts];
    float v[8] = {};
    unsigned mine = 0; /* bit e: column c + e has a part */

    if (from && c < cols)
        floats8(v, from, cols - c);
#pragma unroll
    for (int e = 0; e < 8; e++) {
        float scale = 0.0f;
#pragma unroll
        for (int i = 0; i < KN_PARTS_MAX; i++) {
            if (from && i < l.n_parts && c + e >= l.first[i] && c + e < l.first[i] + l.r[i]) {
                scale = l.scale[i];
                mine |= 1u << e;
            }
        }
        v[e] = mine >> e & 1 ? scale * v[e] : bias && e == 7 ? 1.0f : 0.0f;
    }
    put8(to, v, 8);
    if (in_place && mine == 0xff)
        put8(from, v, 8);
    for (int e = 0; e < 8; e++) {
        if (in_place && mine != 0xff && mine >> e & 1)
            from[e] = v[e];
    }
}

template <class T>
__global__ void put_s(T *ext_cols, int64_t ld, int64_t rows, int64_t ext, float *s, int64_t s_cols,
                      lora_at l, bool bias, bool in_place)
{
    const int64_t m = (int64_t)blockIdx.x * ROWS + threadIdx.y;

    for (int64_t c = threadIdx.x * 8; m < rows && c < ext; c += KN_LD)
        put_s8(ext_cols + m * ld + c, s ? s + m * s_cols + c : NULL, c, l, bias && c == ext - 8,
               in_place);
}

template <class T>
__global__ void copy_rows(T *to, int64_t ldt, const T *from, int64_t ldf, int64_t cols,
                          int64_t eights)
{
    T *t = to + (int64_t)blockIdx.x * ldt;
    const T *f = from + (int64_t)blockIdx.x * ldf;

    for (int64_t c = threadIdx.x * 8; c < eights; c += blockDim.x * 8)
        store8(t + c, load8(f + c));
    for (int64_t c = eights + threadIdx.x; c < cols; c += blockDim.x)
        t[c] = f[c];
}

/* kn_drop_factor (philox.h) of four columns at once: they share a draw. */
struct lora_mask {
    kn_dropout drop;
    uint64_t threshold;
    float kept;
};

__device__ static inline void drop_factors(float f[4], const lora_mask &k, int part, uint64_t key,
                                           int64_t col)
{
    const struct kn_philox r = kn_philox(k.drop.seed, (uint32_t)(col / 4), (uint32_t)key,
                                         (uint32_t)(key >> 32), k.drop.stream + (uint32_t)part);

    for (int e = 0; e < 4; e++)
        f[e] = r.v[e] >= k.threshold ? k.kept : 0.0f;
}

template <class T>
__global__ void drop_rows(T *to, int64_t ldt, const T *from, int64_t ldf, int64_t cols,
                          lora_mask mask, int part, bool wide)
{
    const int64_t m = blockIdx.x;
    const uint64_t key = mask.drop.row_key[m];

    for (int64_t c = threadIdx.x * 8; c < cols; c += blockDim.x * 8) {
        const T *f = from + m * ldf + c;
        vec8<T> x;
        float v[8], keep[8];
        if (wide && c + 8 <= cols) {
            x = load8(f);
        } else {
            for (int e = 0; e < 8; e++)
                x.v[e] = c + e < cols ? f[e] : fromf<T>(0.0f);
        }
        drop_factors(keep, mask, part, key, c);
        drop_factors(keep + 4, mask, part, key, c + 4);
        for (int e = 0; e < 8; e++)
            v[e] = tof(x.v[e]) * keep[e];
        put8(to + m * ldt + c, v, cols - c);
    }
}

__global__ void add_dropped(float *to, const float *from, int64_t cols, lora_mask mask, int part,
                            bool wide)
{
    const int64_t m = blockIdx.x;
    const uint64_t key = mask.drop.row_key[m];

    for (int64_t c = threadIdx.x * 4; c < cols; c += blockDim.x * 4) {
        float keep[4];
        drop_factors(keep, mask, part, key, c);
        if (wide && c + 4 <= cols) {
            vec4 x = load4(to + m * cols + c, true);
            const vec4 y = load4(from + m * cols + c, true);
            for (int e = 0; e < 4; e++)
                x.v[e] += y.v[e] * keep[e];
            store4(to + m * cols + c, x, true);
            continue;
        }
        for (int e = 0; e < 4; e++) {
            if (c + e < cols)
                to[m * cols + c + e] += from[m * cols + c + e] * keep[e];
        }
    }
}

template <class T>
__global__ void put_sum(T *dx, int64_t ld, bool add, const float *sum, int64_t cols, int64_t eights)
{
    T *row = dx + (int64_t)blockIdx.x * ld;
    const float *from = sum + (int64_t)blockIdx.x * cols;

    for (int64_t c = threadIdx.x * 8; c < eights; c += blockDim.x * 8) {
        const vec8<float> v = load8(from + c);
        vec8<T> x;
        if (add)
            x = load8(row + c);
        for (int e = 0; e < 8; e++)
            x.v[e] = fromf<T>(add ? tof(x.v[e]) + v.v[e] : v.v[e]);
        store8(row + c, x);
    }
    for (int64_t c = eights + threadIdx.x; c < cols; c += blockDim.x)
        row[c] = fromf<T>(add ? tof(row[c]) + from[c] : from[c]);
}

__global__ void add_block(float *to, const float *from, int64_t ldf, int64_t cols, int64_t eights)
{
    float *t = to + (int64_t)blockIdx.x * cols;
    const float *f = from + (int64_t)blockIdx.x * ldf;

    for (int64_t c = threadIdx.x * 8; c < eights; c += blockDim.x * 8) {
        vec8<float> x = load8(t + c);
        const vec8<float> y = load8(f + c);
        for (int e = 0; e < 8; e++)
            x.v[e] += y.v[e];
        store8(t + c, x);
    }
    for (int64_t c = eights + threadIdx.x; c < cols; c += blockDim.x)
        t[c] += f[c];
}

namespace
{
unsigned blocks_of(int64_t n, int64_t each)
{
    return (unsigned)((n + each - 1) / each);
}

lora_mask mask_of(const kn_dropout &drop)
{
    return {drop, kn_drop_threshold(drop.p), 1.0f / (1.0f - drop.p)};
}

cuda_rows rows_of(const lora_rows &m)
{
    return {m.p, m.ld, cuda_size(m.t)};
}

/* Calls run((T *)0) with the type of t. */
template <class F> int by_type(enum kn_dtype t, F run)
{
    if (t == KN_BF16)
        run((bf16_t *)NULL);
    else
        run((float *)NULL);
    return cuda_launched();
}
} // namespace

int lora_put_weight(kn_ctx *ctx, const kn_weight *w, const lora_at &l, const float *bias)
{
    const dim3 a_grid(blocks_of(w->k, 8 * LORA_THREADS), (unsigned)w->ext);

    return by_type(w->compute, [&](auto *type) {
        using T = std::remove_pointer_t<decltype(type)>;
        LAUNCH(put_b<T>, blocks_of(w->n, ROWS), dim3(LANES, ROWS), 0, ctx->stream, (T *)w->p, w->ld,
               cuda_round(w->k), w->n, w->ext, l, bias);
        LAUNCH(put_a<T>, a_grid, LORA_THREADS, 0, ctx->stream, (T *)w->p + w->n * w->ld, w->ld,
               w->k, l);
    });
}

int lora_put_s(kn_ctx *ctx, const lora_rows &to, int64_t rows, int64_t ext, float *s,
               int64_t s_cols, const lora_at &l, bool bias, bool in_place)
{
    return by_type(to.t, [&](auto *type) {
        using T = std::remove_pointer_t<decltype(type)>;
        LAUNCH(put_s<T>, blocks_of(rows, ROWS), dim3(LANES, ROWS), 0, ctx->stream, (T *)to.p, to.ld,
               rows, ext, s, s_cols, l, bias, in_place);
    });
}

int lora_copy(kn_ctx *ctx, const lora_rows &to, const lora_rows &from, int64_t rows, int64_t cols)
{
    return by_type(to.t, [&](auto *type) {
        using T = std::remove_pointer_t<decltype(type)>;
        LAUNCH(copy_rows<T>, (unsigned)rows, LORA_THREADS, 0, ctx->stream, (T *)to.p, to.ld,
               (const T *)from.p, from.ld, cols,
               (int64_t)cuda_eights(cols, {rows_of(to), rows_of(from)}));
    });
}

int lora_drop(kn_ctx *ctx, const lora_rows &to, const lora_rows &from, int64_t rows, int64_t cols,
              const kn_dropout &drop, int part)
{
    return by_type(to.t, [&](auto *type) {
        using T = std::remove_pointer_t<decltype(type)>;
        LAUNCH(drop_rows<T>, (unsigned)rows, LORA_THREADS, 0, ctx->stream, (T *)to.p, to.ld,
               (const T *)from.p, from.ld, cols, mask_of(drop), part,
               cuda_eights(8, {rows_of(from)}) != 0);
    });
}

int lora_add_dropped(kn_ctx *ctx, float *to, const float *from, int64_t rows, int64_t cols,
                     const kn_dropout &drop, int part)
{
    LAUNCH(add_dropped, (unsigned)rows, LORA_THREADS, 0, ctx->stream, to, from, cols, mask_of(drop),
           part, cuda_eights(8, {{to, cols, 4}, {from, cols, 4}}) != 0);
    return cuda_launched();
}

int lora_put_sum(kn_ctx *ctx, const lora_rows &dx, bool add, const float *sum, int64_t rows,
                 int64_t cols)
{
    return by_type(dx.t, [&](auto *type) {
        using T = std::remove_pointer_t<decltype(type)>;
        LAUNCH(put_sum<T>, (unsigned)rows, LORA_THREADS, 0, ctx->stream, (T *)dx.p, dx.ld, add, sum,
               cols, (int64_t)cuda_eights(cols, {rows_of(dx), {sum, cols, 4}}));
    });
}

int lora_add_block(kn_ctx *ctx, float *to, const float *from, int64_t ldf, int64_t rows,
                   int64_t cols)
{
    LAUNCH(add_block, (unsigned)rows, LORA_THREADS, 0, ctx->stream, to, from, ldf, cols,
           (int64_t)cuda_eights(cols, {{to, cols, 4}, {from, ldf, 4}}));
    return cuda_launched();
}
