/* bench_gpu.c - how fast the worker's own engine and steps are on a device, and what
 * memory they take. One JSON object a line on standard output.
 *
 *   gpu_bench ceilings BACKEND
 *   gpu_bench steps    BACKEND MODEL METHOD P C R BATCH STEPS [key=value ...]
 *
 * keys: budget, seed, bf16, nf4, r, lr, ref_each, ids=FILE, adapter=DIR; recompute=LAYERS and
 * per_use=1 instead of the memory planner's choice.
 * `steps` runs optimizer steps through step.h over random rows of P + C (+ R) tokens,
 * then times the engine's passes alone. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <fcntl.h>
#include <unistd.h>

#include "tests/gpu/bench_rows.h"
#include "worker/step.h"

enum { NO_DEVICE = 3 }; /* exit status of `ceilings` */

struct bench {
    const char *backend;
    struct spec spec;
    struct bench_rows rows;
    struct dataset data;
    struct trainer t;
    int steps;
    bool ref_each;
    int64_t recompute; /* -1, and per_use -1: as planned                              */
    int per_use;
    size_t free_before, free_least; /* of the device                                 */
    double open_seconds;
    char adapter[1024], ids[1024]; /* where the start is written for another program */
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int fails(const char *what, const char *why)
{
    fprintf(stderr, "gpu_bench: %s: %s\n", what, why);
    return 1;
}

/* ---- ceilings ---- */

struct device {
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
};

static int device_open(const char *backend, struct device *d)
{
    char why[512] = "";
    struct kn_device first;
    int r = kn_backend(backend, &d->ops, why, sizeof why);

    if (r == 0)
        (void)d->ops->devices(&first, 1, why, sizeof why); /* for the reason */
    if (r == 0)
        r = d->ops->open(&(struct kn_open){.threads = 1, .compute = KN_BF16}, &d->ctx);
    return r < 0 ? fails(backend, why[0] ? why : strerror(-r)) : 0;
}

/* Best of several: a ceiling. */
static double copy_rate(const struct device *d, size_t bytes, int rounds)
{
    void *a = NULL, *b = NULL;
    double best = 0;

    if (d->ops->alloc(d->ctx, bytes, &a) == 0 && d->ops->alloc(d->ctx, bytes, &b) == 0 &&
        d->ops->sync(d->ctx) == 0) {
        for (int i = 0; i < rounds; i++) {
            const double t0 = now();
            for (int k = 0; k < 4; k++)
                (void)d->ops->copy(d->ctx, b, a, bytes, KN_ON_DEVICE);
            if (d->ops->sync(d->ctx) < 0)
                break;
            const double rate = 4 * 2.0 * (double)bytes / (now() - t0);
            best = rate > best ? rate : best;
        }
    }
    d->ops->free(d->ctx, a);
    d->ops->free(d->ctx, b);
    return best;
}

static double product_rate(const struct device *d, int64_t n, int rounds)
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
            const double t0 = now();
            int r = 0;
            for (int k = 0; k < 4 && r == 0; k++)
                r = d->ops->linear_fwd(d->ctx, &f);
            if (r < 0 || d->ops->sync(d->ctx) < 0)
                break;
            const double rate = 4 * 2.0 * (double)n * (double)n * (double)n / (now() - t0);
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
    const bool small = strcmp(backend, "cuda") != 0;
    struct device d = {0};
    struct kn_info info;

    if (device_open(backend, &d) != 0)
        return NO_DEVICE;
    if (d.ops->info(d.ctx, &info) < 0)
        return fails(backend, "no answer");
    const double copy = copy_rate(&d, (size_t)1 << (small ? 22 : 30), 8);
    const double product = product_rate(&d, small ? 128 : 8192, small ? 2 : 12);
    printf("{\"kind\": \"ceilings\", \"device\": \"%s\", \"isa\": \"%s\", \"memory\": %zu, "
           "\"copy_bytes_per_s\": %.6g, \"product_n\": %d, \"product_flops\": %.6g}\n",
           info.device, info.isa, info.mem_total, copy, small ? 128 : 8192, product);
    d.ops->close(d.ctx);
    return copy > 0 && product > 0 ? 0 : fails(backend, "a ceiling could not be measured");
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
        return fails(text, "key=value");
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
        b->recompute = strtol(v, NULL, 10);
    else if (IS("per_use"))
        b->per_use = *v == '1';
    else if (IS("ref_each"))
        b->ref_each = *v == '1';
    else if (IS("adapter"))
        snprintf(b->adapter, sizeof b->adapter, "%s", v);
    else if (IS("ids"))
        snprintf(b->ids, sizeof b->ids, "%s", v);
    else
        return fails(text, "no such key");
#undef IS
    return 0;
}

