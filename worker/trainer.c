/* trainer.c - see trainer.h. */
#include "worker/trainer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "worker/rehearse.h"
#include "worker/report.h"
#include "worker/tokenizer.h"

bool trainer_dropout(const struct spec *spec)
{
    return spec->lora_dropout > 0 && !spec->disable_dropout;
}

/* The stage that ended now. */
static void lap(struct trainer *t, enum trainer_stage stage)
{
    const double now = report_now();

    t->took[stage] += now - t->lap;
    t->lap = now;
}

void trainer_stages_text(const struct trainer *t, char *text, size_t size)
{
    static const char *const names[TRAINER_STAGES] = {"device", "model",   "data", "adapter",
                                                      "join",   "kernels", "plan", "weights"};
    size_t at = 0;

    for (int i = 0; i < TRAINER_STAGES && at < size; i++)
        at +=
            (size_t)snprintf(text + at, size - at, "%s%s=%.3f", i ? " " : "", names[i], t->took[i]);
}

static int no_such_gpu(const char *uuid, int r, struct err *err)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");

    return err_set(err, r, "this rank was given %s, which CUDA does not show it%s%.80s", uuid,
                   visible ? ": CUDA_VISIBLE_DEVICES is " : "", visible ? visible : "");
}

static int open_backend(struct trainer *t, const struct trainer_opts *o, struct err *err)
{
    char why[256] = "";
    struct kn_open open = {.uuid = o->uuid,
                           .threads = o->threads > 0 ? o->threads : 1,
                           .compute = o->spec->bf16 ? KN_BF16 : KN_F32};
    int r = kn_backend(o->backend, &t->ops, why, sizeof why);

    if (r < 0)
        return err_set(err, r, "backend %s: %s", o->backend, why);
    t->threads = open.threads;
    r = t->ops->open(&open, &t->ctx);
    if (r == -ENOTSUP && o->uuid)
        return err_set(err, r,
                       "%s cannot be used: older than compute capability 8.0, or the driver is",
                       o->uuid);
    if (r == -ENOTSUP && o->spec->bf16)
        return err_set(err, r,
                       "bf16: true: this processor has no bf16 instructions (AVX512-BF16); "
                       "set bf16: false");
    if (r == -ENODEV && o->uuid)
        return no_such_gpu(o->uuid, r, err);
    if (r < 0)
        return err_set(err, r, "backend %s cannot be opened: %s", o->backend, strerror(-r));
    r = t->ops->info(t->ctx, &t->info);
    if (r < 0)
        return err_set(err, r, "the device does not answer: %s", strerror(-r));
    /* Not what was asked for: another rank, or another program, has it. */
    if (o->uuid && strcasecmp(o->uuid + 4, t->info.uuid + 4) != 0)
        return err_set(err, -ENODEV, "this rank was given %s and got %s", o->uuid, t->info.uuid);
    /* Ranks on processors share the host's memory. */
    t->sharing = t->info.uuid[0] ? 1 : o->coll ? t->ranks : o->as_of > 1 ? o->as_of : 1;
    t->free = t->info.mem_free / t->sharing;
    return 0;
}

/* What code takes on the device; as much again is left for what one pass did not launch. */
static int load_kernels(struct trainer *t, struct err *err)
{
    int r;

    t->page = t->info.page;
    if (!t->info.uuid[0])
        return 0;
    r = rehearse(t->ops, t->ctx, t->info.uuid, t->model, t->adapter, t->spec, &t->code, err);
    t->free -= t->code < t->free ? t->code : t->free;
    return r;
}

/* Ranks read the same files; if one sees others, its sums would be nonsense. */
static int agree_on_files(struct trainer *t, struct err *err)
{
    struct {
        uint8_t data[32], model[32];
    } root;
    int r;

    memcpy(root.data, t->data->digest, sizeof root.data);
    memcpy(root.model, t->model->digest, sizeof root.model);
    r = t->ranks > 1 ? coll_broadcast(t->coll, &root, sizeof root, 0, err) : 0;
    if (r < 0)
        return r;
    if (memcmp(root.data, t->data->digest, sizeof root.data) != 0)
        return err_set(err, -EINVAL,
                       "rank %u reads other training data than rank 0: the files of train, eval or "
                       "the tokenizer differ between them",
                       t->rank);
    if (memcmp(root.model, t->model->digest, sizeof root.model) != 0)
        return err_set(err, -EINVAL, "rank %u reads another base model than rank 0 from %s",
                       t->rank, t->spec->model_dir);
    return 0;
}

static int read_data(struct trainer *t, struct err *err)
{
    struct tokenizer *tok = NULL;
    int r = tokenizer_open(t->spec->model_dir, &tok, err);

    if (r == 0)
        r = dataset_open(t->spec, tok, (int32_t)t->model->config.vocab, &t->own_data, err);
    tokenizer_close(tok);
    t->data = t->own_data;
    return r;
}

