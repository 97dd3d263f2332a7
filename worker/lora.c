/* lora.c - see lora.h. Hu et al. 2021 (arXiv:2106.09685); initial values and module
 * matching as PEFT's tuners/lora/layer.py and tuners_utils.py. */
#include "worker/lora.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/model.h"
#include "worker/rng.h"

static const struct {
    const char *name, *parent;
} targets[LORA_TARGETS] = {
    [LORA_Q] = {"q_proj", "self_attn"}, [LORA_K] = {"k_proj", "self_attn"},
    [LORA_V] = {"v_proj", "self_attn"}, [LORA_O] = {"o_proj", "self_attn"},
    [LORA_GATE] = {"gate_proj", "mlp"}, [LORA_UP] = {"up_proj", "mlp"},
    [LORA_DOWN] = {"down_proj", "mlp"},
};

const char *lora_target_name(enum lora_target t)
{
    return targets[t].name;
}

void lora_module_name(int layer, enum lora_target t, char *buf, size_t size)
{
    (void)snprintf(buf, size, "model.layers.%d.%s.%s", layer, targets[t].parent, targets[t].name);
}

static void target_shape(const struct model_config *c, enum lora_target t, int64_t *ret_k,
                         int64_t *ret_n)
{
    const int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;

    *ret_k = t == LORA_O ? q : t == LORA_DOWN ? c->intermediate : c->hidden;
    *ret_n = t == LORA_Q                      ? q
             : t == LORA_K || t == LORA_V     ? kv
             : t == LORA_GATE || t == LORA_UP ? c->intermediate
                                              : c->hidden;
}

/* PEFT: the whole name, or "." and the target at its end. */
static bool name_matches(const char *name, const char *target)
{
    const size_t n = strlen(name), t = strlen(target);

    return t > 0 && t <= n && strcmp(name + n - t, target) == 0 &&
           (t == n || name[n - t - 1] == '.');
}

static bool module_wanted(const struct spec *s, int layer, enum lora_target t)
{
    char name[96];

    if (s->lora_all_linear)
        return true;
    lora_module_name(layer, t, name, sizeof name);
    for (int i = 0; i < s->n_lora_target_modules; i++)
        if (name_matches(name, s->lora_target_modules[i]))
            return true;
    return false;
}

static int targets_check(const struct model_config *c, const struct spec *s, struct err *err)
{
    if (s->lora_r < 1 || s->lora_r > 4096)
        return err_set(err, -EINVAL, "lora_r: must be from 1 to 4096");
    if (!(s->lora_dropout >= 0 && s->lora_dropout < 1))
        return err_set(err, -EINVAL, "lora_dropout: must be at least 0 and below 1");
    if (!s->lora_all_linear && s->n_lora_target_modules == 0)
        return err_set(err, -EINVAL, "lora_target_modules: is empty; all-linear names them all");
    for (int i = 0; !s->lora_all_linear && i < s->n_lora_target_modules; i++) {
        const char *want = s->lora_target_modules[i];
        bool found = false;
        for (int64_t l = 0; l < c->layers && !found; l++) {
            for (int t = 0; t < LORA_TARGETS && !found; t++) {
                char name[96];
                lora_module_name((int)l, t, name, sizeof name);
                found = name_matches(name, want);
            }
        }
        if (!found)
            return err_set(err, -EINVAL,
                           "lora_target_modules: \"%.100s\" matches no linear of this model; there "
                           "are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj in "
                           "model.layers.0 to %lld (adapters on lm_head and embed_tokens are not "
                           "supported)",
                           want, (long long)c->layers - 1);
    }
    return 0;
}

int lora_shape(const struct model_config *config, const struct spec *spec,
               struct moments_shape *ret, struct err *err)
{
    const int r = targets_check(config, spec, err);

    if (r < 0)
        return r;
    *ret = (struct moments_shape){.optim = spec->optim};
    for (int l = 0; l < config->layers; l++) {
        for (int t = 0; t < LORA_TARGETS; t++) {
            int64_t in, out;
            target_shape(config, (enum lora_target)t, &in, &out);
            if (!module_wanted(spec, l, (enum lora_target)t))
                continue;
            moments_shape_add(ret, spec->lora_r * in);
            moments_shape_add(ret, spec->lora_r * out);
        }
    }
    return 0;
}

