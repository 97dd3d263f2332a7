/* check.h - argument checks shared by every backend, so that all of them accept
 * and reject exactly the same calls.
 *
 * Each returns 0 to run, 1 when there is nothing to do, or -EINVAL. What lies in
 * device memory (ids, offsets) cannot be looked at here; the backends of the CPU
 * check it themselves. */
#ifndef KERNELS_CHECK_H
#define KERNELS_CHECK_H

#include <errno.h>

#include "kernels.h"

/* Is m a (rows, cols) matrix the contract allows? */
static inline bool kn_mat_ok(const struct kn_mat *m, int64_t rows, int64_t cols)
{
    if (m->rows != rows || m->cols != cols || m->ld < cols)
        return false;
    if (rows < 0 || cols < 0 || rows > INT32_MAX || m->ld > INT32_MAX)
        return false;
    if (m->dtype != KN_F32 && m->dtype != KN_BF16)
        return false;
    return m->p || rows == 0 || cols == 0;
}

static inline bool kn_out_dtype_ok(enum kn_dtype out, enum kn_dtype in)
{
    return out == in || (out == KN_F32 && in == KN_BF16);
}

static inline int kn_check_open(const struct kn_open *o)
{
    if (o->device < 0 || (o->compute != KN_F32 && o->compute != KN_BF16))
        return -EINVAL;
    return 0;
}

static inline int kn_check_weight(const struct kn_weight_desc *d)
{
    int64_t n = 0;

    if (d->n_parts < 1 || d->n_parts > KN_PARTS_MAX || !d->parts || d->k < 1 || d->k > INT32_MAX)
        return -EINVAL;
    if (d->quant != KN_QUANT_NONE && d->quant != KN_QUANT_NF4 && d->quant != KN_QUANT_FP4)
        return -EINVAL;
    if (d->load_dtype != KN_F32 && d->load_dtype != KN_BF16 && d->load_dtype != KN_F16)
        return -EINVAL;
    for (int i = 0; i < d->n_parts; i++) {
        const struct kn_weight_part *p = &d->parts[i];
        if (p->n < 1 || p->n > INT32_MAX)
            return -EINVAL;
        if (p->dtype != KN_F32 && p->dtype != KN_BF16 && p->dtype != KN_F16)
            return -EINVAL;
        n += p->n;
    }
    return n > INT32_MAX ? -EINVAL : 0;
}

static inline int kn_check_quantize4(const struct kn_quantize4 *a)
{
    if (a->n < 0 || (a->type != KN_QUANT_NF4 && a->type != KN_QUANT_FP4))
        return -EINVAL;
    if (a->n == 0)
        return 1;
    if (!a->x || !a->packed || !a->absmax)
        return -EINVAL;
    if (a->nested && (!a->absmax_q || !a->nested_absmax || !a->offset))
        return -EINVAL;
    return 0;
}

static inline int kn_check_dequantize4(const struct kn_dequantize4 *a)
{
    if (a->n < 0 || (a->type != KN_QUANT_NF4 && a->type != KN_QUANT_FP4))
        return -EINVAL;
    if (a->dtype != KN_F32 && a->dtype != KN_BF16 && a->dtype != KN_F16)
        return -EINVAL;
    if (a->n == 0)
        return 1;
    if (!a->y || !a->packed || (a->absmax_q ? !a->nested_absmax : !a->absmax))
        return -EINVAL;
    return 0;
}

/* Where part i's columns of s begin, into first[0 .. n_parts]; the last is the
 * number of columns used. */
static inline void kn_lora_columns(const struct kn_lora_seg *segs, int n_segs, int n_parts,
                                   int64_t *first)
{
    first[0] = 0;
    for (int i = 0; i < n_parts; i++) {
        int r = 0;
        for (int j = 0; j < n_segs; j++) {
            if (segs[j].parts[i].r > r)
                r = segs[j].parts[i].r;
        }
        first[i + 1] = first[i] + r;
    }
}

