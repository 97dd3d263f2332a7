/* cases.c - calls of the larger operations with all their operands. */
#include "tests/support/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

void linear_weight(struct kit *k, const struct linear_case *c, struct kn_weight **ret)
{
    struct kn_weight_part parts[KN_PARTS_MAX];
    struct kn_weight_desc d = {.parts = parts,
                               .n_parts = c->n_parts,
                               .k = c->k,
                               .quant = c->quant,
                               .double_quant = c->double_quant,
                               .per_use = c->per_use,
                               .load_dtype = c->load_dtype,
                               .no_backward = c->no_dx};

    for (int i = 0; i < c->n_parts; i++) { /* host memory, unlike everything else */
        const size_t n = (size_t)(c->n[i] * c->k), bytes = k->wide ? sizeof(double) : sizeof(float);
        void *host = kit_down(k, kit_vec(k, (int64_t)n, 100 + (uint64_t)i, 0.5, 0.0), n * bytes);
        parts[i] = (struct kn_weight_part){.data = host, .dtype = KN_F32, .n = c->n[i]};
    }
    assert_int_equal(k->ops->weight_open(k->ctx, &d, ret), 0);
    for (int i = 0; i < c->n_parts; i++)
        free((void *)(uintptr_t)parts[i].data);
}

/* Segments over rows [0, m), an eighth of the rows left out between two. */
static void make_segs(struct kit *k, const struct linear_case *c, struct linear_call *call)
{
    const int64_t share = c->n_segs ? c->m / c->n_segs : 0;

    for (int s = 0; s < c->n_segs; s++) {
        call->segs[s].parts = call->lora[s];
        call->segs[s].row0 = s * share;
        call->segs[s].rows = s == c->n_segs - 1 ? c->m - s * share : share - share / 8;
        for (int i = 0; i < c->n_parts; i++) {
            struct kn_lora *l = &call->lora[s][i];
            const uint64_t seed = 200 + (uint64_t)(s * 10 + i);
            memset(l, 0, sizeof *l);
            l->r = c->r[i];
            if (l->r == 0)
                continue;
            l->scale = 0.75f;
            l->a = kit_vec(k, l->r * c->k, seed, 0.25, 0.0);
            l->b = kit_vec(k, c->n[i] * l->r, c->b_zero ? 0 : seed + 100, 0.25, 0.0);
            l->da = kit_vec(k, l->r * c->k, seed + 200, 0.5, 0.0);
            l->db = kit_vec(k, c->n[i] * l->r, seed + 300, 0.5, 0.0);
        }
    }
}

void linear_operands(struct kit *k, const struct linear_case *c, struct linear_call *call)
{
    const enum kn_dtype t = k->dtype, out = c->y_float ? KN_F32 : t;
    uint64_t *keys = kit_alloc(k, (size_t)c->m * sizeof *keys);
    uint64_t *host = malloc((size_t)c->m * sizeof *host);
    struct kn_weight *w = call->w;

    memset(call, 0, sizeof *call);
    call->w = w;
    for (int i = 0; i < c->n_parts; i++) {
        call->n += c->n[i];
        call->s_cols += c->r[i];
    }
    call->s_cols += 3; /* wider than needed is allowed */
    assert_non_null(host);
    for (int64_t m = 0; m < c->m; m++)
        host[m] = (uint64_t)(c->row0 + m) * 0x100000001u;
    kit_put(k, keys, host, (size_t)c->m * sizeof *keys);
    free(host);
    make_segs(k, c, call);
    call->x = kit_mat(k, c->m, c->k, t, 1, c->row0, 1.0);
    call->y = kit_mat(k, c->m, call->n, out, 0, 0, 0.0);
    call->residual = kit_mat(k, c->m, call->n, out, 2, c->row0, 1.0);
    call->dy = kit_mat(k, c->m, call->n, t, 3, c->row0, 1.0);
    call->dx = kit_mat(k, c->m, c->k, t, c->add_dx ? 4 : 0, c->row0, 1.0);
    call->fwd = (struct kn_linear_fwd){
        .y = call->y,
        .x = call->x,
        .w = call->w,
        .bias = c->bias ? kit_vec(k, call->n, 5, 1.0, 0.0) : NULL,
        .residual = c->residual ? &call->residual : NULL,
        .segs = call->segs,
        .n_segs = c->n_segs,
        .s = c->n_segs ? kit_vec(k, c->m * call->s_cols, 0, 0.0, 0.0) : NULL,
        .s_cols = call->s_cols,
        .dropout = {.p = c->dropout, .seed = 0x123456789abcu, .stream = 7, .row_key = keys}};
    call->bwd = (struct kn_linear_bwd){
        .dx = call->dx,
        .add_dx = c->add_dx,
        .dy = call->dy,
        .x = call->x,
        .w = call->w,
        .segs = call->segs,
        .n_segs = c->n_segs,
        .s = call->fwd.s,
        .s_cols = call->s_cols,
        .ds = c->n_segs ? kit_vec(k, c->m * call->s_cols, 0, 0.0, 0.0) : NULL,
        .dropout = call->fwd.dropout};
    if (c->no_dx)
        call->bwd.dx.p = NULL;
}

