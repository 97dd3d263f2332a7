/* engine.c - opening an engine: the plan, its memory, its weights. engine_pass.c runs it. */
#include "worker/engine.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/engine_impl.h"
#include "worker/half.h"

enum { ENGINE_ALIGN = 256, ENGINE_LOGITS_BYTES = 20 << 20, ENGINE_CHUNK = 960 };

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

static size_t dtype_bytes(enum kn_dtype t)
{
    return t == KN_F32 ? 4 : 2;
}

static void carve_tables(struct engine *e, struct carve *c)
{
    for (int64_t l = 0; l < e->c.layers; l++) {
        struct engine_layer dummy, *to = e->layers ? &e->layers[l] : &dummy;
        to->norm_attn = take(c, 1, e->c.hidden, 4);
        to->norm_mlp = take(c, 1, e->c.hidden, 4);
    }
    e->norm = take(c, 1, e->c.hidden, 4);
    e->cos_sin = take(c, e->max_positions, e->c.head_dim, 4);
    e->table = take(c, e->c.vocab, e->ld_d, dtype_bytes(e->dtype));
}

static void carve_kept(struct engine *e, struct carve *c)
{
    const size_t w = dtype_bytes(e->dtype);
    const int64_t t = e->max_tokens;

    for (int64_t l = 0; l < e->c.layers; l++) {
        struct engine_kept dummy, *k = e->kept ? &e->kept[l] : &dummy;
        k->x = take(c, t, e->ld_d, w);
        k->qkv = take(c, t, e->ld_qkv, w);
        k->o = take(c, t, e->ld_q, w);
        k->x_mid = take(c, t, e->ld_d, w);
        k->gu = take(c, t, e->ld_gu, w);
        k->rstd_attn = take(c, t, 1, 4);
        k->rstd_mlp = take(c, t, 1, 4);
        k->lse = take(c, t, e->c.heads, 4);
        k->s_qkv = take(c, t, 3 * e->r, 4);
        k->s_o = take(c, t, e->r, 4);
        k->s_gu = take(c, t, 2 * e->r, 4);
        k->s_down = take(c, t, e->r, 4);
    }
    e->x_out = take(c, t, e->ld_d, w);
    e->d_head = take(c, e->max_head, e->ld_d, w);
}

static size_t index_bytes(const struct engine *e)
{
    const size_t t = (size_t)e->max_tokens, h = (size_t)e->max_head;

    return 8 * t + 4 * (2 * t + 2 * ((size_t)e->max_seqs + 1) + 2 * (size_t)e->max_kv +
                        2 * (t + 1) + 3 * h);
}

static void carve_scratch(struct engine *e, struct carve *c)
{
    const size_t w = dtype_bytes(e->dtype);
    const int64_t t = e->max_tokens;

    e->h = take(c, t, e->ld_d, w);
    e->dh = take(c, t, e->ld_d, w);
    e->dx = take(c, t, e->ld_d, w);
    e->y = take(c, t, e->ld_f, w);
    e->dy = take(c, t, e->ld_f, w);
    e->kvs = take(c, e->max_kv, e->ld_kv, w);
    e->dkvs = take(c, e->max_kv, e->ld_kv, w);
    e->d_o = take(c, t, e->ld_q, w);
    e->dqkv = take(c, t, e->ld_qkv, w);
    e->delta = take(c, t, e->c.heads, 4);
    e->ds = take(c, t, 3 * e->r, 4);
    e->x_head = take(c, e->chunk, e->ld_d, w);
    e->h_head = take(c, e->chunk, e->ld_d, w);
    e->rstd_head = take(c, e->chunk, 1, 4);
    e->z = take(c, e->chunk, e->ld_v, 4);
    e->out = take(c, 4, e->max_head, 4);
    e->hit = take(c, e->max_head, 1, 4);
    e->coef = take(c, e->max_head, 1, 4);
    e->index = take(c, 1, (int64_t)index_bytes(e), 1);
}

