/* engine_pass.c - forward and backward over one packed micro-batch: engine.h's passes.
 *
 * Every row's numbers depend on its own sequence alone (kernels.h), so what is in
 * the batch beside a sequence, and where a shared prompt lies, changes no bit. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "worker/engine_impl.h"

static int failed(const struct pass *p, int r, const char *what, int64_t layer)
{
    return r < 0 ? err_set(p->err, r, "%s of layer %lld failed: %s", what, (long long)layer,
                           strerror(-r))
                 : r;
}

static struct kn_mat mat(const struct engine *e, void *at, int64_t rows, int64_t cols, int64_t ld)
{
    return (struct kn_mat){.p = at, .rows = rows, .cols = cols, .ld = ld, .dtype = e->dtype};
}

/* Columns [c0, c0 + cols) of m. */
static struct kn_mat columns(const struct engine *e, struct kn_mat m, int64_t c0, int64_t cols)
{
    m.p = (char *)m.p + (size_t)c0 * engine_width(e);
    m.cols = cols;
    return m;
}

/* The adapter on one fused linear: its parts, and the segment that covers the batch. */
struct linear_lora {
    struct kn_lora parts[KN_PARTS_MAX];
    struct kn_lora_seg seg;
    int n_segs;
    int64_t s_cols;
    struct kn_dropout dropout;
};

static void lora_of(const struct pass *p, int64_t layer, enum lora_target first, int n_parts,
                    struct linear_lora *l)
{
    const struct adapter *a = p->a;

    *l = (struct linear_lora){0};
    for (int i = 0; a && i < n_parts; i++) {
        const int at = a->index[layer * LORA_TARGETS + first + i];
        if (at < 0)
            continue;
        const struct lora_module *m = &a->modules[at];
        l->parts[i] = (struct kn_lora){
            .a = a->p + m->a_off,
            .b = a->p + m->b_off,
            .da = a->g + m->a_off,
            .db = a->g + m->b_off,
            .r = a->r,
            .scale = a->scale,
        };
        l->s_cols += a->r;
    }
    if (l->s_cols == 0)
        return;
    l->seg = (struct kn_lora_seg){.row0 = 0, .rows = p->t, .parts = l->parts};
    l->n_segs = 1;
    if (p->drop_p > 0)
        l->dropout = (struct kn_dropout){.p = p->drop_p,
                                         .seed = p->drop_seed,
                                         .stream = (uint32_t)(layer * LORA_TARGETS + first),
                                         .row_key = p->ix.row_key};
}

struct linear_at {
    int64_t layer;
    enum lora_target first;
    int n_parts;
    const struct kn_weight *w;
    float *s;
    const struct kn_weight *after_fwd, *after_bwd; /* whose products come next, or NULL  */
};

/* Weights that are dequantised for each product: the next one's turn begins. */
static int soon(const struct pass *p, const struct kn_weight *next)
{
    return p->e->per_use && next ? p->e->ops->weight_soon(p->e->ctx, next) : 0;
}

static int linear_fwd(const struct pass *p, const struct linear_at *at, struct kn_mat y,
                      struct kn_mat x, const struct kn_mat *residual)
{
    struct linear_lora l;
    const int r = soon(p, at->after_fwd);

    if (r < 0)
        return r;
    lora_of(p, at->layer, at->first, at->n_parts, &l);
    return p->e->ops->linear_fwd(p->e->ctx, &(struct kn_linear_fwd){
                                                .y = y,
                                                .x = x,
                                                .w = at->w,
                                                .residual = residual,
                                                .segs = &l.seg,
                                                .n_segs = l.n_segs,
                                                .s = l.n_segs ? at->s : NULL,
                                                .s_cols = l.s_cols,
                                                .dropout = l.dropout,
                                                .x_room = x.ld - x.cols,
                                            });
}

static bool has_lora(const struct pass *p, const struct linear_at *at)
{
    struct linear_lora l;

    lora_of(p, at->layer, at->first, at->n_parts, &l);
    return l.n_segs > 0;
}

