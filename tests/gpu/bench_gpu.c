/* bench_gpu.c - how fast the worker's own engine and steps are on a device, and what
 * memory they take. One JSON object a line on standard output.
 *
 *   gpu_bench ceilings BACKEND
 *   gpu_bench steps    BACKEND MODEL METHOD P C R BATCH STEPS [key=value ...]
 *   gpu_bench ablate   BACKEND MODEL METHOD P C R BATCH STEPS [key=value ...]
 *
 * keys: budget, seed, bf16, nf4, r, lr, ref_each, ids=FILE, adapter=DIR; recompute=LAYERS and
 * per_use=1 instead of the memory planner's choice; passes=0: steps alone; from=N: ablate begins
 * with its Nth, near=1: only with those that need not keep every bit.
 * `steps` runs optimizer steps through step.h over random rows of P + C (+ R) tokens,
 * then times the engine's passes alone. `ablate` (bench_ablate.c) takes one technique away at
 * a time; BACKEND is then cudaplain or simplain. BENCH_BEGAN in the environment is the time
 * of the process's start, by CLOCK_MONOTONIC. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/gpu/bench_ablate.h"

enum { NO_DEVICE = 3 }; /* exit status of `ceilings` */

/* ---- ceilings ---- */

/* Best of several: a ceiling. */
static double copy_rate(const struct bench_device *d, size_t bytes, int rounds)
{
    void *a = NULL, *b = NULL;
    double best = 0;

    if (d->ops->alloc(d->ctx, bytes, &a) == 0 && d->ops->alloc(d->ctx, bytes, &b) == 0 &&
        d->ops->sync(d->ctx) == 0) {
        for (int i = 0; i < rounds; i++) {
            const double t0 = bench_now();
            for (int k = 0; k < 4; k++)
                (void)d->ops->copy(d->ctx, b, a, bytes, KN_ON_DEVICE);
            if (d->ops->sync(d->ctx) < 0)
                break;
            const double rate = 4 * 2.0 * (double)bytes / (bench_now() - t0);
            best = rate > best ? rate : best;
        }
    }
    d->ops->free(d->ctx, a);
    d->ops->free(d->ctx, b);
    return best;
}

static double product_rate(const struct bench_device *d, int64_t n, int rounds)
{
    bf16 *host = malloc((size_t)(n * n) * sizeof *host);
    struct kn_weight_part part = {.data = host, .dtype = KN_BF16, .n = n};
    const struct kn_weight_desc desc = {
        .parts = &part, .n_parts = 1, .k = n, .load_dtype = KN_BF16, .lora_cols = KN_NO_LORA};
    struct kn_linear_fwd f = {0};
    struct kn_weight *w = NULL;
    void *x = NULL, *y = NULL;
    double best = 0;
    const size_t bytes = (size_t)(n * n) * sizeof *host;
    const int64_t room = d->ops->lora_room(KN_NO_LORA); /* as the engine's: x is not copied */

    if (!host)
        return 0;
    for (int64_t i = 0; i < n * n; i += 4) { /* never zeros: they are faster */
        const struct kn_philox b = rng_philox(22, (uint64_t)i, 0);
        for (int k = 0; k < 4; k++)
            host[i + k] = bf16_from_f32((float)(int32_t)b.v[k] * 0x1p-31f);
    }
    if (d->ops->weight_open(d->ctx, &desc, &w) == 0 &&
        d->ops->alloc(d->ctx, (size_t)(n * (n + room)) * sizeof *host, &x) == 0 &&
        d->ops->alloc(d->ctx, bytes, &y) == 0 &&
        d->ops->copy(d->ctx, x, host, bytes, KN_TO_DEVICE) == 0) {
        f.w = w;
        f.x = (struct kn_mat){x, n, n, n + room, KN_BF16};
        f.x_room = room;
        f.y = (struct kn_mat){y, n, n, n, KN_BF16};
        for (int i = 0; i < rounds; i++) {
            const double t0 = bench_now();
            int r = 0;
            for (int k = 0; k < 4 && r == 0; k++)
                r = d->ops->linear_fwd(d->ctx, &f);
            if (r < 0 || d->ops->sync(d->ctx) < 0)
                break;
            const double rate = 4 * 2.0 * (double)n * (double)n * (double)n / (bench_now() - t0);
            if (i > 0)
                best = rate > best ? rate : best;
        }
    }
    d->ops->weight_close(d->ctx, w);
    d->ops->free(d->ctx, x);
    d->ops->free(d->ctx, y);
    free(host);
    return best;
}