static void note_memory(struct bench *b)
{
    struct kn_info info;

    if (b->t.ops->info(b->t.ctx, &info) == 0 && info.mem_free < b->free_least)
        b->free_least = info.mem_free;
}

/* Another choice than the planner's: the engine once more, with it. */
static int reopen_engine(struct bench *b, struct err *err)
{
    struct trainer *t = &b->t;
    struct memory_plan *m = &t->memory;
    const struct memory_ask ask = trainer_ask(t, 0);

    if (b->recompute < 0 && b->per_use < 0)
        return 0;
    if (b->recompute >= 0)
        m->recompute = b->recompute < m->layers ? b->recompute : m->layers;
    if (b->per_use >= 0)
        m->per_use = b->per_use != 0;
    engine_close(t->engine);
    t->engine = NULL;
    struct engine_opts o = memory_engine(&ask, m);
    o.ctx = t->ctx;
    o.model = t->model;
    int r = engine_plan_bytes(&o, &t->model->config, &m->engine);
    if (r == 0)
        r = engine_open(&o, &t->engine, err);
    m->need = m->engine.total + m->adapter + m->rest;
    return r;
}

static int open_trainer(struct bench *b, struct err *err)
{
    struct device d = {0};
    struct kn_info info;
    const double t0 = now();

    if (device_open(b->backend, &d) != 0)
        return -ENOTSUP;
    (void)d.ops->info(d.ctx, &info); /* the driver's own context is not counted as ours */
    b->free_before = b->free_least = info.mem_free;
    d.ops->close(d.ctx);
    int r =
        trainer_open(&b->t,
                     &(struct trainer_opts){
                         .spec = &b->spec, .backend = b->backend, .threads = 1, .data = &b->data},
                     err);
    if (r == 0)
        r = trainer_plan(&b->t, 0, err);
    if (r == 0)
        r = reopen_engine(b, err);
    b->open_seconds = now() - t0;
    return r;
}

/* The start for another program: token ids and the adapter's PEFT files. */
static int write_start(struct bench *b, struct err *err)
{
    int r = 0, fd;

    if (b->ids[0] != 0 && bench_rows_write(&b->rows, b->ids) < 0)
        return err_set(err, -errno, "%s: %s", b->ids, strerror(errno));
    if (b->adapter[0] == 0)
        return 0;
    (void)mkdir(b->adapter, 0700);
    fd = open(b->adapter, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, -errno, "%s: %s", b->adapter, strerror(errno));
    r = lora_save(b->t.adapter, b->t.model, &b->spec, fd, err);
    close(fd);
    return r;
}

/* Steps over the same few optimizer batches, so that the reference is there after the first
 * round; those first steps are not timed. */
static int run_steps(struct bench *b, struct err *err)
{
    struct trainer *t = &b->t;
    const int warm = 2 * BENCH_BATCHES;
    double took[512], loss[512], norm[512];
    struct step_result s = {0};
    uint32_t *idx = malloc((size_t)b->rows.batch * sizeof *idx);
    int r = idx ? 0 : -ENOMEM;

    for (int step = 0; r == 0 && step < b->steps + warm; step++) {
        for (int i = 0; i < b->rows.batch; i++)
            idx[i] = (uint32_t)(step % BENCH_BATCHES * b->rows.batch + i);
        if (b->ref_each) {
            refcache_fini(&t->ref_train);
            r = refcache_init(&t->ref_train, t->data->train, t->plan.n_train);
            if (r < 0)
                break;
        }
        const double t0 = now();
        r = step_run_on(t, step, idx, b->rows.batch, 0, step == 0, &s, err);
        took[step] = now() - t0;
        loss[step] = s.v[METRIC_LOSS];
        norm[step] = s.grad_norm;
        note_memory(b);
    }
    free(idx);
    if (r < 0)
        return r;
    printf("\"method\": \"%s\", \"shape\": [%d, %d, %d], \"batch\": %d, \"budget\": %lld, "
           "\"tokens\": %lld, \"real_tokens\": %lld, \"open_seconds\": %.3f, \"first_step\": %.4f",
           b->spec.method == SPEC_DPO ? "dpo" : "sft", b->rows.p, b->rows.c, b->rows.r,
           b->rows.batch, (long long)t->plan.token_budget, (long long)s.tokens,
           (long long)s.num_tokens, b->open_seconds, took[0]);
    bench_rows_list("seconds", took + warm, b->steps);
    bench_rows_list("loss", loss, b->steps + warm);
    bench_rows_list("grad_norm", norm, b->steps + warm);
    return 0;
}

