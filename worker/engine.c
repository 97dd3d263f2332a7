/* engine.c - opening an engine: the plan, its memory, its weights. engine_pass.c runs it. */
#include "worker/engine.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/engine_impl.h"
#include "worker/half.h"

static struct kn_weight_part part_of(const struct model_tensor *t)
{
    return (struct kn_weight_part){.data = t->data, .dtype = t->dtype, .n = t->rows};
}

static int does_not_fit(const struct engine *e, const struct engine_opts *o, int r, struct err *err)
{
    struct kn_info info = {.device = "the device"};
    struct engine_plan p;

    engine_plan_of(e, o->spec, &p);
    (void)e->ops->info(e->ctx, &info);
    return err_set(err, r,
                   "the model with micro-batches of %lld tokens needs %zu MiB (weights %zu, "
                   "activations %zu, the rest %zu), %s has %zu MiB free",
                   (long long)o->max_tokens, p.total >> 20, p.weights >> 20, p.activations >> 20,
                   (p.tables + p.scratch + p.context) >> 20, info.device, info.mem_free >> 20);
}

static int arena_open(struct engine *e, const struct engine_opts *o, struct err *err)
{
    struct engine_plan p;

    engine_plan_of(e, o->spec, &p);
    const int r = e->ops->alloc(e->ctx, p.total - p.weights - p.context, &e->arena);
    if (r < 0)
        return does_not_fit(e, o, r, err);
    engine_carve(e);
    e->bytes = p.total;
    e->host_index = malloc(engine_index_bytes(e));
    e->host_coef = malloc((size_t)e->max_head * sizeof(float));
    e->host_out = malloc(5 * (size_t)e->max_head * sizeof(float));
    e->host_head_back = malloc((size_t)e->max_head * sizeof(int32_t));
    if (!e->host_index || !e->host_coef || !e->host_out || !e->host_head_back)
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

/* Stored as it is computed with, in rows as wide as the table's: no value changes. */
static bool table_same(const struct engine *e, const struct model_tensor *t, enum kn_dtype load)
{
    return t->dtype == e->dtype && t->cols == e->ld_d && (load == t->dtype || load == KN_F32);
}

/* The embedding, in the compute type, a block of rows at a time. */
static int table_load(struct engine *e, const struct model_tensor *t, enum kn_dtype load)
{
    const size_t row = (size_t)e->ld_d * engine_width(e);
    const int64_t block = t->rows < 1024 ? t->rows : 1024;

    if (table_same(e, t, load))
        return e->ops->copy(e->ctx, e->table, t->data, (size_t)t->rows * row, KN_TO_DEVICE);
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

static int layer_open(struct engine *e, const struct spec *s, const struct model_layer *m,
                      struct engine_layer *l)
{
    const struct kn_weight_part qkv[3] = {part_of(&m->q), part_of(&m->k), part_of(&m->v)};
    const struct kn_weight_part gu[2] = {part_of(&m->gate), part_of(&m->up)};
    const struct kn_weight_part o = part_of(&m->o), down = part_of(&m->down);
    const struct kn_weight_part *const parts[] = {qkv, &o, gu, &down};
    struct kn_weight **const to[] = {&l->qkv, &l->o, &l->gu, &l->down};
    int r = 0;

    for (int i = 0; r == 0 && i < ENGINE_HEAD; i++) {
        const struct kn_weight_desc d = engine_weight_desc(e, s, (enum engine_weight)i, parts[i]);
        r = e->ops->weight_open(e->ctx, &d, to[i]);
    }
    return r;
}

/* Before the arena: what quantising and packing take beside a weight fits where the
 * arena will be. */
static int weights_open(struct engine *e, const struct engine_opts *o)
{
    const struct kn_weight_part head = part_of(&o->model->head);
    const struct kn_weight_desc d = engine_weight_desc(e, o->spec, ENGINE_HEAD, &head);
    int r = e->ops->weight_open(e->ctx, &d, &e->head);

    for (int64_t l = 0; r == 0 && l < e->c.layers; l++)
        r = layer_open(e, o->spec, &o->model->layers[l], &e->layers[l]);
    return r;
}

static int tables_load(struct engine *e, const struct engine_opts *o)
{
    const enum kn_dtype load = engine_load_dtype(o->spec, &e->c);
    int r;

    if ((r = vector_load(e, &o->model->norm, load, e->norm)) < 0 ||
        (r = table_load(e, &o->model->embed, load)) < 0 || (r = rope_load(e)) < 0)
        return r;
    for (int64_t l = 0; l < e->c.layers; l++) {
        const struct model_layer *m = &o->model->layers[l];
        if ((r = vector_load(e, &m->norm_attn, load, e->layers[l].norm_attn)) < 0 ||
            (r = vector_load(e, &m->norm_mlp, load, e->layers[l].norm_mlp)) < 0)
            return r;
    }
    return 0;
}

static int load(struct engine *e, const struct engine_opts *o, struct err *err)
{
    struct engine_plan p;
    struct kn_info info;
    int r = e->ops->info(e->ctx, &info);

    if (r < 0)
        return err_set(err, r, "the device does not answer: %s", strerror(-r));
    engine_plan_of(e, o->spec, &p);
    if (p.total > info.mem_free)
        return does_not_fit(e, o, -ENOMEM, err);
    r = weights_open(e, o);
    if (r < 0)
        return err_set(err, r, "loading the weights of %s: %s", o->model->dir, strerror(-r));
    r = arena_open(e, o, err);
    if (r < 0)
        return r;
    r = tables_load(e, o);
    return r < 0 ? err_set(err, r, "loading the weights of %s: %s", o->model->dir, strerror(-r))
                 : 0;
}

int engine_open(const struct engine_opts *o, struct engine **ret, struct err *err)
{
    int r;

    struct engine *e = calloc(1, sizeof *e);
    if (!e)
        return err_set(err, -ENOMEM, "out of memory");
    r = engine_sizes(e, o, &o->model->config);
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
    r = load(e, o, err);
    if (r < 0)
        goto fail;
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
    free(e->host_out);
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