static int ceilings(const char *backend)
{
    const bool small = strncmp(backend, "cuda", 4) != 0;
    struct bench_device d = {0};
    struct kn_info info;

    if (bench_device_open(backend, &d) != 0)
        return NO_DEVICE;
    if (d.ops->info(d.ctx, &info) < 0)
        return bench_fails(backend, "no answer");
    const double copy = copy_rate(&d, (size_t)1 << (small ? 22 : 30), 8);
    const double product = product_rate(&d, small ? 128 : 8192, small ? 2 : 12);
    printf("{\"kind\": \"ceilings\", \"device\": \"%s\", \"isa\": \"%s\", \"memory\": %zu, "
           "\"copy_bytes_per_s\": %.6g, \"product_n\": %d, \"product_flops\": %.6g}\n",
           info.device, info.isa, info.mem_total, copy, small ? 128 : 8192, product);
    d.ops->close(d.ctx);
    return copy > 0 && product > 0 ? 0 : bench_fails(backend, "a ceiling could not be measured");
}

/* ---- steps ---- */

static struct spec spec_of(const struct bench_rows *rows, char *model)
{
    return (struct spec){
        .method = rows->r > 0 ? SPEC_DPO : SPEC_SFT,
        .model_name_or_path = model,
        .model_dir = model,
        .model_revision = (char *)"",
        .dtype = SPEC_DTYPE_BF16,
        .load_in_4bit = true,
        .bnb_4bit_quant_type = SPEC_NF4,
        .bnb_4bit_use_double_quant = true,
        .bf16 = true,
        .lora_r = 16,
        .lora_alpha = 32,
        .lora_all_linear = true,
        .beta = 0.1,
        .disable_dropout = true,
        .learning_rate = 1e-4,
        .lr_scheduler_type = SPEC_CONSTANT,
        .max_grad_norm = 1.0,
        .adam_beta1 = 0.9,
        .adam_beta2 = 0.999,
        .adam_epsilon = 1e-8,
        .max_steps = 1000000,
        .train_batch_size = rows->batch,
        .token_budget = 8192,
        .seed = 1,
        .data_seed = 1,
        .devices = 1,
    };
}

static int option(struct bench *b, const char *text)
{
    const char *v = strchr(text, '=');
    const size_t n = v ? (size_t)(v - text) : 0;
    struct spec *s = &b->spec;

    if (!v++)
        return bench_fails(text, "key=value");
#define IS(name) (n == sizeof name - 1 && memcmp(text, name, n) == 0)
    if (IS("budget"))
        s->token_budget = strtol(v, NULL, 10);
    else if (IS("seed"))
        s->seed = s->data_seed = strtoul(v, NULL, 10);
    else if (IS("bf16"))
        s->bf16 = *v == '1';
    else if (IS("nf4"))
        s->load_in_4bit = *v == '1';
    else if (IS("r"))
        s->lora_r = (int)strtol(v, NULL, 10);
    else if (IS("lr"))
        s->learning_rate = strtod(v, NULL);
    else if (IS("recompute"))
        b->engine.recompute = strtol(v, NULL, 10);
    else if (IS("per_use"))
        b->engine.per_use = *v == '1';
    else if (IS("passes"))
        b->no_passes = *v == '0';
    else if (IS("near"))
        b->only_near = *v == '1';
    else if (IS("from"))
        b->from = (int)strtol(v, NULL, 10);
    else if (IS("ref_each"))
        b->ref_each = *v == '1';
    else if (IS("adapter"))
        snprintf(b->adapter, sizeof b->adapter, "%s", v);
    else if (IS("ids"))
        snprintf(b->ids, sizeof b->ids, "%s", v);
    else
        return bench_fails(text, "no such key");
#undef IS
    return 0;
}

/* Steps over the same few optimizer batches, so that the reference is there after the first
 * round; those first steps are not timed. */
static int run_steps(struct bench *b, struct err *err)
{
    const int warm = BENCH_BATCHES + 1;
    double took[BENCH_STEPS_MAX + 8], loss[BENCH_STEPS_MAX + 8], norm[BENCH_STEPS_MAX + 8];
    char stages[160];
    double done = 0;
    struct step_result s = {0};
    int r = 0;

    for (int step = 0; r == 0 && step < b->steps + warm; step++) {
        r = bench_step(b, step, &s, &took[step], err);
        done = step == 0 ? bench_now() - b->began : done;
        loss[step] = s.v[METRIC_LOSS];
        norm[step] = s.grad_norm;
    }
    if (r < 0)
        return r;
    trainer_stages_text(&b->t, stages, sizeof stages);
    printf("\"method\": \"%s\", \"shape\": [%d, %d, %d], \"batch\": %d, \"budget\": %lld, "
           "\"tokens\": %lld, \"real_tokens\": %lld, \"first_step\": %.4f, "
           "\"stages\": \"program=%.3f context=%.3f %s\", "
           "\"ready_seconds\": %.3f, \"first_step_done\": %.3f",
           b->spec.method == SPEC_DPO ? "dpo" : "sft", b->rows.p, b->rows.c, b->rows.r,
           b->rows.batch, (long long)b->t.plan.token_budget, (long long)s.tokens,
           (long long)s.num_tokens, took[0], b->main_seconds, b->device_seconds, stages,
           b->ready_seconds, done);
    bench_rows_list("seconds", took + warm, b->steps);
    bench_rows_list("loss", loss, b->steps + warm);
    bench_rows_list("grad_norm", norm, b->steps + warm);
    return 0;
}

