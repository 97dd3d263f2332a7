/* bench_ablate.c - see bench_ablate.h.
 *
 * All variants start from the same adapter, a few steps old so that B is not zero, and
 * keep it (learning rate 0): their losses and gradient norms must agree, to the bit where
 * a technique changes no sum. */
#include "tests/gpu/bench_ablate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/gpu/plain.h"

enum { WARM = 3, FIRST = BENCH_BATCHES };

enum keeps { BITS, NEAR, NOTHING }; /* of losses and gradient norms */

struct variant {
    const char *label;
    enum keeps keeps;
    unsigned without; /* plain.h */
    struct bench_engine engine;
    enum bench_rows_kind rows; /* not BENCH_SHARED: the passes alone                 */
    bool ref_each, one_example, bf16_base, adamw8;
    int32_t only; /* 0: any method                                                   */
};

#define PLANNED .engine = {.recompute = -1, .per_use = -1}

/* By engine, so that it is opened anew as seldom as can be. */
static const struct variant variants[] = {
    {"everything on", BITS, PLANNED},
    {"reference in every step", BITS, PLANNED, .ref_each = true, .only = SPEC_DPO},
    {"one example at a time", NEAR, PLANNED, .one_example = true},
    {"prompt computed twice", BITS, PLANNED, .rows = BENCH_UNSHARED, .only = SPEC_DPO},
    {"adapters in products of their own", NEAR, .without = PLAIN_LORA, PLANNED},
    {"norms and residuals unfused", NEAR, .without = PLAIN_NORM, PLANNED},
    {"RoPE unfused", NEAR, .without = PLAIN_ROPE, PLANNED},
    {"SwiGLU unfused", NEAR, .without = PLAIN_SWIGLU, PLANNED},
    {"log-softmax unfused", NEAR, .without = PLAIN_LOGPROB, PLANNED},
    {"AdamW in 8 bits", BITS, PLANNED, .adamw8 = true},
    {"attention on the portable kernels", NEAR, .without = PLAIN_MMA, PLANNED},
    {"logits in one piece", BITS, .engine = {-1, -1, true, false}},
    {"logits of prompts too", BITS, .engine = {-1, -1, false, true}, .rows = BENCH_ALL_ROWS},
    {"dequantised per use", BITS, .engine = {-1, 1, false, false}},
    {"dequantised per use, one stream", BITS, .without = PLAIN_SIDE,
     .engine = {-1, 1, false, false}},
    {"all layers recomputed", BITS, .engine = {1000, -1, false, false}},
    {"everything on, again", BITS, PLANNED},
    {"base in bf16", NOTHING, PLANNED, .bf16_base = true},
};
enum { VARIANTS = sizeof variants / sizeof variants[0] };

struct ablation {
    struct bench *b;
    plain_set *plain;
    struct kn_ops table;
    float *start; /* the adapter all variants have */
    int64_t budget;
    struct bench_engine open; /* what the engine was opened with                    */
    bool nf4;
    struct head_out first; /* log-probs of a micro-batch, everything on             */
};

static int put_start(struct ablation *a, enum kn_dir dir, struct err *err)
{
    struct trainer *t = &a->b->t;
    const size_t bytes = (size_t)t->adapter->n * sizeof *a->start;
    int r;

    if (!a->start && (a->start = malloc(bytes)) == NULL)
        return err_set(err, -ENOMEM, "out of memory");
    r = dir == KN_TO_HOST ? t->ops->copy(t->ctx, a->start, t->adapter->p, bytes, dir)
                          : t->ops->copy(t->ctx, t->adapter->p, a->start, bytes, dir);
    return r < 0 ? err_set(err, r, "the adapter: %s", strerror(-r)) : 0;
}

/* ---- AdamW in 8 bits, over moments of its own that lie on the device: kn_adamw's place in
 * the table. With a learning rate of 0 neither of the two moves the adapter. */

static struct {
    const struct kn_ops *product;
    struct kn_adamw8 a; /* p, g, sweep and step are each call's                     */
    char *memory;
} eight;