/* dx.p NULL: not wanted. */
static int linear_bwd(const struct pass *p, const struct linear_at *at, struct kn_mat dx,
                      struct kn_mat dy, struct kn_mat x)
{
    struct linear_lora l;

    lora_of(p, at->layer, at->first, at->n_parts, &l);
    if (!dx.p && l.n_segs == 0)
        return 0;
    const int r = soon(p, at->after_bwd);
    if (r < 0)
        return r;
    return p->e->ops->linear_bwd(p->e->ctx, &(struct kn_linear_bwd){
                                                .dx = dx,
                                                .dy = dy,
                                                .x = x,
                                                .w = at->w,
                                                .segs = &l.seg,
                                                .n_segs = l.n_segs,
                                                .s = l.n_segs ? at->s : NULL,
                                                .s_cols = l.s_cols,
                                                .ds = p->e->ds,
                                                .dropout = l.dropout,
                                                .dy_room = dy.ld - dy.cols,
                                            });
}

static int norm_fwd(const struct pass *p, struct kn_mat y, struct kn_mat x, const float *w,
                    float *rstd)
{
    return p->e->ops->rmsnorm_fwd(
        p->e->ctx, &(struct kn_rmsnorm_fwd){
                       .y = y, .rstd = rstd, .x = x, .w = w, .eps = p->e->c.rms_norm_eps});
}

/* dx += the gradient through the norm. */
static int norm_bwd_add(const struct pass *p, struct kn_mat dx, struct kn_mat dy, struct kn_mat x,
                        const float *w, const float *rstd)
{
    return p->e->ops->rmsnorm_bwd(
        p->e->ctx,
        &(struct kn_rmsnorm_bwd){.dx = dx, .add_dx = true, .dy = dy, .x = x, .w = w, .rstd = rstd});
}

/* The matrices of a layer for this batch. Without a backward to come all layers
 * share the first one's, and the residual stream alternates between two. */
struct at_layer {
    const struct engine_layer *w;
    const struct engine_kept *k;
    struct kn_mat x, x_next, qkv, q, k_new, v_new, kv_new, qk, o, x_mid, gu, h, y;
    struct linear_at qkv_at, o_at, gu_at, down_at;
};

static void layer_at(const struct pass *p, int64_t l, struct at_layer *m)
{
    const struct engine *e = p->e;
    const struct engine_kept *k = &e->kept[p->keep ? l : 0];
    const int64_t t = p->t, d = e->c.hidden, f = e->c.intermediate;
    const struct engine_layer *w = &e->layers[l], *down = l > 0 ? w - 1 : NULL;
    const struct kn_weight *above = l + 1 < e->c.layers ? w[1].qkv : NULL;
    const struct kn_weight *below = !down ? NULL : l - 1 < e->recompute ? down->qkv : down->down;
    void *x = k->x, *next = l + 1 < e->c.layers ? e->kept[l + 1].x : e->x_out;

    if (!p->keep) {
        x = (e->c.layers - l) % 2 ? k->x : e->x_out; /* the last one ends in x_out */
        next = (e->c.layers - l) % 2 ? e->x_out : k->x;
    }
    *m = (struct at_layer){
        .w = w,
        .k = k,
        .x = mat(e, x, t, d, e->ld_d),
        .x_next = mat(e, next, t, d, e->ld_d),
        .qkv = mat(e, k->qkv, t, e->q + 2 * e->kv, e->ld_qkv),
        .o = mat(e, k->o, t, e->q, e->ld_o),
        .x_mid = mat(e, k->x_mid, t, d, e->ld_d),
        .gu = mat(e, k->gu, t, 2 * f, e->ld_gu),
        .h = mat(e, e->h, t, d, e->ld_h),
        .y = mat(e, e->y, t, f, e->ld_f),
        .qkv_at = {l, LORA_Q, 3, w->qkv, k->s_qkv, w->o, below},
        .o_at = {l, LORA_O, 1, w->o, k->s_o, w->gu, w->qkv},
        .gu_at = {l, LORA_GATE, 2, w->gu, k->s_gu, w->down, w->o},
        .down_at = {l, LORA_DOWN, 1, w->down, k->s_down, above, w->gu},
    };
    m->q = columns(e, m->qkv, 0, e->q);
    m->qk = columns(e, m->qkv, 0, e->q + e->kv);
    m->k_new = columns(e, m->qkv, e->q, e->kv);
    m->v_new = columns(e, m->qkv, e->q + e->kv, e->kv);
    m->kv_new = columns(e, m->qkv, e->q, 2 * e->kv);
}