static int passes(struct bench *b, struct err *err)
{
    struct bench_pass p;
    const int r = bench_time_passes(b, BENCH_SHARED, &p, NULL, err);

    if (r == 0 && p.pairs > 0)
        printf(", \"passes\": {\"pairs\": %d, \"tokens\": %lld, \"head_rows\": %lld, "
               "\"reference\": %.6f, \"forward\": %.6f, \"backward\": %.6f}",
               p.pairs, (long long)p.tokens, (long long)p.head_rows, p.reference, p.forward,
               p.backward);
    return r;
}

static void say_memory(struct bench *b)
{
    const struct memory_plan *m = &b->t.memory;

    printf(", \"parameters\": %lld, \"recompute\": %lld, \"layers\": %lld, \"per_use\": %s, "
           "\"planned_bytes\": %zu, \"engine_bytes\": %zu, \"peak_bytes\": %zu",
           (long long)b->t.adapter->n, (long long)m->recompute, (long long)m->layers,
           m->per_use ? "true" : "false", m->need, engine_bytes(b->t.engine),
           b->free_before - b->free_least);
}

static int steps(struct bench *b, struct err *err)
{
    int r = bench_open(b, err);

    if (r == 0)
        r = bench_write_start(b, err);
    if (r == 0) {
        printf("{\"kind\": \"steps\", ");
        r = run_steps(b, err);
    }
    if (r == 0 && !b->no_passes)
        r = passes(b, err);
    if (r == 0) {
        say_memory(b);
        printf("}\n");
    }
    bench_close(b);
    return r;
}

/* `steps` and `ablate` */
static int train(int argc, char **argv, double began)
{
    struct bench b = {.backend = argv[2],
                      .steps = (int)strtol(argv[9], NULL, 10),
                      .engine = {.recompute = -1, .per_use = -1},
                      .began = began};
    struct err err = {""};
    int r;

    b.main_seconds = bench_now() - began;
    b.rows = (struct bench_rows){.p = (int)strtol(argv[5], NULL, 10),
                                 .c = (int)strtol(argv[6], NULL, 10),
                                 .r = (int)strtol(argv[7], NULL, 10),
                                 .batch = (int)strtol(argv[8], NULL, 10)};
    if (b.rows.p < 1 || b.rows.c < 1 || b.rows.r < 0 || b.rows.batch < 1 || b.steps < 0 ||
        b.steps > BENCH_STEPS_MAX || (strcmp(argv[4], "dpo") == 0) != (b.rows.r > 0))
        return bench_fails(argv[1], "METHOD P C R BATCH STEPS do not go together");
    b.spec = spec_of(&b.rows, argv[3]);
    for (int i = 10; i < argc; i++)
        if (option(&b, argv[i]) != 0)
            return 2;
    r = bench_rows_make(&b.rows, b.spec.model_dir, b.spec.seed, &b.data, &err);
    if (r == 0)
        r = strcmp(argv[1], "steps") == 0 ? steps(&b, &err) : bench_ablate(&b, &err);
    bench_rows_free(&b.data);
    return r == 0 ? 0 : bench_fails(argv[1], err.text[0] ? err.text : strerror(-r));
}

int main(int argc, char **argv)
{
    const char *told = getenv("BENCH_BEGAN");
    const double began = told ? strtod(told, NULL) : bench_now();

    setvbuf(stdout, NULL, _IOLBF, 1 << 16); /* what was measured is kept if this crashes */
    if (argc == 3 && strcmp(argv[1], "ceilings") == 0)
        return ceilings(argv[2]);
    if (argc >= 10 && (strcmp(argv[1], "steps") == 0 || strcmp(argv[1], "ablate") == 0))
        return train(argc, argv, began);
    fprintf(stderr,
            "use: %s ceilings BACKEND\n"
            "     %s steps|ablate BACKEND MODEL METHOD P C R BATCH STEPS [key=value ...]\n",
            argv[0], argv[0]);
    return 2;
}
