/* ref.h - what the files of the reference backend share.
 *
 * Plain loops, double accumulation, one rounding per result: the definition of
 * correct, written to be read. The same sources are also built with KN_F32
 * storage meaning double (REF_DOUBLE): finite differences need it. There every
 * `float *` of device memory in kernels.h points to doubles. */
#ifndef KERNELS_REF_REF_H
#define KERNELS_REF_REF_H

#include "../check.h"
#include "../kernels.h"

#ifdef REF_DOUBLE
typedef double real;
#else
typedef float real;
#endif

static inline double ref_load(const void *p, int64_t i, enum kn_dtype dtype)
{
    if (dtype == KN_BF16)
        return (double)bf16_to_f32(((const bf16 *)p)[i]);
    return (double)((const real *)p)[i];
}

/* bf16 goes through float, as every backend that accumulates in float does. */
static inline void ref_store(void *p, int64_t i, enum kn_dtype dtype, double v)
{
    if (dtype == KN_BF16)
        ((bf16 *)p)[i] = bf16_from_f32((float)v);
    else
        ((real *)p)[i] = (real)v;
}

/* v as it is after being stored as dtype. */
static inline double ref_round(double v, enum kn_dtype dtype)
{
    return dtype == KN_BF16 ? (double)bf16_to_f32(bf16_from_f32((float)v)) : (double)(real)v;
}

static inline double ref_get(const struct kn_mat *m, int64_t r, int64_t c)
{
    return ref_load(m->p, r * m->ld + c, m->dtype);
}

static inline void ref_put(const struct kn_mat *m, int64_t r, int64_t c, double v)
{
    ref_store(m->p, r * m->ld + c, m->dtype, v);
}

int ref_open(const struct kn_open *o, struct kn_ctx **ret_ctx);
void ref_close(struct kn_ctx *ctx);
int ref_info(struct kn_ctx *ctx, struct kn_info *ret_info);
int ref_alloc(struct kn_ctx *ctx, size_t bytes, void **ret_ptr);
void ref_free(struct kn_ctx *ctx, void *ptr);
int ref_copy(struct kn_ctx *ctx, void *dst, const void *src, size_t bytes, enum kn_dir dir);
int ref_zero(struct kn_ctx *ctx, void *dst, size_t bytes);
int ref_sync(struct kn_ctx *ctx);
int ref_devices(struct kn_device *ret, int max, char *why, size_t why_size);
int ref_weight_soon(struct kn_ctx *ctx, const struct kn_weight *w);
size_t ref_scratch_bytes(const struct kn_scratch *s, enum kn_dtype compute);
int64_t ref_lora_room(int64_t lora_cols);
int ref_poll(struct kn_ctx *ctx);
void *ref_stream(struct kn_ctx *ctx);
size_t ref_held(void);
void ref_memory(size_t *ret_free, size_t *ret_total);
enum kn_dtype ref_compute(const struct kn_ctx *ctx);

int ref_weight_open(struct kn_ctx *ctx, const struct kn_weight_desc *d, struct kn_weight **ret);
void ref_weight_close(struct kn_ctx *ctx, struct kn_weight *w);
size_t ref_weight_bytes(const struct kn_weight_desc *d, enum kn_dtype compute);
/* Part data as the backend computes with it before its own compute dtype:
 * rounded to load_dtype and, when asked, quantised and dequantised. out (n, k). */
int ref_weight_part_values(const struct kn_weight_desc *d, int part, real *out);

int ref_quantize4(const struct kn_quantize4 *a);
int ref_dequantize4(const struct kn_dequantize4 *a);

int ref_linear_fwd(struct kn_ctx *ctx, const struct kn_linear_fwd *a);
int ref_linear_bwd(struct kn_ctx *ctx, const struct kn_linear_bwd *a);
int ref_embed(struct kn_ctx *ctx, const struct kn_embed *a);
int ref_rmsnorm_fwd(struct kn_ctx *ctx, const struct kn_rmsnorm_fwd *a);
int ref_rmsnorm_bwd(struct kn_ctx *ctx, const struct kn_rmsnorm_bwd *a);
int ref_rope(struct kn_ctx *ctx, const struct kn_rope *a);
int ref_attn_fwd(struct kn_ctx *ctx, const struct kn_attn_fwd *a);
int ref_attn_bwd(struct kn_ctx *ctx, const struct kn_attn_bwd *a);
int ref_swiglu_fwd(struct kn_ctx *ctx, const struct kn_swiglu_fwd *a);
int ref_swiglu_bwd(struct kn_ctx *ctx, const struct kn_swiglu_bwd *a);
int ref_gather(struct kn_ctx *ctx, const struct kn_gather *a);
int ref_logprob(struct kn_ctx *ctx, const struct kn_logprob *a);
int ref_grad_sweep(struct kn_ctx *ctx, const struct kn_grad_sweep *a);
int ref_adamw(struct kn_ctx *ctx, const struct kn_adamw *a);
int ref_adamw8(struct kn_ctx *ctx, const struct kn_adamw8 *a);

/* Offsets that lie about their buffers: -EINVAL. Host memory only. */
int ref_attn_offsets(const struct kn_attn_shape *s, int64_t q_rows, int64_t k_rows);

#endif