static int sizes_set(struct engine *e, const struct engine_opts *o, const struct model_config *c)
{
    if (o->max_tokens < 1 || o->max_tokens > INT32_MAX / 2 || o->max_head < 1 ||
        o->max_head > INT32_MAX || o->max_seqs < 1 || o->max_positions < 1)
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
        .ld_d = padded(c->hidden),
        .ld_f = padded(c->intermediate),
        .ld_gu = padded(2 * c->intermediate),
        .ld_v = padded(c->vocab),
    };
    e->ld_q = padded(e->q);
    e->ld_kv = padded(2 * e->kv);
    e->ld_qkv = padded(e->q + 2 * e->kv);
    /* Rows are independent, so the chunk changes no bit. Whole tiles of the CPU's
     * products (48 rows); the logits stay in a last-level cache, and the head's
     * weights are read once for as many rows as that allows. */
    e->chunk = ENGINE_LOGITS_BYTES / 4 / e->ld_v / 48 * 48;
    e->chunk = e->chunk < 48 ? 48 : e->chunk > ENGINE_CHUNK ? ENGINE_CHUNK : e->chunk;
    e->chunk = e->chunk > e->max_head ? e->max_head : e->chunk;
    return 0;
}

static enum kn_dtype load_dtype(const struct spec *s, const struct model_config *c)
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

/* parts: n of them, with n and dtype set. */
static struct kn_weight_desc linear_desc(const struct engine *e, const struct spec *s,
                                         const struct kn_weight_part *parts, int n, int64_t k)
{
    return (struct kn_weight_desc){
        .parts = parts,
        .n_parts = n,
        .k = k,
        .quant = !s->load_in_4bit                     ? KN_QUANT_NONE
                 : s->bnb_4bit_quant_type == SPEC_NF4 ? KN_QUANT_NF4
                                                      : KN_QUANT_FP4,
        .double_quant = s->bnb_4bit_use_double_quant,
        .load_dtype = load_dtype(s, &e->c),
    };
}

static struct kn_weight_part part_of(const struct model_tensor *t)
{
    return (struct kn_weight_part){.data = t->data, .dtype = t->dtype, .n = t->rows};
}

static size_t weights_bytes(const struct engine *e, const struct spec *s)
{
    const struct kn_weight_part qkv[3] = {{.n = e->q}, {.n = e->kv}, {.n = e->kv}};
    const struct kn_weight_part o = {.n = e->c.hidden};
    const struct kn_weight_part gu[2] = {{.n = e->c.intermediate}, {.n = e->c.intermediate}};
    const struct kn_weight_part head = {.n = e->c.vocab};
    const struct kn_weight_desc d[4] = {
        linear_desc(e, s, qkv, 3, e->c.hidden),
        linear_desc(e, s, &o, 1, e->q),
        linear_desc(e, s, gu, 2, e->c.hidden),
        linear_desc(e, s, &o, 1, e->c.intermediate),
    };
    struct kn_weight_desc h = linear_desc(e, s, &head, 1, e->c.hidden);
    size_t layer = 0;

    h.quant = KN_QUANT_NONE;
    for (int i = 0; i < 4; i++)
        layer += e->ops->weight_bytes(&d[i], e->dtype);
    return layer * (size_t)e->c.layers + e->ops->weight_bytes(&h, e->dtype);
}

static void plan_set(struct engine *e, const struct spec *s, struct engine_plan *p)
{
    struct carve c = {0};

    carve_tables(e, &c);
    p->tables = c.at;
    carve_kept(e, &c);
    p->activations = c.at - p->tables;
    carve_scratch(e, &c);
    p->scratch = c.at - p->tables - p->activations;
    p->weights = weights_bytes(e, s);
    p->total = c.at + p->weights;
    p->head_chunk = e->chunk;
}