/* Rotates the query and the key heads, which lie side by side. */
static int rope(const struct pass *p, struct kn_mat qk, bool inverse)
{
    const struct engine *e = p->e;

    return e->ops->rope(e->ctx, &(struct kn_rope){.x = qk,
                                                  .pos = p->ix.pos,
                                                  .cos_sin = e->cos_sin,
                                                  .heads = (int)(e->c.heads + e->c.kv_heads),
                                                  .head_dim = (int)e->c.head_dim,
                                                  .inverse = inverse});
}

/* Where attention reads keys and values: in place, or gathered with the shared
 * prompts' rows before each reply's own. */
static int keys(const struct pass *p, const struct at_layer *m, struct kn_mat *ret_k,
                struct kn_mat *ret_v)
{
    const struct engine *e = p->e;

    *ret_k = m->k_new;
    *ret_v = m->v_new;
    if (p->kv == 0)
        return 0;
    const struct kn_mat kvs = mat(e, e->kvs, p->kv, 2 * e->kv, e->ld_kv);
    *ret_k = columns(e, kvs, 0, e->kv);
    *ret_v = columns(e, kvs, e->kv, e->kv);
    return e->ops->gather(e->ctx,
                          &(struct kn_gather){.y = kvs, .x = m->kv_new, .idx = p->ix.kv_idx});
}

static int attention_fwd(const struct pass *p, const struct at_layer *m)
{
    const struct engine *e = p->e;
    struct kn_mat k, v;

    const int r = keys(p, m, &k, &v);
    if (r < 0)
        return r;
    return e->ops->attn_fwd(
        e->ctx, &(struct kn_attn_fwd){
                    .o = m->o, .lse = m->k->lse, .q = m->q, .k = k, .v = v, .shape = p->shape});
}

/* The layer up to the MLP's gate: all that the backward reads, but for down's S. */
static int layer_inner(const struct pass *p, const struct at_layer *m, int64_t l)
{
    int r;

    if ((r = norm_fwd(p, m->h, m->x, m->w->norm_attn, m->k->rstd_attn)) < 0 ||
        (r = linear_fwd(p, &m->qkv_at, m->qkv, m->h, NULL)) < 0 ||
        (r = rope(p, m->qk, false)) < 0 || (r = attention_fwd(p, m)) < 0 ||
        (r = linear_fwd(p, &m->o_at, m->x_mid, m->o, &m->x)) < 0)
        return failed(p, r, "the attention", l);
    if ((r = norm_fwd(p, m->h, m->x_mid, m->w->norm_mlp, m->k->rstd_mlp)) < 0 ||
        (r = linear_fwd(p, &m->gu_at, m->gu, m->h, NULL)) < 0)
        return failed(p, r, "the MLP", l);
    return 0;
}

static int layer_fwd(const struct pass *p, int64_t l)
{
    const struct engine *e = p->e;
    struct at_layer m;

    layer_at(p, l, &m);
    int r = layer_inner(p, &m, l);
    if (r < 0)
        return r;
    if ((r = e->ops->swiglu_fwd(e->ctx, &(struct kn_swiglu_fwd){.y = m.y, .gu = m.gu})) < 0 ||
        (r = linear_fwd(p, &m.down_at, m.x_next, m.y, &m.x_mid)) < 0)
        return failed(p, r, "the MLP", l);
    return 0;
}