/* Device to device where that can be had; else gradients pass through the hosts. A first sum
 * makes the connections and their buffers, which the planner then counts as not free. */
static int join_devices(struct trainer *t, struct err *err)
{
    struct kn_info before, after;
    int r = t->ranks > 1 ? t->ops->info(t->ctx, &before) : 0;

    if (r < 0 || t->ranks == 1)
        return r;
    r = coll_attach(t->coll, t->ops, t->ctx, err);
    if (r < 0)
        return r == -ENOTSUP ? 0 : r;
    r = coll_sum_device(t->coll, t->adapter->g, (size_t)t->adapter->n, NULL, 0, err);
    if (r == 0)
        r = t->ops->info(t->ctx, &after);
    if (r == 0 && after.mem_free < before.mem_free)
        t->free -=
            before.mem_free - after.mem_free < t->free ? before.mem_free - after.mem_free : t->free;
    return r;
}

int trainer_open(struct trainer *t, const struct trainer_opts *o, struct err *err)
{
    int r;

    *t = (struct trainer){.spec = o->spec, .coll = o->coll, .data = o->data};
    t->rank = o->coll != NULL ? coll_rank(o->coll) : 0;
    t->ranks = o->coll != NULL ? coll_ranks(o->coll) : 1;
    t->lap = report_now();
    r = open_backend(t, o, err);
    lap(t, STAGE_DEVICE);
    if (r == 0)
        r = model_open(o->spec->model_dir, &t->model, err);
    lap(t, STAGE_MODEL);
    if (r == 0 && t->data == NULL)
        r = read_data(t, err);
    if (r == 0)
        r = agree_on_files(t, err);
    lap(t, STAGE_DATA);
    if (r == 0)
        r = lora_new(t->ops, t->ctx, t->model, o->spec, &t->adapter, err);
    lap(t, STAGE_ADAPTER);
    if (r == 0)
        r = join_devices(t, err);
    lap(t, STAGE_JOIN);
    if (r == 0)
        r = load_kernels(t, err);
    lap(t, STAGE_KERNELS);
    return r;
}

struct memory_ask trainer_ask(const struct trainer *t, int64_t frozen_budget)
{
    return (struct memory_ask){.spec = t->spec,
                               .ops = t->ops,
                               .config = &t->model->config,
                               .data = t->data,
                               .adapter = t->adapter->moments.shape,
                               .gpu = t->info.uuid[0] != '\0',
                               .joined = true,
                               .free = t->free,
                               .page = t->page,
                               .code = t->code,
                               .sharing = (int)t->sharing,
                               .frozen_budget = frozen_budget};
}

static int open_buffers(struct trainer *t)
{
    const struct plan *p = &t->plan;
    int r = sampler_init(&t->sampler, t->spec->data_seed, p->n_train, p->batch);

    if (r == 0)
        r = refcache_init(&t->ref_train, t->data->train, p->n_train);
    if (r == 0)
        r = refcache_init(&t->ref_eval, t->data->eval, p->n_eval);
    if (r == 0)
        r = head_out_reserve(&t->head, p->max_head);
    if (r == 0)
        r = t->ops->alloc(t->ctx, sizeof *t->sweep, (void **)&t->sweep);
    if (r == 0)
        r = t->ops->alloc(t->ctx, sizeof *t->adam, (void **)&t->adam);
    if (r < 0)
        return r;
    t->coef = malloc((size_t)p->max_head * sizeof *t->coef);
    if (t->ranks > 1)
        t->grad = malloc((size_t)t->adapter->n * sizeof *t->grad);
    return t->coef == NULL || (t->ranks > 1 && t->grad == NULL) ? -ENOMEM : 0;
}

/* What the rank with the least has, and so on: all plan with that, so that all plan the same. */
static int agree_on_memory(struct trainer *t, struct err *err)
{
    double *v = calloc(3 * (size_t)t->ranks, sizeof *v), *page = v + t->ranks,
           *code = page + t->ranks;
    float none = 0;
    int r = v ? 0 : err_set(err, -ENOMEM, "out of memory");

    if (r == 0) {
        v[t->rank] = (double)t->free;
        page[t->rank] = (double)t->page;
        code[t->rank] = (double)t->code;
        r = coll_sum(t->coll, &none, 1, v, 3 * (size_t)t->ranks, err);
    }
    for (uint32_t i = 0; r == 0 && i < t->ranks; i++) {
        t->free = v[i] < (double)t->free ? (size_t)v[i] : t->free;
        t->page = page[i] > (double)t->page ? (size_t)page[i] : t->page;
        t->code = code[i] > (double)t->code ? (size_t)code[i] : t->code;
    }
    free(v);
    return r;
}

