/* kernels.h - the numeric operations a worker may ask for.
 *
 * One interface, several implementations with identical meaning:
 *
 *   ref    plain C loops, double accumulation      the definition of "correct"
 *   cpu    oneDNN matrix products, OpenMP, vectors hosts without a GPU
 *   cuda   CUDA, cuBLASLt                          production
 *   sim    cuda's own sources, built as host C++   CI without a GPU
 *
 * Conventions, stated once and true for every operation below:
 *   - A matrix (R, C) is row-major with a leading dimension: element (r, c) lies
 *     at p[r * ld + c]. ld >= cols; the worker makes ld a multiple of KN_LD
 *     elements and keeps the padding zero; no operation writes padding.
 *   - The caller owns every buffer. Nothing is retained after the call's work
 *     completes. `in` fields are never written. Outputs may not overlap inputs
 *     unless the field says so.
 *   - Matrices, vectors and index arrays live in the memory of the backend
 *     (ops->alloc, ops->copy); args structs and the small arrays of structs
 *     they point to (parts, segments) live in host memory and are read before
 *     the call returns.
 *   - A zero-sized operand is legal and does nothing.
 *   - An operation is queued on the context's stream and may complete later;
 *     ops->sync waits. Work on one context is ordered.
 *   - Determinism: same inputs, same backend, same instruction set: same bits,
 *     whatever the thread count. Every row of a forward result depends only on
 *     that row's inputs (and, in attention, on its own sequence): never on how
 *     many other rows are in the call (numerics: batch invariance).
 *   - Return: 0, or -EINVAL (shape or alignment the contract forbids; nothing
 *     was queued), -ENOMEM, -EIO (the device failed; the context is dead).
 *   - No operation logs, exits or touches global state.
 *   - Compute type: the dtype of the matrices of the call, all equal unless a
 *     field says otherwise. Sums are accumulated in float32 or better and
 *     rounded once to the output's dtype. LoRA A, B, S and gradients: float32.
 */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { KN_NO_LORA = -1, KN_LD = 64, KN_PARTS_MAX = 3, KN_UUID = 64, KN_ABI = 5 };

struct kn_ctx;    /* a device and one ordered stream of work; opaque           */
struct kn_weight; /* a frozen matrix in the backend's own form; opaque         */

enum kn_dir { KN_TO_DEVICE, KN_TO_HOST, KN_ON_DEVICE };
enum kn_dtype { KN_F32, KN_BF16, KN_F16 }; /* F16: only as source of a weight */
enum kn_quant { KN_QUANT_NONE, KN_QUANT_NF4, KN_QUANT_FP4 };

struct kn_mat {
    void *p;
    int64_t rows, cols, ld; /* elements */
    enum kn_dtype dtype;    /* KN_F32 or KN_BF16 */
};

struct kn_open {
    int device;               /* index of the device; 0 on a CPU                 */
    const char *uuid;         /* GPU: the device of this name (kn_device), whatever
                                 its index; -ENODEV: it is not there. NULL: index */
    int threads;              /* CPU: threads of this context, >= 1; else ignored */
    enum kn_dtype compute;    /* dtype of activations; KN_BF16 may be -ENOTSUP    */
};

/* What ops->open could open. */
struct kn_device {
    char uuid[KN_UUID]; /* "GPU-8f3c..." as nvidia-smi -L; "" on a CPU             */
    char name[96];
    size_t mem_total;
};

struct kn_info {
    char uuid[KN_UUID]; /* of the device that was opened; "" on a CPU              */
    char device[96]; /* "AMD EPYC ..., 2 threads" or the GPU's name               */
    char isa[32];    /* what the bits depend on: "avx512_core", "sm_90"           */
    size_t mem_free, mem_total;
    size_t page; /* ops->alloc and weight_open take memory in multiples of it, as measured
                    when the context opened; 1: any size                           */
    size_t held; /* memory this process holds. A GPU: since the context opened, by its
                    driver's count; a CPU: all of its own, mapped files not counted  */
};

/* ---- frozen weights ------------------------------------------------------ */

/* Several matrices with the same K may be stacked along N (q|k|v, gate|up):
 * W = [part 0; part 1; ...]. Each part is quantised by itself, as bitsandbytes
 * does with the separate modules. */
struct kn_weight_part {
    const void *data;    /* in (n, k) dense row-major, host memory                */
    enum kn_dtype dtype; /* of data: F32, BF16 or F16                             */
    int64_t n;
};