static inline bool kn_segs_ok(const struct kn_lora_seg *segs, int n_segs, int n_parts, int64_t rows,
                              int64_t s_cols, const struct kn_dropout *drop)
{
    int64_t end = 0, first[KN_PARTS_MAX + 1];

    if (n_segs < 0 || (n_segs > 0 && !segs))
        return false;
    for (int i = 0; i < n_segs; i++) {
        if (segs[i].row0 < end || segs[i].rows < 0 || segs[i].rows > rows - segs[i].row0)
            return false;
        end = segs[i].row0 + segs[i].rows;
        if (!segs[i].parts)
            return false;
        for (int j = 0; j < n_parts; j++) {
            const struct kn_lora *l = &segs[i].parts[j];
            if (l->r < 0 || l->r > 4096 || (l->r > 0 && (!l->a || !l->b)))
                return false;
        }
    }
    kn_lora_columns(segs, n_segs, n_parts, first);
    if (first[n_parts] > s_cols)
        return false;
    if (n_segs > 0 && drop->p != 0.0f)
        return drop->p > 0.0f && drop->p < 1.0f && (drop->row_key || rows == 0);
    return true;
}

/* n, k, n_parts and compute are what the handle was made with. */
static inline int kn_check_linear_fwd(const struct kn_linear_fwd *a, int64_t n, int64_t k,
                                      int n_parts, enum kn_dtype compute)
{
    if (!kn_mat_ok(&a->x, a->x.rows, k) || !kn_mat_ok(&a->y, a->x.rows, n))
        return -EINVAL;
    if (a->x.dtype != compute || !kn_out_dtype_ok(a->y.dtype, a->x.dtype))
        return -EINVAL;
    if (a->residual && (!kn_mat_ok(a->residual, a->x.rows, n) || a->residual->dtype != a->y.dtype))
        return -EINVAL;
    if (!kn_segs_ok(a->segs, a->n_segs, n_parts, a->x.rows, a->s_cols, &a->dropout))
        return -EINVAL;
    if (a->x.rows == 0)
        return 1;
    return a->n_segs > 0 && a->s_cols > 0 && !a->s ? -EINVAL : 0;
}

static inline int kn_check_linear_bwd(const struct kn_linear_bwd *a, int64_t n, int64_t k,
                                      int n_parts, enum kn_dtype compute, bool no_backward)
{
    if (!kn_mat_ok(&a->dy, a->dy.rows, n) || a->dy.dtype != compute)
        return -EINVAL;
    if (a->dx.p && (!kn_mat_ok(&a->dx, a->dy.rows, k) || no_backward ||
                    !kn_out_dtype_ok(a->dx.dtype, a->dy.dtype)))
        return -EINVAL;
    if (a->n_segs > 0 && (!kn_mat_ok(&a->x, a->dy.rows, k) || a->x.dtype != compute))
        return -EINVAL;
    if (!kn_segs_ok(a->segs, a->n_segs, n_parts, a->dy.rows, a->s_cols, &a->dropout))
        return -EINVAL;
    if (a->dy.rows == 0)
        return 1;
    return a->n_segs > 0 && a->s_cols > 0 && (!a->s || !a->ds) ? -EINVAL : 0;
}

static inline int kn_check_embed(const struct kn_embed *a)
{
    if (!kn_mat_ok(&a->y, a->y.rows, a->y.cols))
        return -EINVAL;
    if (!kn_mat_ok(&a->table, a->table.rows, a->y.cols) || a->table.dtype != a->y.dtype)
        return -EINVAL;
    if (a->y.rows == 0 || a->y.cols == 0)
        return 1;
    return a->ids ? 0 : -EINVAL;
}

static inline int kn_check_rmsnorm_fwd(const struct kn_rmsnorm_fwd *a)
{
    if (!kn_mat_ok(&a->x, a->x.rows, a->x.cols) || !kn_mat_ok(&a->y, a->x.rows, a->x.cols))
        return -EINVAL;
    if (a->y.dtype != a->x.dtype || !(a->eps >= 0.0f))
        return -EINVAL;
    if (a->x.rows == 0 || a->x.cols == 0)
        return 1;
    return a->w ? 0 : -EINVAL;
}

