/* lora.cuh - what the fused linear (linear.cu) needs beside its products: the adapter
 * in the extensions of W, x and dy, dropout, and the adapter's gradients. */
#ifndef KERNELS_CUDA_LORA_CUH
#define KERNELS_CUDA_LORA_CUH

#include "cuda.cuh"

struct lora_at { /* the adapter of one row range, by part */
    int n_parts;
    int r[KN_PARTS_MAX];
    int64_t first[KN_PARTS_MAX + 1]; /* columns of s                               */
    int64_t n0[KN_PARTS_MAX + 1];    /* rows of W                                  */
    const float *a[KN_PARTS_MAX], *b[KN_PARTS_MAX];
    float *da[KN_PARTS_MAX], *db[KN_PARTS_MAX];
    float scale[KN_PARTS_MAX];
};

/* Rows of elements of type t in device memory, ld apart. */
struct lora_rows {
    void *p;
    int64_t ld;
    enum kn_dtype t;
};

static inline char *lora_offset(void *p, int64_t elements, enum kn_dtype t)
{
    return (char *)p + elements * (int64_t)cuda_size(t);
}

/* B into columns [k, k + ext) of W, k padded, the bias into the last; A into its rows [n, n + ext).
 */
int lora_put_weight(kn_ctx *ctx, const kn_weight *w, const lora_at &l, const float *bias);
/* Behind each row: scale * s, zeros, and last 1 where a bias is. s NULL: no adapter.
 * in_place: s itself is scaled as well. */
int lora_put_s(kn_ctx *ctx, const lora_rows &ext_cols, int64_t rows, int64_t ext, float *s,
               int64_t s_cols, const lora_at &l, bool bias, bool in_place);
/* to = from, of the same type. */
int lora_copy(kn_ctx *ctx, const lora_rows &to, const lora_rows &from, int64_t rows, int64_t cols);
/* to = drop(from), of the same type; drop.row_key is the first row's. */
int lora_drop(kn_ctx *ctx, const lora_rows &to, const lora_rows &from, int64_t rows, int64_t cols,
              const kn_dropout &drop, int part);
/* to += drop(from), dense. */
int lora_add_dropped(kn_ctx *ctx, float *to, const float *from, int64_t rows, int64_t cols,
                     const kn_dropout &drop, int part);
/* dx (+)= sum, which is dense. */
int lora_put_sum(kn_ctx *ctx, const lora_rows &dx, bool add, const float *sum, int64_t rows,
                 int64_t cols);
/* to (rows, cols) dense += from. */
int lora_add_block(kn_ctx *ctx, float *to, const float *from, int64_t ldf, int64_t rows,
                   int64_t cols);

/* ---- lora_grad.cu: gradients in bf16, their sums in ctx->grad ------------------- */

/* The most that ctx->grad holds in calls of up to so many rows and columns of s, with
 * (part_n, k) matrices of up to n rows. */
size_t lora_grad_bytes(int64_t rows, int64_t cols, int64_t k, int64_t n);
/* Do the operands have rows of aligned 16-byte pieces? */
bool lora_grad_ok(const kn_weight *w, const lora_rows &x, const lora_rows &dy);
/* begin; then b, and a once (part -1: all) or for each part with an x of its own; end. */
int lora_grad_begin(kn_ctx *ctx, const kn_weight *w, const lora_at &l, int64_t rows);
int lora_grad_a(kn_ctx *ctx, const kn_weight *w, const lora_at &l, int part, const lora_rows &ds,
                const lora_rows &x, int64_t rows);
int lora_grad_b(kn_ctx *ctx, const kn_weight *w, const lora_at &l, const lora_rows &s,
                const lora_rows &dy, int64_t rows);
int lora_grad_end(kn_ctx *ctx, const kn_weight *w, const lora_at &l, int64_t rows);

#endif