static int adamw8_instead(struct kn_ctx *ctx, const struct kn_adamw *a)
{
    struct kn_adamw8 e = eight.a;

    e.p = a->p;
    e.g = a->g;
    e.sweep = a->sweep;
    e.step = a->step;
    return a->n == e.n ? eight.product->adamw8(ctx, &e) : -EINVAL;
}

/* One piece of memory: blocks, scales, codes; moments of 0. */
static int adamw8_take(struct ablation *a, struct err *err)
{
    struct trainer *t = &a->b->t;
    const int64_t n = t->adapter->n, blocks = (n + KN_ADAMW8_BLOCK - 1) / KN_ADAMW8_BLOCK;
    const size_t head = (size_t)blocks * (sizeof(struct kn_adamw8_block) + 2 * sizeof(float));
    char *host = calloc(1, head + 2 * (size_t)n);
    void *memory = NULL;
    int r = host ? t->ops->alloc(t->ctx, head + 2 * (size_t)n, &memory) : -ENOMEM;

    if (r == 0) {
        struct kn_adamw8_block *block = (void *)host;
        for (int64_t i = 0; i < blocks; i++) {
            const int64_t at = i * KN_ADAMW8_BLOCK, left = n - at;
            block[i] = (struct kn_adamw8_block){
                .at = at,
                .full = -1,
                .n = (int32_t)(left < KN_ADAMW8_BLOCK ? left : KN_ADAMW8_BLOCK)};
        }
        memset(host + head, 127, (size_t)n); /* m's code of 0; v's is 0 */
        r = t->ops->copy(t->ctx, memory, host, head + 2 * (size_t)n, KN_TO_DEVICE);
    }
    free(host);
    if (r < 0) {
        t->ops->free(t->ctx, memory);
        return err_set(err, r, "the moments in 8 bits: %s", strerror(-r));
    }
    eight.memory = memory;
    float *scales = (void *)(eight.memory + (size_t)blocks * sizeof(struct kn_adamw8_block));
    eight.a = (struct kn_adamw8){.m = (uint8_t *)(eight.memory + head),
                                 .v = (uint8_t *)(eight.memory + head) + n,
                                 .m_scale = scales,
                                 .v_scale = scales + blocks,
                                 .block = memory,
                                 .n = n,
                                 .n_blocks = blocks};
    return 0;
}

static bool same_engine(const struct bench_engine *a, const struct bench_engine *b)
{
    return a->recompute == b->recompute && a->per_use == b->per_use &&
           a->whole_logits == b->whole_logits && a->all_rows == b->all_rows;
}

/* The trainer, and the engine that it is about to open, use our table from here on. */
static int take_table(struct bench *b, void *arg, struct err *err)
{
    struct ablation *a = arg;
    struct trainer *t = &b->t;
    void *symbol = kn_symbol(t->ops, "", "kn_plain");

    memcpy(&a->plain, &symbol, sizeof a->plain); /* ISO C has no cast from data to function */
    if (!a->plain)
        return err_set(err, -ENOTSUP, "backend %s has no kn_plain: cudaplain, simplain have",
                       b->backend);
    const int r = a->plain(t->ctx, &a->table, 0);
    eight.product = t->ops;
    t->ops = &a->table;
    return r < 0 ? err_set(err, r, "kn_plain: %s", strerror(-r)) : 0;
}

static void close_trainer(struct ablation *a)
{
    if (eight.memory)
        a->b->t.ops->free(a->b->t.ctx, eight.memory);
    eight.memory = NULL;
    if (a->plain && a->b->t.ctx)
        (void)a->plain(a->b->t.ctx, &a->table, 0);
    bench_close(a->b);
}