void linear_make(struct kit *k, const struct linear_case *c, struct linear_call *call)
{
    linear_weight(k, c, &call->w);
    linear_operands(k, c, call);
}

void attn_make(struct kit *k, const struct attn_case *c, struct attn_call *call)
{
    const int64_t qc = (int64_t)c->heads * c->head_dim, kc = (int64_t)c->kv_heads * c->head_dim;
    int32_t *cu_q = call->cu_q, *cu_k = call->cu_k;
    struct kn_attn_shape *s = &call->shape;

    memset(call, 0, sizeof *call);
    cu_q[0] = cu_k[0] = c->gap ? 3 : 0;
    for (int i = 0; i < c->n_seqs; i++) {
        cu_q[i + 1] = cu_q[i] + c->lq[i];
        cu_k[i + 1] = cu_k[i] + c->lk[i];
        s->max_q = c->lq[i] > s->max_q ? c->lq[i] : s->max_q;
        s->max_k = c->lk[i] > s->max_k ? c->lk[i] : s->max_k;
    }
    const int64_t behind = c->gap ? 2 : 0;
    const int64_t q_rows = cu_q[c->n_seqs] + behind, k_rows = cu_k[c->n_seqs] + behind;
    s->cu_q = kit_ints(k, cu_q, CASE_SEQS + 1);
    s->cu_k = kit_ints(k, cu_k, CASE_SEQS + 1);
    s->n_seqs = c->n_seqs;
    s->heads = c->heads;
    s->kv_heads = c->kv_heads;
    s->head_dim = c->head_dim;
    s->window = c->window;
    s->scale = (float)(1.0 / sqrt((double)c->head_dim));
    call->q = kit_mat(k, q_rows, qc, k->dtype, 0, 0, 0.0);
    call->k = kit_mat(k, k_rows, kc, k->dtype, 0, 0, 0.0);
    call->v = kit_mat(k, k_rows, kc, k->dtype, 0, 0, 0.0);
    call->o = kit_mat(k, q_rows, qc, k->dtype, 0, 0, 0.0);
    call->d_o = kit_mat(k, q_rows, qc, k->dtype, 0, 0, 0.0);
    call->dq = kit_mat(k, q_rows, qc, k->dtype, 9, 0, 1.0);
    call->dk = kit_mat(k, k_rows, kc, k->dtype, 9, 0, 1.0);
    call->dv = kit_mat(k, k_rows, kc, k->dtype, 9, 0, 1.0);
    for (int i = 0; i < c->n_seqs; i++) {
        const int64_t first = (int64_t)(c->first + i) * 10000;
        kit_fill(k, &call->q, cu_q[i], c->lq[i], 11, first, 1.0);
        kit_fill(k, &call->k, cu_k[i], c->lk[i], 12, first, 1.0);
        kit_fill(k, &call->v, cu_k[i], c->lk[i], 13, first, 1.0);
        kit_fill(k, &call->d_o, cu_q[i], c->lq[i], 14, first, 1.0);
    }
    call->lse = kit_vec(k, call->q.rows * c->heads, 0, 0.0, 0.0);
    call->delta = kit_vec(k, call->q.rows * c->heads, 0, 0.0, 0.0);
    call->fwd = (struct kn_attn_fwd){
        .o = call->o, .lse = call->lse, .q = call->q, .k = call->k, .v = call->v, .shape = *s};
    call->bwd = (struct kn_attn_bwd){.dq = call->dq,
                                     .dk = call->dk,
                                     .dv = call->dv,
                                     .d_o = call->d_o,
                                     .o = call->o,
                                     .q = call->q,
                                     .k = call->k,
                                     .v = call->v,
                                     .lse = call->lse,
                                     .delta = call->delta,
                                     .shape = *s};
}