int trainer_plan(struct trainer *t, int64_t frozen_budget, struct err *err)
{
    int r = t->ranks > 1 ? agree_on_memory(t, err) : 0;

    if (r < 0)
        return r;
    const struct memory_ask ask = trainer_ask(t, frozen_budget);
    r = memory_choose(&ask, &t->memory, err);
    lap(t, STAGE_PLAN);
    if (r < 0)
        return r;
    t->plan = t->memory.plan;
    struct engine_opts eo = memory_engine(&ask, &t->memory);
    eo.ctx = t->ctx;
    eo.model = t->model;
    r = engine_open(&eo, &t->engine, err);
    if (r < 0)
        return r;
    r = open_buffers(t);
    if (r < 0)
        return err_set(err, r, "not enough memory for the buffers of a step");
    r = t->ops->sync(t->ctx); /* loading ends here, not in the first step */
    lap(t, STAGE_WEIGHTS);
    return r < 0 ? err_set(err, r, "loading the weights: the device failed: %s", strerror(-r)) : 0;
}

int trainer_held(const struct trainer *t, size_t *ret, struct err *err)
{
    const size_t before = t->info.uuid[0] ? t->info.held : 0;
    struct kn_info info;
    const int r = t->ops->info(t->ctx, &info);

    if (r < 0)
        return err_set(err, r, "the device does not answer: %s", strerror(-r));
    *ret = info.held > before ? info.held - before : 0;
    return 0;
}

void trainer_would_fit(const struct trainer *t, struct err *err)
{
    const struct err said = *err;
    struct memory_plan fits;
    struct kn_info info;
    struct err no;
    char hint[200];
    size_t held;

    if (!t->ctx || !t->adapter || !t->data || t->plan.steps == 0 || t->ops->info(t->ctx, &info) < 0)
        return; /* nothing was planned yet: the planner's own sentence stands */
    held = t->memory.adapter + (t->engine ? t->memory.engine.total - t->memory.engine.context : 0);
    struct spec spec = *t->spec;
    struct memory_ask ask = trainer_ask(t, 0);
    ask.spec = &spec;
    ask.code = 0;                                 /* lies there already */
    ask.free = (held + info.mem_free) / 100 * 95; /* the plan was wrong by something */
    if (ask.free >= t->memory.need)
        ask.free = t->memory.need / 100 * 95;
    spec.token_budget = 0;
    if (memory_choose(&ask, &fits, &no) == 0)
        snprintf(hint, sizeof hint,
                 "token_budget: %lld would fit with %lld of %lld layers computed again, at %zu MiB",
                 (long long)fits.plan.token_budget, (long long)fits.recompute,
                 (long long)fits.layers, (fits.need >> 20) + 1);
    else
        snprintf(hint, sizeof hint, "no token_budget would fit");
    err_set(err, -ENOMEM,
            "out of memory: %.500s. Planned were %zu MiB of %zu; now %zu MiB are free and %zu are "
            "held: %s",
            said.text, t->memory.need >> 20, t->memory.free >> 20, info.mem_free >> 20, held >> 20,
            hint);
}

void trainer_close(struct trainer *t)
{
    coll_detach(t->coll);
    if (t->ops != NULL && t->ctx != NULL) {
        t->ops->free(t->ctx, t->sweep);
        t->ops->free(t->ctx, t->adam);
    }
    free(t->coef);
    free(t->grad);
    head_out_free(&t->head);
    refcache_fini(&t->ref_train);
    refcache_fini(&t->ref_eval);
    sampler_fini(&t->sampler);
    engine_close(t->engine);
    lora_free(t->adapter);
    dataset_close(t->own_data);
    model_close(t->model);
    if (t->ops != NULL)
        t->ops->close(t->ctx);
    *t = (struct trainer){0};
}

static int move_state(const struct trainer *t, void *image, enum kn_dir dir, struct err *err)
{
    const int r = moments_move(t->ops, t->ctx, &t->adapter->moments, image, dir);

    return r < 0 ? err_set(err, r, "copying the adapter %s the device failed: %s",
                           dir == KN_TO_HOST ? "from" : "to", strerror(-r))
                 : 0;
}

size_t trainer_state_bytes(const struct trainer *t)
{
    return moments_image_bytes(&t->adapter->moments.shape);
}

int trainer_state_get(const struct trainer *t, void *image, struct err *err)
{
    return move_state(t, image, KN_TO_HOST, err);
}

int trainer_state_set(struct trainer *t, const void *image, struct err *err)
{
    return move_state(t, (void *)image, KN_TO_DEVICE, err); /* only read in this direction */
}