static int modules_make(struct adapter *a, const struct model_config *c, const struct spec *s)
{
    const size_t most = (size_t)c->layers * LORA_TARGETS;

    a->modules = calloc(most, sizeof *a->modules);
    a->index = calloc(most, sizeof *a->index);
    if (!a->modules || !a->index)
        return -ENOMEM;
    for (int l = 0; l < c->layers; l++) {
        for (int t = 0; t < LORA_TARGETS; t++) {
            int16_t *index = &a->index[l * LORA_TARGETS + t];
            *index = -1;
            if (!module_wanted(s, l, t))
                continue;
            struct lora_module *m = &a->modules[a->n_modules];
            *index = (int16_t)a->n_modules++;
            m->layer = l;
            m->target = t;
            target_shape(c, t, &m->k, &m->n);
            m->a_off = a->n;
            m->b_off = m->a_off + a->r * m->k;
            a->n = m->b_off + m->n * a->r;
        }
    }
    return 0;
}

/* The stream is numbered by the module's place in the model, so another choice of
 * targets leaves a module's start as it is. */
static void init_a(const struct lora_module *m, int r, uint64_t seed, float *a)
{
    const double bound = 1.0 / sqrt((double)m->k);
    const uint64_t stream = (uint64_t)m->layer * LORA_TARGETS + (uint64_t)m->target;

    struct kn_philox b = {{0}};

    for (int64_t i = 0; i < r * m->k; i++) {
        if (i % 4 == 0)
            b = rng_at(seed, RNG_LORA_A, stream, (uint64_t)i / 4);
        const double u = ((double)b.v[i % 4] + 0.5) * 0x1p-32; /* (0, 1) */
        a[i] = (float)((2.0 * u - 1.0) * bound);
    }
}

static int moments_make(struct adapter *a, const struct spec *s)
{
    const int n = 2 * a->n_modules;
    int64_t *tensors = malloc((size_t)n * sizeof *tensors);
    int r;

    if (!tensors)
        return -ENOMEM;
    for (int i = 0; i < a->n_modules; i++) {
        tensors[2 * i] = a->r * a->modules[i].k;
        tensors[2 * i + 1] = a->r * a->modules[i].n;
    }
    r = moments_init(a->ops, a->ctx, s->optim, a->p, tensors, n, &a->moments);
    free(tensors);
    return r;
}

static int params_init(struct adapter *a, const struct spec *s)
{
    const size_t bytes = (size_t)a->n * sizeof(float);
    float *host;
    int r;

    if ((r = a->ops->alloc(a->ctx, bytes, (void **)&a->p)) < 0 ||
        (r = a->ops->alloc(a->ctx, bytes, (void **)&a->g)) < 0 || (r = moments_make(a, s)) < 0)
        return r;
    host = calloc((size_t)a->n, sizeof *host);
    if (!host)
        return -ENOMEM;
    for (int i = 0; i < a->n_modules; i++)
        init_a(&a->modules[i], a->r, s->seed, host + a->modules[i].a_off);
    r = a->ops->copy(a->ctx, a->p, host, bytes, KN_TO_DEVICE);
    if (r == 0)
        r = a->ops->sync(a->ctx);
    free(host);
    return r;
}

int lora_new(const struct kn_ops *ops, struct kn_ctx *ctx, const struct model *model,
             const struct spec *spec, struct adapter **ret, struct err *err)
{
    const struct model_config *c = &model->config;
    struct adapter *a = NULL;

    int r = targets_check(c, spec, err);
    if (r < 0)
        return r;
    if (c->layers * LORA_TARGETS > INT16_MAX)
        return err_set(err, -EINVAL, "%lld layers are more than an adapter can index",
                       (long long)c->layers);
    a = calloc(1, sizeof *a);
    if (!a)
        return err_set(err, -ENOMEM, "out of memory for the adapter");
    a->ops = ops;
    a->ctx = ctx;
    a->r = spec->lora_r;
    a->scale = (float)(spec->use_rslora ? spec->lora_alpha / sqrt((double)spec->lora_r)
                                        : (double)spec->lora_alpha / spec->lora_r);
    a->dropout = spec->disable_dropout ? 0.0f : (float)spec->lora_dropout;
    r = modules_make(a, c, spec);
    if (r == 0)
        r = params_init(a, spec);
    if (r < 0) {
        r = err_set(err, r,
                    "the adapter's %lld parameters with gradients and moments do not fit: %s",
                    (long long)a->n, strerror(-r));
        lora_free(a);
        return r;
    }
    *ret = a;
    return 0;
}

void lora_free(struct adapter *a)
{
    if (!a)
        return;
    a->ops->free(a->ctx, a->p);
    a->ops->free(a->ctx, a->g);
    moments_free(a->ops, a->ctx, &a->moments);
    free(a->modules);
    free(a->index);
    free(a);
}