/* m.x_mid's gradient from x_next's, both in dx. Overwrites gu. */
static int mlp_bwd(const struct pass *p, const struct at_layer *m, struct kn_mat dx)
{
    const struct engine *e = p->e;
    const struct kn_mat dy = mat(e, e->dy, p->t, e->c.intermediate, e->ld_dy);
    int r = 0;

    if (has_lora(p, &m->down_at))
        r = e->ops->swiglu_fwd(e->ctx, &(struct kn_swiglu_fwd){.y = m->y, .gu = m->gu});
    if (r < 0 || (r = linear_bwd(p, &m->down_at, dy, dx, m->y)) < 0 ||
        (r = e->ops->swiglu_bwd(e->ctx,
                                &(struct kn_swiglu_bwd){.dgu = m->gu, .dy = dy, .gu = m->gu})) < 0)
        return r;
    if (has_lora(p, &m->gu_at) && (r = norm_fwd(p, m->h, m->x_mid, m->w->norm_mlp, NULL)) < 0)
        return r;
    const struct kn_mat dh = mat(e, e->dh, p->t, e->c.hidden, e->ld_d);
    if ((r = linear_bwd(p, &m->gu_at, dh, m->gu, m->h)) < 0)
        return r;
    return norm_bwd_add(p, dx, dh, m->x_mid, m->w->norm_mlp, m->k->rstd_mlp);
}

/* dq, dk, dv side by side in dqkv; the shared prompts' parts added up. */
static int attention_bwd(const struct pass *p, const struct at_layer *m, struct kn_mat dqkv)
{
    const struct engine *e = p->e;
    struct kn_mat k, v, dk = columns(e, dqkv, e->q, e->kv);
    struct kn_mat dv = columns(e, dqkv, e->q + e->kv, e->kv);
    const struct kn_mat dkvs = mat(e, e->dkvs, p->kv, 2 * e->kv, e->ld_kv);
    int r;

    if (p->kv > 0) {
        dk = columns(e, dkvs, 0, e->kv);
        dv = columns(e, dkvs, e->kv, e->kv);
    }
    if ((r = keys(p, m, &k, &v)) < 0 ||
        (r = e->ops->attn_bwd(e->ctx, &(struct kn_attn_bwd){
                                          .dq = columns(e, dqkv, 0, e->q),
                                          .dk = dk,
                                          .dv = dv,
                                          .d_o = mat(e, e->d_o, p->t, e->q, e->ld_q),
                                          .o = m->o,
                                          .q = m->q,
                                          .k = k,
                                          .v = v,
                                          .lse = m->k->lse,
                                          .delta = e->delta,
                                          .shape = p->shape,
                                      })) < 0)
        return r;
    if (p->kv == 0)
        return 0;
    return e->ops->gather(e->ctx, &(struct kn_gather){.y = columns(e, dqkv, e->q, 2 * e->kv),
                                                      .x = dkvs,
                                                      .start = p->ix.kv_start,
                                                      .idx = p->ix.kv_back});
}

/* dx: the gradient of the layer's output on entry, of its input on return; in the
 * last layer to be walked (`last`) nobody reads that. */
static int layer_bwd(const struct pass *p, int64_t l, bool last)
{
    const struct engine *e = p->e;
    const struct kn_mat dx = mat(e, e->dx, p->t, e->c.hidden, e->ld_dx);
    const struct kn_mat d_o = mat(e, e->d_o, p->t, e->q, e->ld_q);
    const struct kn_mat dqkv = mat(e, e->dqkv, p->t, e->q + 2 * e->kv, e->ld_qkv);
    const struct kn_mat dh = mat(e, e->dh, p->t, e->c.hidden, e->ld_d), none = {0};
    struct at_layer m;
    int r;

    layer_at(p, l, &m);
    if (l < e->recompute && (r = layer_inner(p, &m, l)) < 0)
        return r;
    if ((r = mlp_bwd(p, &m, dx)) < 0)
        return failed(p, r, "the MLP's gradient", l);
    const bool stop = last && !has_lora(p, &m.qkv_at); /* nothing below wants a gradient */
    if ((r = linear_bwd(p, &m.o_at, stop ? none : d_o, dx, m.o)) < 0)
        return failed(p, r, "the attention's gradient", l);
    if (stop)
        return 0;
    if ((r = attention_bwd(p, &m, dqkv)) < 0 ||
        (r = rope(p, columns(e, dqkv, 0, e->q + e->kv), true)) < 0 ||
        (has_lora(p, &m.qkv_at) && (r = norm_fwd(p, m.h, m.x, m.w->norm_attn, NULL)) < 0) ||
        (r = linear_bwd(p, &m.qkv_at, last ? none : dh, dqkv, m.h)) < 0 ||
        (!last && (r = norm_bwd_add(p, dx, dh, m.x, m.w->norm_attn, m.k->rstd_attn)) < 0))
        return failed(p, r, "the attention's gradient", l);
    return 0;
}