struct kn_weight_desc {
    const struct kn_weight_part *parts;
    int n_parts; /* 1..KN_PARTS_MAX */
    int64_t k;
    enum kn_quant quant;       /* NF4/FP4: blocks of 64 over the flattened part;   */
    bool double_quant;         /* absmax itself in 8 bits, blocks of 256           */
    enum kn_dtype load_dtype;  /* part data is rounded to this first (transformers'
                                  dtype=...), quantised from it, and dequantised
                                  values are rounded to it                        */
    bool no_backward;          /* dx will never be asked for                       */
    int64_t lora_cols;         /* most columns of s a call will bring (the parts' r
                                  added up); 0: not known, room for 255; KN_NO_LORA:
                                  no call brings an adapter or a bias              */
    bool per_use;              /* NF4/FP4: stays in 4 bits and is dequantised for each
                                  product, into buffers that the context's weights
                                  share: less memory, the same bits. A backend that
                                  cannot keeps the dequantised matrix; weight_bytes
                                  tells which                                      */
};

/* Products with one weight, for kn_scratch. */
struct kn_scratch_use {
    const struct kn_weight_desc *w; /* data and dtype of the parts are not read     */
    int64_t rows;                   /* most rows of x and dy                        */
    bool room;                      /* every x and dy brings ops->lora_room columns  */
};

/* What a context comes to hold by itself over such calls, at the most: beside what
 * ops->open, ops->alloc and weight_open take. A CPU's few buffers per thread do
 * not count. */
struct kn_scratch {
    const struct kn_scratch_use *uses;
    int n_uses;
    bool dropout;
    int64_t params;  /* elements of the flat gradient                              */
    int64_t rows, kv_rows; /* of attention's q, and of k and v                      */
    int heads, kv_heads, head_dim;
};

/* ---- 4-bit quantisation on its own (export, tests) ------------------------ */

/* bitsandbytes 4-bit, blocksize 64; its CUDA code is the definition
 * (numerics.md 19). nested: absmax_q, nested_absmax, offset are written and
 * `absmax` still receives the plain float32 absmax. Host memory, synchronous. */
struct kn_quantize4 {
    const float *x;       /* in  (n)                                              */
    int64_t n;
    enum kn_quant type;
    bool nested;
    uint8_t *packed;      /* out ((n + 1) / 2): element 2j high nibble            */
    float *absmax;        /* out (ceil(n / 64))                                   */
    uint8_t *absmax_q;    /* out (ceil(n / 64)), nested only                      */
    float *nested_absmax; /* out (ceil(ceil(n / 64) / 256)), nested only          */
    float *offset;        /* out (1), nested only: mean of absmax                 */
    const float *offset_in; /* in (1) or NULL: use this offset instead            */
};

struct kn_dequantize4 {
    float *y;             /* out (n), rounded to `dtype`, widened                 */
    int64_t n;
    enum kn_quant type;
    enum kn_dtype dtype;
    const uint8_t *packed;
    const float *absmax;        /* in, when absmax_q is NULL                      */
    const uint8_t *absmax_q;    /* in or NULL                                     */
    const float *nested_absmax; /* in, with absmax_q                              */
    float offset;
};

/* ---- linear, base plus adapters ------------------------------------------- */

/* One adapter on one part of a weight. r = 0: none. */
struct kn_lora {
    const float *a; /* in (r, K) dense                                            */
    const float *b; /* in (n_part, r) dense                                       */
    float *da, *db; /* backward: accumulated into (+=), same shapes; may be NULL   */
    int r;
    float scale;    /* lora_alpha / r (or / sqrt(r))                              */
};

/* Rows [row0, row0 + rows) use parts[i] on part i of the weight. Segments are
 * disjoint and ascending; rows in none of them see the base alone. */
struct kn_lora_seg {
    int64_t row0, rows;
    const struct kn_lora *parts; /* n_parts of them */
};

/* Dropout on the adapter's input only (PEFT): element (row, col) is kept with
 * probability 1 - p and scaled by 1 / (1 - p). The decision is Philox4x32-10
 * with counter (col / 4, row_key low, row_key high, stream + part) and key
 * `seed`, word col % 4, kept iff word >= p * 2^32. Never a function of the row
 * index. Each part of a stacked weight has a mask of its own, as PEFT has with
 * separate modules. */
