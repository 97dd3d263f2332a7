/* engine_impl.h - what engine.c lays out and engine_pass.c runs over. Private. */
#ifndef WORKER_ENGINE_IMPL_H
#define WORKER_ENGINE_IMPL_H

#include "worker/engine.h"

struct engine_layer {
    struct kn_weight *qkv, *o, *gu, *down;
    float *norm_attn, *norm_mlp; /* (hidden) */
};

/* What the backward reads of a layer's forward. Matrices are (tokens, ...). */
struct engine_kept {
    void *x;                            /* (hidden) the layer's input                         */
    void *qkv;                          /* (q + 2 kv) after the rotation                      */
    void *o;                            /* (q) attention's result                             */
    void *x_mid;                        /* (hidden) after attention's residual                */
    void *gu;                           /* (2 intermediate); the backward overwrites it       */
    float *rstd_attn, *rstd_mlp;        /* ()                                                 */
    float *lse;                         /* (heads)                                            */
    float *s_qkv, *s_o, *s_gu, *s_down; /* (parts * r) of the adapter                   */
};

/* Index arrays of a micro-batch, packed one after the other: one copy down. */
struct engine_index {
    uint64_t *row_key;               /* (tokens)                                          */
    int32_t *ids, *pos;              /* (tokens)                                          */
    int32_t *cu_q, *cu_k;            /* (seqs + 1)                                        */
    int32_t *kv_idx;                 /* (kv rows) token row whose key it is               */
    int32_t *kv_start, *kv_back;     /* (tokens + 1), (kv rows): the same, inverted       */
    int32_t *head_row, *head_target; /* (head rows)                                    */
    int32_t *head_start, *head_back; /* (tokens + 1), (head rows): inverted            */
};

struct engine {
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
    struct model_config c;
    enum kn_dtype dtype; /* of activations */
    int r;               /* room for adapters up to this rank                          */
    int64_t q, kv;       /* heads * head_dim, kv_heads * head_dim                      */
    /* Leading dimensions. Matrices that products read end in room for an adapter's
     * columns where the backend can use it (kernels.h, lora_room). */
    int64_t ld_d, ld_h, ld_q, ld_o, ld_qkv, ld_kv, ld_f, ld_dy, ld_gu, ld_v, ld_dx, ld_h_head;
    int64_t max_tokens, max_head, max_kv, max_positions, chunk;
    int max_seqs;
    int64_t recompute; /* layers below this one are computed again by the backward     */
    bool per_use;
    size_t page;
    size_t logits_bytes;
    int64_t params; /* of the largest adapter to come */

    struct engine_layer *layers;
    struct kn_weight *head;
    float *norm;    /* (hidden)                                                        */
    float *cos_sin; /* (max_positions, head_dim)                                       */
    void *table;    /* (vocab, hidden)                                                 */

    struct engine_kept *kept; /* (layers)                                              */
    void *x_out;              /* (tokens, hidden): the last layer's output             */
    void *d_head;             /* (head, hidden): d logp / d x_out, unscaled            */

    void *h, *dh;          /* (tokens, hidden) a norm's output and its gradient             */
    void *dx;              /* (tokens, hidden) gradient of the residual stream              */
    void *y, *dy;          /* (tokens, intermediate) SwiGLU's output and its gradient       */
    void *kvs, *dkvs;      /* (max_kv, 2 kv) keys and values with shared prompts copied     */
    void *d_o;             /* (tokens, q)                                                   */
    void *dqkv;            /* (tokens, q + 2 kv)                                            */
    float *delta;          /* (tokens, heads)                                               */
    float *ds;             /* (tokens, 3 r)                                                 */
    void *x_head, *h_head; /* (chunk, hidden)                                          */
    float *rstd_head;      /* (chunk)                                                  */
    float *z;              /* (chunk, vocab) logits                                    */
    float *out;            /* (5, head rows of the batch) logp, lse, sum_z, sum_pz, and
                              hit as int32: one copy up                                */
    float *coef;           /* (max_head)                                               */
    void *index;           /* engine_index's block                                     */

    void *arena; /* everything above but weights                                       */
    size_t bytes;
    void *host_index; /* staging                                                       */
    float *host_coef, *host_out;
    int32_t *host_head_back; /* (max_head) the kept batch's head_back                  */

    const struct batch *kept_batch; /* whose backward may follow; NULL: none           */
    int64_t kept_kv;                /* its key rows; 0: no prompt is shared            */
    struct engine_index kept_index;
    struct kn_attn_shape kept_shape;
};

/* ---- engine_plan.c ---- */

/* Sizes and choices of *e from what is asked; e->ops and counts, no memory. */
int engine_sizes(struct engine *e, const struct engine_opts *o, const struct model_config *c);
void engine_plan_of(const struct engine *e, const struct spec *s, struct engine_plan *p);
/* Hands the arena out: every pointer of *e and its layers. */
void engine_carve(struct engine *e);
size_t engine_index_bytes(const struct engine *e);
enum kn_dtype engine_load_dtype(const struct spec *s, const struct model_config *c);
static inline size_t engine_width(const struct engine *e)
{
    return e->dtype == KN_F32 ? 4 : 2;
}

/* A layer's weights by place; parts have n and dtype (and data, to be opened). */
enum engine_weight { ENGINE_QKV, ENGINE_O, ENGINE_GU, ENGINE_DOWN, ENGINE_HEAD, ENGINE_WEIGHTS };
struct kn_weight_desc engine_weight_desc(const struct engine *e, const struct spec *s,
                                         enum engine_weight which,
                                         const struct kn_weight_part *parts);

/* ---- engine_index.c ---- */

/* One pass; what its steps share. */
struct pass {
    struct engine *e;
    const struct batch *b;
    const struct adapter *a; /* NULL: off */
    bool keep;
    int64_t t;  /* tokens */
    int64_t kv; /* rows of kvs; 0: keys lie in qkv */
    struct engine_index ix;
    struct kn_attn_shape shape;
    uint64_t drop_seed;
    float drop_p;
    struct err *err;
};
int engine_batch_check(const struct engine *e, const struct batch *b, int64_t *ret_kv,
                       struct err *err);
int engine_index_send(struct pass *p);

#endif