/* One micro-batch of the first optimizer step, as often as asked: seconds of each pass. */
static int time_passes(struct bench *b, bool share, struct err *err)
{
    struct trainer *t = &b->t;
    const struct example **v = malloc((size_t)b->rows.batch * sizeof *v);
    struct batch *m = NULL;
    const int64_t budget =
        t->plan.token_budget < t->plan.max_tokens ? t->plan.token_budget : t->plan.max_tokens;
    int n = 0, r = v ? 0 : -ENOMEM;
    double forward = 1e9, backward = 1e9, reference = 1e9;

    for (int i = 0; r == 0 && i < b->rows.batch; i++)
        v[i] = &b->data.train[i];
    if (r == 0)
        r = batch_pack(v, NULL, b->rows.batch, budget, share, &m, &n);
    if (r == 0 && (m[0].n_tokens > t->plan.max_tokens || m[0].n_head > t->plan.max_head)) {
        batch_free_all(m, n); /* a budget of one pair with its prompt once */
        free(v);
        return 0;
    }
    for (int64_t i = 0; r == 0 && i < m[0].n_head; i++)
        t->coef[i] = 1e-3f;
    for (int k = 0; r == 0 && k < 3; k++) {
        const double t0 = now();
        r = engine_forward(t->engine, &m[0], NULL, false, 0, &t->head, err);
        const double t1 = now();
        if (r == 0)
            r = engine_forward(t->engine, &m[0], t->adapter, true, 0, &t->head, err);
        const double t2 = now();
        if (r == 0)
            r = engine_backward(t->engine, &m[0], t->adapter, 0, t->coef, err);
        if (r == 0)
            r = t->ops->sync(t->ctx);
        const double t3 = now();
        reference = fmin(reference, t1 - t0);
        forward = fmin(forward, t2 - t1);
        backward = fmin(backward, t3 - t2);
        note_memory(b);
    }
    if (r == 0)
        printf(", \"passes_%s\": {\"pairs\": %d, \"tokens\": %lld, \"head_rows\": %lld, "
               "\"reference\": %.6f, \"forward\": %.6f, \"backward\": %.6f}",
               share ? "shared" : "unshared", m[0].n_examples, (long long)m[0].n_tokens,
               (long long)m[0].n_head, reference, forward, backward);
    batch_free_all(m, n);
    free(v);
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

static int steps(int argc, char **argv)
{
    struct bench b = {.backend = argv[2],
                      .steps = (int)strtol(argv[9], NULL, 10),
                      .recompute = -1,
                      .per_use = -1};
    struct err err = {""};
    int r;

    b.rows = (struct bench_rows){.p = (int)strtol(argv[5], NULL, 10),
                                 .c = (int)strtol(argv[6], NULL, 10),
                                 .r = (int)strtol(argv[7], NULL, 10),
                                 .batch = (int)strtol(argv[8], NULL, 10)};
    if (b.rows.p < 1 || b.rows.c < 1 || b.rows.r < 0 || b.rows.batch < 1 || b.steps < 0 ||
        b.steps > 400 || (strcmp(argv[4], "dpo") == 0) != (b.rows.r > 0))
        return fails("steps", "METHOD P C R BATCH STEPS do not go together");
    b.spec = spec_of(&b.rows, argv[3]);
    for (int i = 10; i < argc; i++)
        if (option(&b, argv[i]) != 0)
            return 2;
    r = bench_rows_make(&b.rows, b.spec.model_dir, b.spec.seed, &b.data, &err);
    if (r == 0)
        r = open_trainer(&b, &err);
    if (r == 0)
        r = write_start(&b, &err);
    if (r == 0) {
        printf("{\"kind\": \"steps\", ");
        r = run_steps(&b, &err);
    }
    if (r == 0)
        r = time_passes(&b, true, &err);
    if (r == 0 && b.rows.r > 0) /* what computing each prompt twice costs */
        r = time_passes(&b, false, &err);
    if (r == 0) {
        say_memory(&b);
        printf("}\n");
    }
    if (b.t.ops)
        trainer_close(&b.t);
    bench_rows_free(&b.data);
    return r == 0 ? 0 : fails("steps", err.text[0] ? err.text : strerror(-r));
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "ceilings") == 0)
        return ceilings(argv[2]);
    if (argc >= 10 && strcmp(argv[1], "steps") == 0)
        return steps(argc, argv);
    fprintf(stderr,
            "use: %s ceilings BACKEND\n"
            "     %s steps BACKEND MODEL METHOD P C R BATCH STEPS [key=value ...]\n",
            argv[0], argv[0]);
    return 2;
}