struct kn_dropout {
    float p;                 /* 0: no dropout, other fields ignored               */
    uint64_t seed;           /* (seed, step) folded by the worker                 */
    uint32_t stream;         /* which linear; part i of the weight: stream + i     */
    const uint64_t *row_key; /* in (M) example ordinal and position               */
};

/* y = [residual +] x W^T + bias + scale * (drop(x) A^T) B^T, one rounding.
 * s receives drop(x) A^T of all parts side by side: part i's columns begin at the
 * sum of r over the parts before it (max over segments of that part's r). */
struct kn_linear_fwd {
    struct kn_mat y;               /* out (M, N); may be float32 when x is bf16     */
    struct kn_mat x;               /* in  (M, K)                                    */
    const struct kn_weight *w;
    const float *bias;             /* in (N) or NULL                                */
    const struct kn_mat *residual; /* in (M, N) or NULL; may be y itself            */
    const struct kn_lora_seg *segs;
    int n_segs;                    /* 0: adapter off: same bits as B = 0            */
    float *s;                      /* out (M, s_cols) dense; NULL when n_segs == 0  */
    int64_t s_cols;
    struct kn_dropout dropout;
    int64_t x_room;                /* columns behind x's K that the call may overwrite
                                      (x.ld >= K + x_room): K up to a multiple of KN_LD
                                      and ops->lora_room more save a copy on a GPU; the
                                      columns before that multiple stay zero; 0: none */
};

/* dx [+]= dy W + scale * ((dy B) A masked as forward); da += ..., db += ...
 *   dS = scale * dy B;  db += scale * dy^T s;  da += dS^T drop(x)
 * Sums over rows run in a fixed tree that does not depend on threads. */
struct kn_linear_bwd {
    struct kn_mat dx;        /* out (M, K); p == NULL: not wanted                  */
    bool add_dx;             /* add to dx instead of writing it                    */
    struct kn_mat dy;        /* in (M, N)                                          */
    struct kn_mat x;         /* in (M, K), needed when n_segs > 0                  */
    const struct kn_weight *w;
    const struct kn_lora_seg *segs;
    int n_segs;
    const float *s;          /* in (M, s_cols) from the forward                    */
    int64_t s_cols;
    float *ds;               /* scratch (M, s_cols)                                */
    struct kn_dropout dropout;
    int64_t dy_room;         /* columns behind dy's N that the call may overwrite:
                                ops->lora_room or more save a copy on a GPU        */
};

/* ---- the rest of a layer --------------------------------------------------- */

/* y[t] = table[ids[t]]. An id outside the table: -EINVAL on the CPU backends,
 * a row of NaN on the GPU; the worker checks ids when it reads the data. */
struct kn_embed {
    struct kn_mat y;        /* out (T, D) */
    struct kn_mat table;    /* in  (V, D) */
    const int32_t *ids;     /* in  (T)    */
};

/* y = x * rstd * w, rstd[r] = 1 / sqrt(mean_c x[r,c]^2 + eps): float32 inside,
 * x * rstd is rounded to x's dtype before the gain, as transformers does.
 * Source: Zhang & Sennrich 2019, eq. 4 (arXiv:1910.07467), plus eps. */
struct kn_rmsnorm_fwd {
    struct kn_mat y; /* out (R, C); may be x                                      */
    float *rstd;     /* out (R) or NULL                                           */
    struct kn_mat x; /* in  (R, C)                                                */
    const float *w;  /* in  (C)                                                   */
    float eps;
};

/* dx [+]= rstd * (w dy - xhat * mean_c(w dy xhat)), xhat = x * rstd. The gain
 * is frozen. */
struct kn_rmsnorm_bwd {
    struct kn_mat dx; /* out (R, C); may be dy                                    */
    bool add_dx;
    struct kn_mat dy;
    struct kn_mat x;
    const float *w;
    const float *rstd;
};

/* Rotate-half rotary embedding in place over `heads` heads of x's columns:
 * (u, v) = (x[i], x[i + hd/2]) -> (u cos - v sin, v cos + u sin).
 * inverse: the backward (sin negated). */
struct kn_rope {
    struct kn_mat x;       /* in/out (T, heads * head_dim)                        */
    const int32_t *pos;    /* in (T): row of the table                            */
    const float *cos_sin;  /* in (positions, head_dim): cos[hd/2] then sin[hd/2]  */
    int heads, head_dim;
    bool inverse;
};