int engine_plan_bytes(const struct engine_opts *o, const struct model_config *config,
                      struct engine_plan *ret)
{
    struct engine e;

    const int r = sizes_set(&e, o, config);
    if (r == 0)
        plan_set(&e, o->spec, ret);
    return r;
}

/* The most tokens a micro-batch may have in `bytes`; head rows shrink with them. */
static int64_t tokens_that_fit(const struct engine_opts *o, const struct model_config *c,
                               size_t bytes)
{
    int64_t low = 0, high = o->max_tokens;

    while (low < high) {
        const int64_t mid = low + (high - low + 1) / 2;
        struct engine_opts less = *o;
        struct engine_plan p;
        less.max_tokens = mid;
        less.max_head = mid < o->max_head ? mid : o->max_head;
        if (engine_plan_bytes(&less, c, &p) == 0 && p.total <= bytes)
            low = mid;
        else
            high = mid - 1;
    }
    return low;
}

static int arena_open(struct engine *e, const struct engine_opts *o, struct err *err)
{
    struct engine_plan p;
    struct kn_info info;
    struct carve c = {0};

    plan_set(e, o->spec, &p);
    int r = e->ops->info(e->ctx, &info);
    if (r < 0)
        return err_set(err, r, "the device does not answer: %s", strerror(-r));
    if (p.total <= info.mem_free)
        r = e->ops->alloc(e->ctx, p.total - p.weights, &e->arena);
    else
        r = -ENOMEM;
    if (r < 0) {
        const int64_t fit = tokens_that_fit(o, &e->c, info.mem_free);
        err_set(err, r,
                "the model with micro-batches of %lld tokens needs %zu MiB, %s has %zu MiB free; "
                "token_budget: %lld would fit",
                (long long)o->max_tokens, p.total >> 20, info.device, info.mem_free >> 20,
                (long long)fit);
        if (fit == 0)
            err_set(err, r, "the model's weights alone need %zu MiB, %s has %zu MiB free",
                    p.weights >> 20, info.device, info.mem_free >> 20);
        return r;
    }
    c.base = e->arena;
    carve_tables(e, &c);
    carve_kept(e, &c);
    carve_scratch(e, &c);
    e->bytes = p.total;
    e->host_index = malloc(index_bytes(e));
    e->host_coef = malloc((size_t)e->max_head * sizeof(float));
    e->host_head_back = malloc((size_t)e->max_head * sizeof(int32_t));
    if (!e->host_index || !e->host_coef || !e->host_head_back)
        return err_set(err, -ENOMEM, "out of memory for index arrays");
    return 0;
}

/* One element as the model is loaded: rounded to `load`. */
static float element(const struct model_tensor *t, int64_t i, enum kn_dtype load)
{
    const float f = t->dtype == KN_F32    ? ((const float *)t->data)[i]
                    : t->dtype == KN_BF16 ? bf16_to_f32(((const bf16 *)t->data)[i])
                                          : half_to_f32(((const uint16_t *)t->data)[i]);

    return load == KN_BF16  ? bf16_to_f32(bf16_from_f32(f))
           : load == KN_F16 ? half_to_f32(half_from_f32(f))
                            : f;
}

static int vector_load(struct engine *e, const struct model_tensor *t, enum kn_dtype load,
                       float *to)
{
    float *host = malloc((size_t)t->cols * sizeof *host);

    if (!host)
        return -ENOMEM;
    for (int64_t i = 0; i < t->cols; i++)
        host[i] = element(t, i, load);
    int r = e->ops->copy(e->ctx, to, host, (size_t)t->cols * sizeof *host, KN_TO_DEVICE);
    if (r == 0)
        r = e->ops->sync(e->ctx);
    free(host);
    return r;
}