static inline int kn_check_rmsnorm_bwd(const struct kn_rmsnorm_bwd *a)
{
    if (!kn_mat_ok(&a->x, a->x.rows, a->x.cols) || !kn_mat_ok(&a->dx, a->x.rows, a->x.cols) ||
        !kn_mat_ok(&a->dy, a->x.rows, a->x.cols))
        return -EINVAL;
    if (a->dx.dtype != a->x.dtype || a->dy.dtype != a->x.dtype)
        return -EINVAL;
    if (a->x.rows == 0 || a->x.cols == 0)
        return 1;
    return a->w && a->rstd ? 0 : -EINVAL;
}

static inline int kn_check_rope(const struct kn_rope *a)
{
    if (a->heads < 0 || a->head_dim < 2 || a->head_dim % 2 || a->head_dim > 1024)
        return -EINVAL;
    if (!kn_mat_ok(&a->x, a->x.rows, (int64_t)a->heads * a->head_dim))
        return -EINVAL;
    if (a->x.rows == 0 || a->x.cols == 0)
        return 1;
    return a->pos && a->cos_sin ? 0 : -EINVAL;
}

static inline int kn_check_attn_shape(const struct kn_attn_shape *s)
{
    if (s->n_seqs < 0 || s->heads < 1 || s->kv_heads < 1 || s->heads % s->kv_heads)
        return -EINVAL;
    if (s->head_dim < 8 || s->head_dim > 128 || s->head_dim % 8 || s->window < 0)
        return -EINVAL;
    if (s->max_q < 0 || s->max_k < s->max_q || (s->n_seqs > 0 && (!s->cu_q || !s->cu_k)))
        return -EINVAL;
    return 0;
}

static inline int kn_check_attn_fwd(const struct kn_attn_fwd *a)
{
    const struct kn_attn_shape *s = &a->shape;
    const int64_t qc = (int64_t)s->heads * s->head_dim, kc = (int64_t)s->kv_heads * s->head_dim;
    const enum kn_dtype t = a->q.dtype;

    if (kn_check_attn_shape(s))
        return -EINVAL;
    if (!kn_mat_ok(&a->q, a->q.rows, qc) || !kn_mat_ok(&a->o, a->q.rows, qc) ||
        !kn_mat_ok(&a->k, a->k.rows, kc) || !kn_mat_ok(&a->v, a->k.rows, kc))
        return -EINVAL;
    if (a->o.dtype != t || a->k.dtype != t || a->v.dtype != t)
        return -EINVAL;
    if (s->n_seqs == 0 || a->q.rows == 0)
        return 1;
    return a->lse ? 0 : -EINVAL;
}

static inline int kn_check_attn_bwd(const struct kn_attn_bwd *a)
{
    const struct kn_attn_shape *s = &a->shape;
    const int64_t qc = (int64_t)s->heads * s->head_dim, kc = (int64_t)s->kv_heads * s->head_dim;
    const enum kn_dtype t = a->q.dtype;

    if (kn_check_attn_shape(s))
        return -EINVAL;
    if (!kn_mat_ok(&a->q, a->q.rows, qc) || !kn_mat_ok(&a->o, a->q.rows, qc) ||
        !kn_mat_ok(&a->dq, a->q.rows, qc) || !kn_mat_ok(&a->d_o, a->q.rows, qc) ||
        !kn_mat_ok(&a->k, a->k.rows, kc) || !kn_mat_ok(&a->v, a->k.rows, kc) ||
        !kn_mat_ok(&a->dk, a->k.rows, kc) || !kn_mat_ok(&a->dv, a->k.rows, kc))
        return -EINVAL;
    if (a->o.dtype != t || a->k.dtype != t || a->v.dtype != t || a->dq.dtype != t ||
        a->dk.dtype != t || a->dv.dtype != t || a->d_o.dtype != t)
        return -EINVAL;
    if (a->q.rows == 0 && a->k.rows == 0)
        return 1;
    return a->q.rows > 0 && s->n_seqs > 0 && (!a->lse || !a->delta) ? -EINVAL : 0;
}