static int open_trainer(struct ablation *a, bool nf4, struct err *err)
{
    struct bench *b = a->b;
    struct step_result s;
    double seconds;

    close_trainer(a);
    b->spec.load_in_4bit = a->nf4 = nf4;
    b->engine = a->open = (struct bench_engine){.recompute = -1, .per_use = -1};
    b->opened = take_table;
    b->opened_arg = a;
    int r = bench_open(b, err);
    a->budget = b->t.plan.token_budget;
    if (r < 0 || a->start)
        return r < 0 ? r : put_start(a, KN_TO_DEVICE, err);
    for (int step = 0; r == 0 && step < WARM; step++)
        r = bench_step(b, step, &s, &seconds, err);
    b->spec.learning_rate = 0; /* from here on they all have this adapter */
    return r < 0 ? r : put_start(a, KN_TO_HOST, err);
}

static int prepare(struct ablation *a, const struct variant *v, struct err *err)
{
    struct bench *b = a->b;
    int r = 0;

    if (v->bf16_base == a->nf4)
        r = open_trainer(a, !v->bf16_base, err);
    if (r == 0)
        r = a->plain(b->t.ctx, &a->table, v->without);
    if (r == 0 && !same_engine(&v->engine, &a->open)) {
        b->engine = a->open = v->engine;
        r = bench_reopen_engine(b, err);
    }
    if (r == 0 && v->adamw8) {
        if (!eight.memory)
            r = adamw8_take(a, err);
        a->table.adamw = adamw8_instead;
    }
    b->ref_each = v->ref_each;
    b->t.plan.token_budget = v->one_example ? b->rows.p + b->rows.c + b->rows.r : a->budget;
    return r;
}

static int time_passes(struct ablation *a, enum bench_rows_kind kind, struct err *err)
{
    struct bench_pass p;
    const int r = bench_time_passes(a->b, kind, &p, &a->first, err);

    if (r == 0 && p.pairs > 0)
        printf(", \"passes\": {\"pairs\": %d, \"tokens\": %lld, \"head_rows\": %lld, "
               "\"reference\": %.6f, \"forward\": %.6f, \"backward\": %.6f, \"same\": %s}",
               p.pairs, (long long)p.tokens, (long long)p.head_rows, p.reference, p.forward,
               p.backward, p.same ? "true" : "false");
    return r;
}

static int run(struct ablation *a, const struct variant *v, struct err *err)
{
    struct bench *b = a->b;
    double took[BENCH_STEPS_MAX + FIRST], loss[FIRST], norm[FIRST];
    struct step_result s;
    int r = prepare(a, v, err);

    if (r < 0)
        return r;
    for (int step = 0; r == 0 && v->rows == BENCH_SHARED && step < b->steps + FIRST; step++) {
        /* from WARM on: the first step of all checks that it is the first */
        r = bench_step(b, step + FIRST * WARM, &s, &took[step], err);
        if (step < FIRST) {
            loss[step] = s.v[METRIC_LOSS];
            norm[step] = s.grad_norm;
        }
    }
    if (r < 0)
        return r;
    printf("{\"kind\": \"variant\", \"number\": %d, \"label\": \"%s\", \"keeps\": \"%s\"",
           (int)(v - variants), v->label,
           v->keeps == BITS   ? "bits"
           : v->keeps == NEAR ? "near"
                              : "nothing");
    if (v->rows == BENCH_SHARED) {
        bench_rows_list("seconds", took + FIRST, b->steps);
        bench_rows_list("loss", loss, FIRST);
        bench_rows_list("grad_norm", norm, FIRST);
    }
    if (v == variants || v->rows != BENCH_SHARED)
        r = time_passes(a, v->rows, err);
    printf("}\n");
    return r;
}

int bench_ablate(struct bench *b, struct err *err)
{
    struct ablation a = {.b = b};
    int r = open_trainer(&a, true, err);

    for (int i = 0; r == 0 && i < VARIANTS; i++) {
        const struct variant *v = &variants[i];
        if ((i > 0 && i < b->from) || (v->only && v->only != (int32_t)b->spec.method))
            continue;
        if (b->only_near && v->keeps != NEAR && i > 0)
            continue;
        printf("{\"kind\": \"trying\", \"number\": %d, \"label\": \"%s\"}\n", i, v->label);
        r = run(&a, v, err);
    }
    close_trainer(&a);
    head_out_free(&a.first);
    free(a.start);
    return r;
}
