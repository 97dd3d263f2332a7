/* engine_plan.c - the sizes of an engine: how its memory is laid out, by arithmetic alone. */
#include <errno.h>

#include "worker/engine_impl.h"

enum { ENGINE_ALIGN = 256, ENGINE_LOGITS_BYTES = 20 << 20, ENGINE_CHUNK = 960 };

/* Most that a backend allocates for itself (scratch_bytes), each rounded up. */
enum { CONTEXT_BUFFERS = 6 };

static int64_t padded(int64_t n)
{
    return (n + KN_LD - 1) / KN_LD * KN_LD;
}

/* Hands out parts of the arena; with base NULL it only counts. */
struct carve {
    char *base;
    size_t at;
};

static void *take(struct carve *c, int64_t rows, int64_t cols, size_t each)
{
    char *p = c->base ? c->base + c->at : NULL;

    c->at += ((size_t)rows * (size_t)cols * each + ENGINE_ALIGN - 1) / ENGINE_ALIGN * ENGINE_ALIGN;
    return p;
}

static void carve_tables(struct engine *e, struct carve *c)
{
    for (int64_t l = 0; l < e->c.layers; l++) {
        struct engine_layer counted, *to = e->layers ? &e->layers[l] : &counted;
        to->norm_attn = take(c, 1, e->c.hidden, 4);
        to->norm_mlp = take(c, 1, e->c.hidden, 4);
    }
    e->norm = take(c, 1, e->c.hidden, 4);
    e->cos_sin = take(c, e->max_positions, e->c.head_dim, 4);
    e->table = take(c, e->c.vocab, e->ld_d, engine_width(e));
}

/* What one layer's forward leaves, but for its input and down's S. */
static void carve_layer(const struct engine *e, struct carve *c, struct engine_kept *k)
{
    const size_t w = engine_width(e);
    const int64_t t = e->max_tokens;

    k->qkv = take(c, t, e->ld_qkv, w);
    k->o = take(c, t, e->ld_o, w);
    k->x_mid = take(c, t, e->ld_d, w);
    k->gu = take(c, t, e->ld_gu, w);
    k->rstd_attn = take(c, t, 1, 4);
    k->rstd_mlp = take(c, t, 1, 4);
    k->lse = take(c, t, e->c.heads, 4);
    k->s_qkv = take(c, t, 3 * e->r, 4);
    k->s_o = take(c, t, e->r, 4);
    k->s_gu = take(c, t, 2 * e->r, 4);
}

static void carve_kept(struct engine *e, struct carve *c)
{
    const size_t w = engine_width(e);
    const int64_t t = e->max_tokens;
    struct engine_kept shared = {0};

    if (e->recompute > 0)
        carve_layer(e, c, &shared);
    for (int64_t l = 0; l < e->c.layers; l++) {
        struct engine_kept k = shared;
        if (l >= e->recompute)
            carve_layer(e, c, &k);
        k.x = take(c, t, e->ld_d, w);
        k.s_down = take(c, t, e->r, 4);
        if (e->kept)
            e->kept[l] = k;
    }
    e->x_out = take(c, t, e->ld_d, w);
    e->d_head = take(c, e->max_head, e->ld_d, w);
}

size_t engine_index_bytes(const struct engine *e)
{
    const size_t t = (size_t)e->max_tokens, h = (size_t)e->max_head;

    return 8 * t + 4 * (2 * t + 2 * ((size_t)e->max_seqs + 1) + 2 * (size_t)e->max_kv +
                        2 * (t + 1) + 3 * h);
}

static void carve_scratch(struct engine *e, struct carve *c)
{
    const size_t w = engine_width(e);
    const int64_t t = e->max_tokens;

    e->h = take(c, t, e->ld_h, w);
    e->dh = take(c, t, e->ld_d, w);
    e->dx = take(c, t, e->ld_dx, w);
    e->y = take(c, t, e->ld_f, w);
    e->dy = take(c, t, e->ld_dy, w);
    e->kvs = take(c, e->max_kv, e->ld_kv, w);
    e->dkvs = take(c, e->max_kv, e->ld_kv, w);
    e->d_o = take(c, t, e->ld_q, w);
    e->dqkv = take(c, t, e->ld_qkv, w);
    e->delta = take(c, t, e->c.heads, 4);
    e->ds = take(c, t, 3 * e->r, 4);
    e->x_head = take(c, e->chunk, e->ld_d, w);
    e->h_head = take(c, e->chunk, e->ld_h_head, w);
    e->rstd_head = take(c, e->chunk, 1, 4);
    e->z = take(c, e->chunk, e->ld_v, 4);
    e->out = take(c, 5, e->max_head, 4);
    e->coef = take(c, e->max_head, 1, 4);
    e->index = take(c, 1, (int64_t)engine_index_bytes(e), 1);
}