/* The embedding, in the compute type, a block of rows at a time. */
static int table_load(struct engine *e, const struct model_tensor *t, enum kn_dtype load)
{
    const size_t row = (size_t)e->ld_d * dtype_bytes(e->dtype);
    const int64_t block = t->rows < 1024 ? t->rows : 1024;
    char *host = calloc((size_t)block, row);
    int r = host ? 0 : -ENOMEM;

    for (int64_t r0 = 0; r == 0 && r0 < t->rows; r0 += block) {
        const int64_t n = t->rows - r0 < block ? t->rows - r0 : block;
        for (int64_t i = 0; i < n; i++) {
            for (int64_t c = 0; c < t->cols; c++) {
                const float f = element(t, (r0 + i) * t->cols + c, load);
                if (e->dtype == KN_F32)
                    ((float *)host)[i * e->ld_d + c] = f;
                else
                    ((bf16 *)host)[i * e->ld_d + c] = bf16_from_f32(f);
            }
        }
        r = e->ops->copy(e->ctx, (char *)e->table + (size_t)r0 * row, host, (size_t)n * row,
                         KN_TO_DEVICE);
        if (r == 0)
            r = e->ops->sync(e->ctx);
    }
    free(host);
    return r;
}

/* Angles as transformers' modeling_rope_utils.py: inverse frequencies and their
 * products with positions are float32. */
static double inverse_frequency(const struct model_config *c, int64_t i)
{
    const float exponent = (float)(2 * i) / (float)c->head_dim;
    const float inv = 1.0f / powf((float)c->rope_theta, exponent);

    if (c->rope_type == MODEL_ROPE_LINEAR)
        return inv / (float)c->rope_factor;
    if (c->rope_type != MODEL_ROPE_LLAMA3)
        return inv;
    const double pi = 3.14159265358979323846, length = 2.0 * pi / inv;
    const double old = c->rope_original_positions;
    if (length > old / c->rope_low_freq)
        return inv / c->rope_factor;
    if (length < old / c->rope_high_freq)
        return inv;
    const double s = (old / length - c->rope_low_freq) / (c->rope_high_freq - c->rope_low_freq);
    return (1.0 - s) * inv / c->rope_factor + s * inv;
}

static int rope_load(struct engine *e)
{
    const int64_t hd = e->c.head_dim, half = hd / 2;
    const size_t bytes = (size_t)e->max_positions * (size_t)hd * sizeof(float);
    float *host = malloc(bytes);

    if (!host)
        return -ENOMEM;
    for (int64_t i = 0; i < half; i++) {
        const float inv = (float)inverse_frequency(&e->c, i);
        for (int64_t p = 0; p < e->max_positions; p++) {
            const float angle = (float)p * inv;
            host[p * hd + i] = (float)cos(angle);
            host[p * hd + half + i] = (float)sin(angle);
        }
    }
    int r = e->ops->copy(e->ctx, e->cos_sin, host, bytes, KN_TO_DEVICE);
    if (r == 0)
        r = e->ops->sync(e->ctx);
    free(host);
    return r;
}

static int layer_load(struct engine *e, const struct spec *s, const struct model_layer *m,
                      struct engine_layer *l)
{
    const struct kn_weight_part qkv[3] = {part_of(&m->q), part_of(&m->k), part_of(&m->v)};
    const struct kn_weight_part gu[2] = {part_of(&m->gate), part_of(&m->up)};
    const struct kn_weight_part o = part_of(&m->o), down = part_of(&m->down);
    const struct {
        struct kn_weight_desc d;
        struct kn_weight **to;
    } v[4] = {
        {linear_desc(e, s, qkv, 3, e->c.hidden), &l->qkv},
        {linear_desc(e, s, &o, 1, e->q), &l->o},
        {linear_desc(e, s, gu, 2, e->c.hidden), &l->gu},
        {linear_desc(e, s, &down, 1, e->c.intermediate), &l->down},
    };
    const enum kn_dtype load = load_dtype(s, &e->c);
    int r = 0;

