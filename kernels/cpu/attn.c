/* attn.c - attention: offsets checked, (sequence, key head) pairs dealt to threads
 * as they come free. */
#include <omp.h>

#include "cpu.h"

static int team(const struct kn_ctx *ctx, const struct kn_attn_shape *s, int64_t q_rows)
{
    return cpu_team(ctx, q_rows * s->heads * s->head_dim * s->max_k);
}

int cpu_attn_fwd(struct kn_ctx *ctx, const struct kn_attn_fwd *a)
{
    const struct kn_attn_shape *s = &a->shape;
    const int64_t items = (int64_t)s->n_seqs * s->kv_heads;
    int r = kn_check_attn_fwd(a);

    if (r)
        return r < 0 ? r : 0;
    if (ref_attn_offsets(s, a->q.rows, a->k.rows))
        return -EINVAL;
    r = cpu_scratch(ctx, ctx->vec->attn_fwd_bytes(s), 0);
    if (r)
        return r;
#pragma omp parallel for num_threads(team(ctx, s, a->q.rows)) schedule(dynamic)
    for (int64_t i = 0; i < items; i++)
        ctx->vec->attn_fwd(a, (int)(i / s->kv_heads), (int)(i % s->kv_heads),
                           ctx->scratch[omp_get_thread_num()]);
    return 0;
}

static void zero_rows(const struct kn_mat *m)
{
    const size_t size = m->dtype == KN_BF16 ? 2 : 4;

    for (int64_t r = 0; r < m->rows; r++)
        memset((char *)m->p + (size_t)(r * m->ld) * size, 0, (size_t)m->cols * size);
}

int cpu_attn_bwd(struct kn_ctx *ctx, const struct kn_attn_bwd *a)
{
    const struct kn_attn_shape *s = &a->shape;
    const int64_t items = (int64_t)s->n_seqs * s->kv_heads;
    int r = kn_check_attn_bwd(a);

    if (r)
        return r < 0 ? r : 0;
    if (ref_attn_offsets(s, a->q.rows, a->k.rows))
        return -EINVAL;
    r = cpu_scratch(ctx, ctx->vec->attn_bwd_bytes(s), 0);
    if (r)
        return r;
    if (s->n_seqs == 0 || s->cu_q[0] > 0 || s->cu_q[s->n_seqs] < a->q.rows)
        zero_rows(&a->dq); /* rows of no sequence */
    if (s->n_seqs == 0 || s->cu_k[0] > 0 || s->cu_k[s->n_seqs] < a->k.rows) {
        zero_rows(&a->dk);
        zero_rows(&a->dv);
    }
#pragma omp parallel for num_threads(team(ctx, s, a->q.rows)) schedule(dynamic)
    for (int64_t i = 0; i < items; i++)
        ctx->vec->attn_bwd(a, (int)(i / s->kv_heads), (int)(i % s->kv_heads),
                           ctx->scratch[omp_get_thread_num()]);
    return 0;
}