static size_t paged(const struct engine *e, size_t bytes)
{
    return e->page > 1 ? (bytes + e->page - 1) / e->page * e->page : bytes;
}

void engine_carve(struct engine *e)
{
    struct carve c = {.base = e->arena};

    carve_tables(e, &c);
    carve_kept(e, &c);
    carve_scratch(e, &c);
}

/* Most columns of S that a fused linear's adapters bring; KN_NO_LORA: none. */
static int64_t lora_cols(const struct engine *e, int n_parts)
{
    return e->r > 0 ? (int64_t)n_parts * e->r : KN_NO_LORA;
}

static int64_t room(const struct engine *e, int n_parts)
{
    return e->ops->lora_room(n_parts ? lora_cols(e, n_parts) : KN_NO_LORA);
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* What products read ends in room for S (behind K, padded) or dS (behind N). */
static void lds_set(struct engine *e)
{
    e->ld_d = padded(e->c.hidden);
    e->ld_h = e->ld_d + larger(room(e, 3), room(e, 2));
    e->ld_q = padded(e->q);
    e->ld_o = e->ld_q + room(e, 1);
    e->ld_dy = padded(e->c.intermediate);
    e->ld_f = e->ld_dy + room(e, 1);
    e->ld_kv = padded(2 * e->kv);
    e->ld_gu = padded(2 * e->c.intermediate + room(e, 2));
    e->ld_qkv = padded(e->q + 2 * e->kv + room(e, 3));
    e->ld_dx = padded(e->c.hidden + room(e, 1));
    e->ld_v = padded(e->c.vocab + room(e, 0));
    e->ld_h_head = e->ld_d + room(e, 0);
}

int engine_sizes(struct engine *e, const struct engine_opts *o, const struct model_config *c)
{
    if (o->max_tokens < 1 || o->max_tokens > INT32_MAX / 2 || o->max_head < 1 ||
        o->max_head > INT32_MAX || o->max_seqs < 1 || o->max_positions < 1 || o->recompute < 0 ||
        o->recompute > c->layers)
        return -EINVAL;
    *e = (struct engine){
        .ops = o->ops,
        .ctx = o->ctx,
        .c = *c,
        .dtype = o->spec->bf16 ? KN_BF16 : KN_F32,
        .r = o->spec->lora_r > 0 ? o->spec->lora_r : 0,
        .q = c->heads * c->head_dim,
        .kv = c->kv_heads * c->head_dim,
        .max_tokens = o->max_tokens,
        .max_head = o->max_head,
        .max_kv = 2 * o->max_tokens, /* a pair without replies would copy its whole prompt */
        .max_positions = o->max_positions,
        .max_seqs = o->max_seqs,
        .recompute = o->recompute,
        .page = o->page,
        .per_use = o->per_use && o->spec->load_in_4bit,
        .params = o->params,
        .logits_bytes = o->logits_bytes ? o->logits_bytes : ENGINE_LOGITS_BYTES,
    };
    lds_set(e);
    /* Rows are independent, so the chunk changes no bit. Whole tiles of the CPU's
     * products (48 rows); the logits stay in a last-level cache, and the head's
     * weights are read once for as many rows as that allows. */
    e->chunk = (int64_t)e->logits_bytes / 4 / e->ld_v / 48 * 48;
    e->chunk = e->chunk < 48                                 ? 48
               : e->chunk > ENGINE_CHUNK && !o->logits_bytes ? ENGINE_CHUNK
                                                             : e->chunk;
    e->chunk = e->chunk > e->max_head ? e->max_head : e->chunk;
    return 0;
}

enum kn_dtype engine_load_dtype(const struct spec *s, const struct model_config *c)
{
    switch (s->dtype) {
    case SPEC_DTYPE_F32:
        return KN_F32;
    case SPEC_DTYPE_BF16:
        return KN_BF16;
    case SPEC_DTYPE_F16:
        return KN_F16;
    case SPEC_DTYPE_AUTO:
        break;
    }
    return c->torch_dtype;
}

struct kn_weight_desc engine_weight_desc(const struct engine *e, const struct spec *s,
                                         enum engine_weight which,
                                         const struct kn_weight_part *parts)
{
    static const int n_parts[ENGINE_WEIGHTS] = {3, 1, 2, 1, 1};
    const int64_t k[ENGINE_WEIGHTS] = {e->c.hidden, e->q, e->c.hidden, e->c.intermediate,
                                       e->c.hidden};
    const bool head = which == ENGINE_HEAD; /* as bitsandbytes: never in 4 bits */

    return (struct kn_weight_desc){
        .parts = parts,
        .n_parts = n_parts[which],
        .k = k[which],
        .quant = !s->load_in_4bit || head             ? KN_QUANT_NONE
                 : s->bnb_4bit_quant_type == SPEC_NF4 ? KN_QUANT_NF4
                                                      : KN_QUANT_FP4,
        .double_quant = s->bnb_4bit_use_double_quant,
        .load_dtype = engine_load_dtype(s, &e->c),
        .lora_cols = head ? KN_NO_LORA : lora_cols(e, n_parts[which]),
        .per_use = e->per_use && !head,
    };
}

/* Weights of all layers, and what the context comes to hold for their products. */
static void backend_bytes(const struct engine *e, const struct spec *s, struct engine_plan *p)
{
    const int64_t d = e->c.hidden, f = e->c.intermediate;
    const struct kn_weight_part parts[ENGINE_WEIGHTS][KN_PARTS_MAX] = {
        {{.n = e->q}, {.n = e->kv}, {.n = e->kv}},
        {{.n = d}},
        {{.n = f}, {.n = f}},
        {{.n = d}},
        {{.n = e->c.vocab}}};
    struct kn_weight_desc desc[ENGINE_WEIGHTS];
    struct kn_scratch_use use[ENGINE_WEIGHTS];

    p->weights = 0;
    for (int i = 0; i < ENGINE_WEIGHTS; i++) {
        const bool head = i == ENGINE_HEAD;
        desc[i] = engine_weight_desc(e, s, (enum engine_weight)i, parts[i]);
        use[i] = (struct kn_scratch_use){
            .w = &desc[i], .rows = head ? e->chunk : e->max_tokens, .room = true};
        p->weights +=
            paged(e, e->ops->weight_bytes(&desc[i], e->dtype)) * (head ? 1 : (size_t)e->c.layers);
    }
    p->context = e->ops->scratch_bytes(
        &(struct kn_scratch){.uses = use,
                             .n_uses = ENGINE_WEIGHTS,
                             .dropout = s->lora_dropout > 0 && !s->disable_dropout,
                             .params = e->params,
                             .rows = e->max_tokens,
                             .kv_rows = e->max_kv,
                             .heads = (int)e->c.heads,
                             .kv_heads = (int)e->c.kv_heads,
                             .head_dim = (int)e->c.head_dim},
        e->dtype);
    if (e->page > 1)
        p->context += CONTEXT_BUFFERS * e->page;
}

void engine_plan_of(const struct engine *e, const struct spec *s, struct engine_plan *p)
{
    struct engine count = *e;
    struct carve c = {0};

    count.layers = NULL; /* pointers stay as they are */
    count.kept = NULL;
    carve_tables(&count, &c);
    p->tables = c.at;
    carve_kept(&count, &c);
    p->activations = c.at - p->tables;
    carve_scratch(&count, &c);
    p->scratch = c.at - p->tables - p->activations;
    backend_bytes(e, s, p);
    p->total = paged(e, c.at) + p->weights + p->context;
    p->head_chunk = e->chunk;
}

int engine_plan_bytes(const struct engine_opts *o, const struct model_config *config,
                      struct engine_plan *ret)
{
    struct engine e;

    const int r = engine_sizes(&e, o, config);
    if (r == 0)
        engine_plan_of(&e, o->spec, ret);
    return r;
}