/* Logits of rows [r0, r0 + n) of the head, their log-probs, and, kept, the
 * gradient of each row's logp by its x_out row, before any coefficient. */
static int head_rows(const struct pass *p, int64_t r0, int64_t n)
{
    const struct engine *e = p->e;
    const struct kn_mat x = mat(e, e->x_head, n, e->c.hidden, e->ld_d);
    const struct kn_mat h = mat(e, e->h_head, n, e->c.hidden, e->ld_h_head);
    const struct kn_mat x_out = mat(e, e->x_out, p->t, e->c.hidden, e->ld_d);
    const struct kn_mat z = {e->z, n, e->c.vocab, e->ld_v, KN_F32};
    struct kn_mat dz = z;
    const int64_t m = p->b->n_head;
    int r;

    if ((r = e->ops->gather(
             e->ctx, &(struct kn_gather){.y = x, .x = x_out, .idx = p->ix.head_row + r0})) < 0 ||
        (r = norm_fwd(p, h, x, e->norm, e->rstd_head)) < 0 ||
        (r = e->ops->linear_fwd(
             e->ctx,
             &(struct kn_linear_fwd){.y = z, .x = h, .w = e->head, .x_room = h.ld - h.cols})) < 0 ||
        (r = e->ops->logprob(e->ctx,
                             &(struct kn_logprob){.z = z,
                                                  .target = p->ix.head_target + r0,
                                                  .logp = e->out + r0,
                                                  .lse = e->out + m + r0,
                                                  .sum_z = e->out + 2 * m + r0,
                                                  .sum_pz = e->out + 3 * m + r0,
                                                  .hit = (int32_t *)(void *)(e->out + 4 * m + r0),
                                                  .grad = p->keep,
                                                  .grad_dtype = e->dtype})) < 0)
        return r;
    if (!p->keep)
        return 0;
    if (e->dtype == KN_BF16) {
        dz.dtype = KN_BF16;
        dz.ld = 2 * e->ld_v;
    }
    const struct kn_mat d = mat(e, (char *)e->d_head + (size_t)(r0 * e->ld_d) * engine_width(e), n,
                                e->c.hidden, e->ld_d);
    r = e->ops->linear_bwd(
        e->ctx,
        &(struct kn_linear_bwd){.dx = h, .dy = dz, .w = e->head, .dy_room = dz.ld - dz.cols});
    if (r < 0)
        return r;
    return e->ops->rmsnorm_bwd(
        e->ctx,
        &(struct kn_rmsnorm_bwd){.dx = d, .dy = h, .x = x, .w = e->norm, .rstd = e->rstd_head});
}

/* ---- passes -------------------------------------------------------------------- */

static void dropout_set(struct pass *p, uint64_t drop)
{
    if (p->keep && drop != 0 && p->a && p->a->dropout > 0) {
        p->drop_p = p->a->dropout;
        p->drop_seed = drop;
    }
}

static int out_fetch(const struct pass *p, struct head_out *out)
{
    const struct engine *e = p->e;
    const size_t n = (size_t)p->b->n_head, bytes = n * sizeof(float);
    void *const to[5] = {out->logp, out->lse, out->sum_z, out->sum_pz, out->hit};
    int r = bytes ? e->ops->copy(e->ctx, e->host_out, e->out, 5 * bytes, KN_TO_HOST) : 0;

    if (r == 0)
        r = e->ops->sync(e->ctx);
    for (size_t i = 0; r == 0 && bytes > 0 && i < 5; i++)
        memcpy(to[i], e->host_out + i * n, bytes);
    return r < 0 ? err_set(p->err, r, "the forward pass failed: %s", strerror(-r)) : 0;
}