/* Variable-length causal attention with grouped queries. Sequence s has query
 * rows cu_q[s] .. cu_q[s+1] and key/value rows cu_k[s] .. cu_k[s+1]; Lk >= Lq;
 * bottom-right aligned: query i sees keys j <= i + Lk - Lq, and, with a window
 * W > 0, j > i + Lk - Lq - W. Head h reads key head h / (heads / kv_heads).
 * Tiles begin at each sequence's first key: a sequence's numbers do not depend
 * on its place in the buffer. Source: Dao 2023 (arXiv:2307.08691). */
struct kn_attn_shape {
    const int32_t *cu_q, *cu_k; /* in (n_seqs + 1)                                */
    int n_seqs;
    int32_t max_q, max_k;       /* longest sequence of each                       */
    int heads, kv_heads, head_dim; /* head_dim: 8 to 128 in steps of 8            */
    int window;                 /* 0: none                                        */
    float scale;                /* 1 / sqrt(head_dim)                             */
};

struct kn_attn_fwd {
    struct kn_mat o;   /* out (Tq, heads * head_dim)                              */
    float *lse;        /* out (Tq, heads): log sum exp of the scaled scores       */
    struct kn_mat q;   /* in  (Tq, heads * head_dim)                              */
    struct kn_mat k;   /* in  (Tk, kv_heads * head_dim)                           */
    struct kn_mat v;   /* in  (Tk, kv_heads * head_dim)                           */
    struct kn_attn_shape shape;
};

struct kn_attn_bwd {
    struct kn_mat dq, dk, dv; /* out, shapes of q, k, v; written, not added        */
    struct kn_mat d_o;        /* in  (Tq, heads * head_dim)                        */
    struct kn_mat o, q, k, v; /* in                                               */
    const float *lse;
    float *delta;             /* scratch (Tq, heads)                               */
    struct kn_attn_shape shape;
};

/* y = silu(g) * u with gu = [g | u] (T, 2F). */
struct kn_swiglu_fwd {
    struct kn_mat y;  /* out (T, F)  */
    struct kn_mat gu; /* in  (T, 2F) */
};

struct kn_swiglu_bwd {
    struct kn_mat dgu; /* out (T, 2F); may be gu                                  */
    struct kn_mat dy;  /* in  (T, F)                                              */
    struct kn_mat gu;  /* in  (T, 2F)                                             */
    struct kn_mat y;   /* out (T, F) the forward's result again; p NULL: not wanted */
};

/* y[r] [+]= sum over j in [start[r], start[r+1]) of coef[j] * x[idx[j]], in that
 * order. start NULL: one each (j = r). coef NULL: ones. The gather form of copy,
 * scatter-add and row scaling. */
struct kn_gather {
    struct kn_mat y;      /* out (R, C)                                           */
    bool add;
    struct kn_mat x;      /* in                                                   */
    const int32_t *start; /* in (R + 1) or NULL                                   */
    const int32_t *idx;   /* in (start[R] or R)                                   */
    const float *coef;    /* in, one per idx, or NULL                             */
};

/* ---- the head --------------------------------------------------------------- */

/* Per row of a chunk of logits z (float32): with p = softmax(z),
 *   lse = log sum exp z;   logp = z[target] - lse;   sum_z;   sum_pz = sum p z;
 *   lse2 = log sum exp 2z (WPO);   hit = argmax z == target (lowest index wins).
 * grad: z is replaced by onehot(target) - p, that is d logp / d z; in bf16 mode
 * as bf16 in the first half of each row (z is then viewed as (R, V) bf16 with
 * ld 2 * ld). Sums in a fixed order. NULL outputs are not wanted. */
struct kn_logprob {
    struct kn_mat z;       /* in/out (R, V) float32                               */
    const int32_t *target; /* in  (R)                                             */
    float *lse, *logp, *sum_z, *sum_pz, *lse2; /* out (R)                         */
    int32_t *hit;          /* out (R)                                             */
    bool grad;
    enum kn_dtype grad_dtype;
};

/* ---- optimiser --------------------------------------------------------------- */

struct kn_sweep { /* in device memory */
    double sum_sq;     /* sum of squares of the gradient                          */
    int64_t nonfinite; /* how many elements are NaN or infinite                   */
};