    for (int i = 0; r == 0 && i < 4; i++)
        r = e->ops->weight_open(e->ctx, &v[i].d, v[i].to);
    if (r == 0)
        r = vector_load(e, &m->norm_attn, load, l->norm_attn);
    if (r == 0)
        r = vector_load(e, &m->norm_mlp, load, l->norm_mlp);
    return r;
}

static int weights_load(struct engine *e, const struct engine_opts *o)
{
    const struct kn_weight_part head = part_of(&o->model->head);
    const enum kn_dtype load = load_dtype(o->spec, &e->c);
    struct kn_weight_desc d = linear_desc(e, o->spec, &head, 1, e->c.hidden);
    int r;

    d.quant = KN_QUANT_NONE; /* as bitsandbytes: neither the head nor the embedding */
    if ((r = e->ops->weight_open(e->ctx, &d, &e->head)) < 0 ||
        (r = vector_load(e, &o->model->norm, load, e->norm)) < 0 ||
        (r = table_load(e, &o->model->embed, load)) < 0 || (r = rope_load(e)) < 0)
        return r;
    for (int64_t l = 0; l < e->c.layers; l++)
        if ((r = layer_load(e, o->spec, &o->model->layers[l], &e->layers[l])) < 0)
            return r;
    return 0;
}

int engine_open(const struct engine_opts *o, struct engine **ret, struct err *err)
{
    int r;

    struct engine *e = calloc(1, sizeof *e);
    if (!e)
        return err_set(err, -ENOMEM, "out of memory");
    r = sizes_set(e, o, &o->model->config);
    if (r < 0) {
        free(e);
        return err_set(err, r, "an engine needs room for a token, a head row and a sequence");
    }
    e->layers = calloc((size_t)e->c.layers, sizeof *e->layers);
    e->kept = calloc((size_t)e->c.layers, sizeof *e->kept);
    if (!e->layers || !e->kept) {
        r = err_set(err, -ENOMEM, "out of memory");
        goto fail;
    }
    r = arena_open(e, o, err);
    if (r < 0)
        goto fail;
    r = weights_load(e, o);
    if (r < 0) {
        err_set(err, r, "loading the weights of %s: %s", o->model->dir, strerror(-r));
        goto fail;
    }
    *ret = e;
    return 0;

fail:
    engine_close(e);
    return r;
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    for (int64_t l = 0; e->layers && l < e->c.layers; l++) {
        struct kn_weight *const w[] = {e->layers[l].qkv, e->layers[l].o, e->layers[l].gu,
                                       e->layers[l].down};
        for (int i = 0; i < 4; i++)
            if (w[i])
                e->ops->weight_close(e->ctx, w[i]);
    }
    if (e->head)
        e->ops->weight_close(e->ctx, e->head);
    e->ops->free(e->ctx, e->arena);
    free(e->host_head_back);
    free(e->host_coef);
    free(e->host_index);
    free(e->kept);
    free(e->layers);
    free(e);
}

size_t engine_bytes(const struct engine *e)
{
    return e->bytes;
}

int head_out_reserve(struct head_out *h, int64_t n)
{
    float *f[4];

    if (n <= h->cap)
        return 0;
    for (int i = 0; i < 4; i++)
        f[i] = malloc((size_t)n * sizeof(float));
    int32_t *hit = malloc((size_t)n * sizeof *hit);
    if (!f[0] || !f[1] || !f[2] || !f[3] || !hit) {
        for (int i = 0; i < 4; i++)
            free(f[i]);
        free(hit);
        return -ENOMEM;
    }
    head_out_free(h);
    *h = (struct head_out){f[0], f[1], f[2], f[3], hit, n};
    return 0;
}

void head_out_free(struct head_out *h)
{
    free(h->logp);
    free(h->lse);
    free(h->sum_z);
    free(h->sum_pz);
    free(h->hit);
    *h = (struct head_out){0};
}