int engine_forward(struct engine *e, const struct batch *b, const struct adapter *a, bool keep,
                   uint64_t drop, struct head_out *out, struct err *err)
{
    struct pass p = {.e = e, .b = b, .a = a, .keep = keep, .t = b->n_tokens, .err = err};
    struct at_layer first;
    int r;

    e->kept_batch = NULL;
    if (a && a->r > e->r)
        return err_set(err, -EINVAL, "an adapter of rank %d; the engine was opened for %d", a->r,
                       e->r);
    if ((r = engine_batch_check(e, b, &p.kv, err)) < 0)
        return r;
    if (head_out_reserve(out, b->n_head) < 0)
        return err_set(err, -ENOMEM, "out of memory for the log-probs of a micro-batch");
    if ((r = engine_index_send(&p)) < 0)
        return r;
    dropout_set(&p, drop);
    layer_at(&p, 0, &first);
    r = e->ops->embed(
        e->ctx, &(struct kn_embed){.y = first.x,
                                   .table = mat(e, e->table, e->c.vocab, e->c.hidden, e->ld_d),
                                   .ids = p.ix.ids});
    if (r < 0)
        return failed(&p, r, "the embedding", 0);
    for (int64_t l = 0; l < e->c.layers; l++)
        if ((r = layer_fwd(&p, l)) < 0)
            return r;
    for (int64_t r0 = 0; r0 < b->n_head; r0 += e->chunk) {
        r = head_rows(&p, r0, b->n_head - r0 < e->chunk ? b->n_head - r0 : e->chunk);
        if (r < 0)
            return err_set(err, r, "the head failed: %s", strerror(-r));
    }
    if ((r = out_fetch(&p, out)) < 0)
        return r;
    if (keep) {
        e->kept_batch = b;
        e->kept_kv = p.kv;
        e->kept_index = p.ix;
        e->kept_shape = p.shape;
    }
    return 0;
}

/* dx = the coefficients' weighted sum of the head rows' gradients, row by row. */
static int head_bwd(const struct pass *p, const float *coef)
{
    struct engine *e = p->e;
    const int64_t n = p->b->n_head;

    for (int64_t i = 0; i < n; i++)
        e->host_coef[i] = coef[e->host_head_back[i]];
    if (n > 0) {
        const int r =
            e->ops->copy(e->ctx, e->coef, e->host_coef, (size_t)n * sizeof(float), KN_TO_DEVICE);
        if (r < 0)
            return r;
    }
    return e->ops->gather(e->ctx,
                          &(struct kn_gather){.y = mat(e, e->dx, p->t, e->c.hidden, e->ld_dx),
                                              .x = mat(e, e->d_head, n, e->c.hidden, e->ld_d),
                                              .start = p->ix.head_start,
                                              .idx = p->ix.head_back,
                                              .coef = e->coef});
}

int engine_backward(struct engine *e, const struct batch *b, struct adapter *a, uint64_t drop,
                    const float *coef, struct err *err)
{
    struct pass p = {.e = e,
                     .b = b,
                     .a = a,
                     .keep = true,
                     .t = b->n_tokens,
                     .kv = e->kept_kv,
                     .ix = e->kept_index,
                     .shape = e->kept_shape,
                     .err = err};

    if (!a || a->n_modules == 0 || e->kept_batch != b)
        return err_set(err, -EINVAL, "a backward pass without its forward pass");
    e->kept_batch = NULL; /* gu is about to be overwritten */
    dropout_set(&p, drop);
    const struct engine_layer *top = &e->layers[e->c.layers - 1];
    int r = soon(&p, e->recompute == e->c.layers ? top->qkv : top->down);
    if (r == 0)
        r = head_bwd(&p, coef);
    if (r < 0)
        return err_set(err, r, "the head's gradient failed: %s", strerror(-r));
    const int64_t lowest = a->modules[0].layer;
    for (int64_t l = e->c.layers - 1; l >= lowest; l--)
        if ((r = layer_bwd(&p, l, l == lowest)) < 0)
            return r;
    return 0;
}