/* One pass over the flat gradient, in fixed blocks, added up in order. */
struct kn_grad_sweep {
    const float *g;
    int64_t n;
    struct kn_sweep *sweep; /* out */
};

struct kn_adamw_step { /* in device memory: changes per step */
    float lr, beta1, beta2, eps, weight_decay;
    float max_grad_norm; /* <= 0: no clipping                                     */
    float bias1, bias2;  /* 1 - beta^t                                            */
};

/* torch.optim.AdamW over one flat buffer, gradient clipped first:
 *   c = min(1, max_grad_norm / (sqrt(sum_sq) + 1e-6));  g *= c
 *   p *= 1 - lr * wd;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
 *   p -= lr / bias1 * m / (sqrt(v) / sqrt(bias2) + eps)
 * nonfinite != 0: nothing is changed. */
struct kn_adamw {
    float *p, *m, *v; /* in/out (n) */
    const float *g;   /* in (n)     */
    int64_t n;
    const struct kn_sweep *sweep;
    const struct kn_adamw_step *step;
};

/* AdamW whose moments lie in 8 bits, as bitsandbytes' AdamW8bit: m in the signed, v in
 * the unsigned dynamic map (kernels/dynamic.h), each block of up to 256 elements with a
 * scale of its own, its largest magnitude. A block may keep float32 moments instead (a
 * tensor of fewer than 4096 elements does, by bitsandbytes' rule). */
enum { KN_ADAMW8_BLOCK = 256 };

struct kn_adamw8_block {
    int64_t at;   /* first element in p, g, m, v: where the block before ended     */
    int64_t full; /* its first element in m32, v32: float32 moments; -1: 8 bits    */
    int32_t n;    /* 1 to KN_ADAMW8_BLOCK                                          */
    int32_t pad;
};

/* Every operation in float32, rounded as it stands here, none fused; the factors in
 * float64, rounded once (kernels/adamw8.h): the same bits on every backend.
 *   g = g * c (as kn_adamw);  m = b1 * m + (1 - b1) * g;  v = b2 * v + (1 - b2) * (g * g)
 *   p = p * (1 - lr wd) - lr/bias1 * (m / (sqrt(v) / sqrt(bias2) + eps))
 * with the old m, v = map[code] * scale, and the new ones before they are quantised:
 *   scale = max |m| (at most FLT_MAX); code of m / scale: the nearest entry; a tie goes to
 *   the even one; below 0 never becomes 0. A block of zeros: codes 127 (m) and 0 (v).
 * The state begins as those codes with scales 0. nonfinite != 0: nothing is changed.
 *
 * bitsandbytes 0.50.2's backends differ among themselves. Its CUDA kernel is followed in
 * nearest, ties and sign; it decays p after the step instead of before (as torch, its CPU
 * backend and this do), divides by approximation, and sets the moments of an element
 * whose gradient is not finite to 0. Its CPU backend reads codes from a table of 65536
 * equal steps of [-1, 1]: there what is less than 1.5e-5 of its block's largest gets the
 * code of about 1.5e-5 of it, 0 too. */
struct kn_adamw8 {
    float *p;                 /* in/out (n)                                        */
    const float *g;           /* in (n)                                            */
    uint8_t *m, *v;           /* in/out (n) codes; of blocks with full >= 0 not touched */
    float *m_scale, *v_scale; /* in/out (n_blocks), finite, >= 0; likewise         */
    float *m32, *v32;         /* in/out, of blocks with full >= 0; NULL: there are none */
    const struct kn_adamw8_block *block; /* in (n_blocks), device memory: they cover n in
                                            order, none longer than it may be; -EINVAL
                                            on the CPU backends alone                */
    int64_t n, n_blocks;
    const struct kn_sweep *sweep;
    const struct kn_adamw_step *step;
};

/* ---- the table ---------------------------------------------------------------- */

/* All members are set in every table. */
struct kn_ops {
    const char *name; /* "ref", "cpu", "cuda", "sim" */

    /* Devices this process may use, at most `max` of them described: how many there
     * are. 0 or -ENOTSUP: none, and `why` says why. What CUDA_VISIBLE_DEVICES or a
     * control group hides is not there. */
    int (*devices)(struct kn_device *ret, int max, char *why, size_t why_size);

    int (*open)(const struct kn_open *o, struct kn_ctx **ret_ctx);
    void (*close)(struct kn_ctx *ctx); /* NULL is a no-op */
    int (*info)(struct kn_ctx *ctx, struct kn_info *ret_info);