static inline int kn_check_swiglu_fwd(const struct kn_swiglu_fwd *a)
{
    if (!kn_mat_ok(&a->y, a->y.rows, a->y.cols) || a->y.dtype != a->gu.dtype)
        return -EINVAL;
    if (!kn_mat_ok(&a->gu, a->y.rows, 2 * a->y.cols))
        return -EINVAL;
    return a->y.rows == 0 || a->y.cols == 0;
}

static inline int kn_check_swiglu_bwd(const struct kn_swiglu_bwd *a)
{
    const int64_t rows = a->dy.rows, cols = a->dy.cols;
    const enum kn_dtype t = a->gu.dtype;

    if (!kn_mat_ok(&a->dy, rows, cols) || a->dy.dtype != t)
        return -EINVAL;
    if (!kn_mat_ok(&a->gu, rows, 2 * cols) || !kn_mat_ok(&a->dgu, rows, 2 * cols))
        return -EINVAL;
    if (a->dgu.dtype != t || (a->y.p && (!kn_mat_ok(&a->y, rows, cols) || a->y.dtype != t)))
        return -EINVAL;
    return rows == 0 || cols == 0;
}

static inline int kn_check_gather(const struct kn_gather *a)
{
    if (!kn_mat_ok(&a->y, a->y.rows, a->y.cols) || a->y.dtype != a->x.dtype)
        return -EINVAL;
    if (!kn_mat_ok(&a->x, a->x.rows, a->y.cols))
        return -EINVAL;
    if (a->y.rows == 0 || a->y.cols == 0)
        return 1;
    return a->idx ? 0 : -EINVAL;
}

static inline int kn_check_logprob(const struct kn_logprob *a)
{
    if (!kn_mat_ok(&a->z, a->z.rows, a->z.cols) || a->z.dtype != KN_F32)
        return -EINVAL;
    if (a->grad && a->grad_dtype != KN_F32 && a->grad_dtype != KN_BF16)
        return -EINVAL;
    if (a->z.rows == 0)
        return 1;
    return a->z.cols > 0 && a->target ? 0 : -EINVAL;
}

static inline int kn_check_grad_sweep(const struct kn_grad_sweep *a)
{
    return a->n < 0 || !a->sweep || (a->n > 0 && !a->g) ? -EINVAL : 0;
}

static inline int kn_check_adamw(const struct kn_adamw *a)
{
    if (a->n < 0)
        return -EINVAL;
    if (a->n == 0)
        return 1;
    return a->p && a->m && a->v && a->g && a->sweep && a->step ? 0 : -EINVAL;
}

static inline int kn_check_adamw8(const struct kn_adamw8 *a)
{
    if (a->n < 0 || a->n_blocks > a->n ||
        a->n_blocks < a->n / KN_ADAMW8_BLOCK + !!(a->n % KN_ADAMW8_BLOCK))
        return -EINVAL;
    if (a->n == 0)
        return 1;
    if (!a->m32 != !a->v32)
        return -EINVAL;
    return a->p && a->g && a->m && a->v && a->m_scale && a->v_scale && a->block && a->sweep &&
                   a->step
               ? 0
               : -EINVAL;
}

/* Blocks that do not cover n in order: -EINVAL. Host memory only. */
static inline int kn_check_adamw8_blocks(const struct kn_adamw8 *a)
{
    int64_t at = 0;

    for (int64_t i = 0; i < a->n_blocks; i++) {
        const struct kn_adamw8_block *b = &a->block[i];
        if (b->at != at || b->n < 1 || b->n > KN_ADAMW8_BLOCK || b->n > a->n - at)
            return -EINVAL;
        if (b->full < -1 || (b->full >= 0 && !a->m32))
            return -EINVAL;
        at += b->n;
    }
    return at == a->n ? 0 : -EINVAL;
}

#endif
