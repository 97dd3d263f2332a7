/* engine_rig.h - a model folder opened on a backend, with an engine and an adapter. */
#ifndef TESTS_SUPPORT_ENGINE_RIG_H
#define TESTS_SUPPORT_ENGINE_RIG_H

#include "tests/support/has_sim.h"
#include "tests/support/test.h"

#include <errno.h>

#include "worker/engine.h"

struct rig {
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
    struct model *model;
    struct engine *engine;
    struct adapter *adapter;
    struct head_out out;
    struct spec spec;
};

struct rig_opts {
    const char *dir, *backend;
    int threads;
    bool bf16, nf4;
    double dropout;
    int r; /* 0: 4 */
    enum spec_dtype dtype;
    const char *only; /* one target module; NULL: all linears */
    int64_t max_tokens;
    int64_t recompute;
    bool per_use;
};

/* Returns false when the host has no such backend. */
static inline bool rig_open(struct rig *g, const struct rig_opts *o)
{
    struct err err = {""};
    char why[256];
    const struct kn_open open = {.threads = o->threads ? o->threads : 1,
                                 .compute = o->bf16 ? KN_BF16 : KN_F32};

    *g = (struct rig){0};
    g->spec = (struct spec){.lora_r = o->r ? o->r : 4,
                            .lora_alpha = 2 * (o->r ? o->r : 4),
                            .dtype = o->dtype,
                            .lora_all_linear = !o->only,
                            .lora_dropout = o->dropout,
                            .bf16 = o->bf16,
                            .load_in_4bit = o->nf4,
                            .bnb_4bit_quant_type = SPEC_NF4,
                            .bnb_4bit_use_double_quant = true,
                            .seed = 7};
    if (o->only) {
        g->spec.lora_target_modules[0] = (char *)o->only;
        g->spec.n_lora_target_modules = 1;
    }
    const int r = kn_backend(o->backend, &g->ops, why, sizeof why);
    if (r == -ENOENT && (has_sim || strcmp(o->backend, "sim") != 0))
        fail_msg("%s: %s", o->backend, why);
    if (r < 0)
        return false;
    if (g->ops->open(&open, &g->ctx) < 0)
        return false;
    if (model_open(o->dir, &g->model, &err) < 0)
        fail_msg("%s", err.text);
    const struct engine_opts e = {.ops = g->ops,
                                  .ctx = g->ctx,
                                  .model = g->model,
                                  .spec = &g->spec,
                                  .recompute = o->recompute,
                                  .per_use = o->per_use,
                                  .max_tokens = o->max_tokens ? o->max_tokens : 600,
                                  .max_head = 600,
                                  .max_seqs = 64,
                                  .max_positions = 256};
    if (engine_open(&e, &g->engine, &err) < 0)
        fail_msg("%s", err.text);
    if (lora_new(g->ops, g->ctx, g->model, &g->spec, &g->adapter, &err) < 0)
        fail_msg("%s", err.text);
    return true;
}

static inline void rig_close(struct rig *g)
{
    head_out_free(&g->out);
    if (g->ctx)
        lora_free(g->adapter);
    engine_close(g->engine);
    model_close(g->model);
    if (g->ctx)
        g->ops->close(g->ctx);
}

#endif
