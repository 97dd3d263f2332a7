/* rehearse.c - see rehearse.h. */
#include "worker/rehearse.h"

#include <errno.h>
#include <string.h>

#include "worker/batch.h"

enum { TOKENS = 8, HALVES = 2 };

static int passes(struct engine *e, const struct batch *b, struct adapter *a,
                  const struct spec *spec, struct err *err)
{
    const uint64_t drop = spec->lora_dropout > 0 && !spec->disable_dropout;
    float coef[HALVES * TOKENS] = {0};
    struct head_out out = {0};
    int r = head_out_reserve(&out, b->n_head);

    if (r == 0 && spec->method == SPEC_DPO)
        r = engine_forward(e, b, NULL, false, 0, &out, err);
    if (r == 0)
        r = engine_forward(e, b, a, true, drop, &out, err);
    if (r == 0)
        r = engine_backward(e, b, a, drop, coef, err);
    head_out_free(&out);
    return r;
}

static int in_context(struct engine_opts *o, const struct batch *b, struct adapter *a,
                      struct err *err)
{
    struct engine *e = NULL;
    int r = engine_open(o, &e, err);

    if (r == 0)
        r = passes(e, b, a, o->spec, err);
    if (r == 0)
        r = o->ops->sync(o->ctx);
    engine_close(e);
    return r;
}

static int whole(const struct kn_ops *ops, const char *uuid, struct model *model,
                 struct adapter *adapter, const struct spec *spec, struct err *err)
{
    static const int32_t ids[3 * TOKENS];
    const struct example x = {.prompt = ids,
                              .n_prompt = TOKENS,
                              .reply = {ids, ids},
                              .n_reply = {TOKENS, spec->method == SPEC_DPO ? TOKENS : 0}};
    const struct example *const one = &x;
    struct model first = *model; /* its other layers are not looked at */
    struct batch *b = NULL;
    struct kn_ctx *ctx = NULL;
    int n = 0, r = batch_pack(&one, NULL, 1, 3 * TOKENS, true, &b, &n);

    first.config.layers = 1;
    if (r == 0)
        r = ops->open(
            &(struct kn_open){.uuid = uuid, .threads = 1, .compute = spec->bf16 ? KN_BF16 : KN_F32},
            &ctx);
    if (r == 0)
        r = in_context(&(struct engine_opts){.ops = ops,
                                             .ctx = ctx,
                                             .model = &first,
                                             .spec = spec,
                                             .per_use = spec->load_in_4bit,
                                             .params = adapter->n,
                                             .max_tokens = b->n_tokens,
                                             .max_head = b->n_head,
                                             .max_seqs = HALVES,
                                             .max_positions = 2 * TOKENS},
                       b, adapter, err);
    ops->close(ctx);
    batch_free_all(b, n);
    return r;
}

int rehearse(const struct kn_ops *ops, struct kn_ctx *ctx, const char *uuid, struct model *model,
             struct adapter *adapter, const struct spec *spec, size_t *ret, struct err *err)
{
    struct kn_info before, after;
    int r = ops->info(ctx, &before);

    *ret = 0;
    if (r == 0) {
        err->text[0] = '\0';
        r = whole(ops, uuid, model, adapter, spec, err);
    }
    if (r == -ENOMEM)
        return 0;
    if (r == 0)
        r = ops->info(ctx, &after);
    if (r < 0)
        return err->text[0]
                   ? err_prefix(err, r, "the first pass on the device")
                   : err_set(err, r, "the first pass on the device failed: %s", strerror(-r));
    *ret = before.mem_free > after.mem_free ? before.mem_free - after.mem_free : 0;
    return 0;
}