    /* Memory of the device, 256-byte aligned, zeroed. free(NULL) is a no-op. */
    int (*alloc)(struct kn_ctx *ctx, size_t bytes, void **ret_ptr);
    void (*free)(struct kn_ctx *ctx, void *ptr);
    int (*copy)(struct kn_ctx *ctx, void *dst, const void *src, size_t bytes, enum kn_dir dir);
    int (*zero)(struct kn_ctx *ctx, void *dst, size_t bytes);
    int (*sync)(struct kn_ctx *ctx); /* the first failure since the last sync */
    /* Whether what was queued is complete, without waiting: 1, 0: not yet, or as sync. */
    int (*poll)(struct kn_ctx *ctx);
    /* The device's own handle of the stream (a cudaStream_t), for a library that queues
     * work between ours (collectives); NULL on a CPU. */
    void *(*stream)(struct kn_ctx *ctx);

    /* Copies, quantises, packs; the caller may free its data afterwards. The
     * handle dies before its context. */
    int (*weight_open)(struct kn_ctx *ctx, const struct kn_weight_desc *d, struct kn_weight **ret);
    void (*weight_close)(struct kn_ctx *ctx, struct kn_weight *w);
    size_t (*weight_bytes)(const struct kn_weight_desc *d, enum kn_dtype compute);
    /* The products with w come next: what they need may be made ready beside the
     * work that is queued. Only a hint. */
    int (*weight_soon)(struct kn_ctx *ctx, const struct kn_weight *w);
    size_t (*scratch_bytes)(const struct kn_scratch *s, enum kn_dtype compute);
    /* Columns behind x's K and dy's N, for adapters of so many columns of s, with
     * which linear works in place (x_room, dy_room; KN_LD rounds K up, not N). 0: of
     * no use to this backend. */
    int64_t (*lora_room)(int64_t lora_cols);

    int (*quantize4)(const struct kn_quantize4 *a);
    int (*dequantize4)(const struct kn_dequantize4 *a);

    int (*linear_fwd)(struct kn_ctx *ctx, const struct kn_linear_fwd *a);
    int (*linear_bwd)(struct kn_ctx *ctx, const struct kn_linear_bwd *a);
    int (*embed)(struct kn_ctx *ctx, const struct kn_embed *a);
    int (*rmsnorm_fwd)(struct kn_ctx *ctx, const struct kn_rmsnorm_fwd *a);
    int (*rmsnorm_bwd)(struct kn_ctx *ctx, const struct kn_rmsnorm_bwd *a);
    int (*rope)(struct kn_ctx *ctx, const struct kn_rope *a);
    int (*attn_fwd)(struct kn_ctx *ctx, const struct kn_attn_fwd *a);
    int (*attn_bwd)(struct kn_ctx *ctx, const struct kn_attn_bwd *a);
    int (*swiglu_fwd)(struct kn_ctx *ctx, const struct kn_swiglu_fwd *a);
    int (*swiglu_bwd)(struct kn_ctx *ctx, const struct kn_swiglu_bwd *a);
    int (*gather)(struct kn_ctx *ctx, const struct kn_gather *a);
    int (*logprob)(struct kn_ctx *ctx, const struct kn_logprob *a);
    int (*grad_sweep)(struct kn_ctx *ctx, const struct kn_grad_sweep *a);
    int (*adamw)(struct kn_ctx *ctx, const struct kn_adamw *a);
    int (*adamw8)(struct kn_ctx *ctx, const struct kn_adamw8 *a);
};

/* Opens backend `name` ("ref", "cpu", "cuda", "sim"), a module beside the
 * program or in the build's module folder; process-wide, never unloaded.
 * `why` receives a sentence when the result is -ENOENT (not in this build) or
 * -ENOTSUP (this host cannot run it). Thread-safe. */
int kn_backend(const char *name, const struct kn_ops **ret_ops, char *why, size_t why_size);

/* A function of another library that belongs to an open backend: of the module itself
 * (the simulation's twins), else of shared library `soname`, looked for by the system's
 * loader, beside the program and its modules, and where CUDA's packages put it (CUDA_HOME,
 * /usr/local/cuda, Python's nvidia wheels). NULL: there is none. The library stays open. */
void *kn_symbol(const struct kn_ops *ops, const char *soname, const char *symbol);

#ifdef __cplusplus
}
#endif
#endif
