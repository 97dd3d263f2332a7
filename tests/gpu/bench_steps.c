/* bench_steps.c - see bench.h. */
#include "tests/gpu/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

double bench_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int bench_fails(const char *what, const char *why)
{
    fprintf(stderr, "gpu_bench: %s: %s\n", what, why);
    return 1;
}

int bench_device_open(const char *backend, struct bench_device *d)
{
    char why[512] = "";
    struct kn_device first;
    int r = kn_backend(backend, &d->ops, why, sizeof why);

    if (r == 0)
        (void)d->ops->devices(&first, 1, why, sizeof why); /* for the reason */
    if (r == 0)
        r = d->ops->open(&(struct kn_open){.threads = 1, .compute = KN_BF16}, &d->ctx);
    return r < 0 ? bench_fails(backend, why[0] ? why : strerror(-r)) : 0;
}

static void note_memory(struct bench *b)
{
    struct kn_info info;

    if (b->t.ops->info(b->t.ctx, &info) == 0 && info.mem_free < b->free_least)
        b->free_least = info.mem_free;
}

int bench_reopen_engine(struct bench *b, struct err *err)
{
    const struct bench_engine *want = &b->engine;
    struct trainer *t = &b->t;
    struct memory_plan *m = &t->memory;
    const struct memory_ask ask = trainer_ask(t, 0);
    struct memory_plan chosen = *m;

    if (want->recompute >= 0)
        chosen.recompute = want->recompute < m->layers ? want->recompute : m->layers;
    if (want->per_use >= 0)
        chosen.per_use = want->per_use != 0;
    engine_close(t->engine);
    t->engine = NULL;
    struct engine_opts o = memory_engine(&ask, &chosen);
    o.ctx = t->ctx;
    o.model = t->model;
    if (want->all_rows) /* a pair's last prompt row stands twice */
        o.max_head = o.max_tokens + o.max_seqs;
    if (want->whole_logits) /* and what stands behind each row */
        o.logits_bytes =
            sizeof(float) * (size_t)o.max_head * (size_t)(t->model->config.vocab + 1024);
    int r = engine_plan_bytes(&o, &t->model->config, &chosen.engine);
    if (r == 0)
        r = engine_open(&o, &t->engine, err);
    chosen.need = chosen.engine.total + m->adapter + m->rest + m->process;
    if (r == 0)
        *m = chosen;
    return r;
}

static bool as_planned(const struct bench_engine *e)
{
    return e->recompute < 0 && e->per_use < 0 && !e->whole_logits && !e->all_rows;
}

int bench_open(struct bench *b, struct err *err)
{
    struct bench_device d = {0};
    struct kn_info info;
    const double t0 = bench_now();

    if (bench_device_open(b->backend, &d) != 0)
        return -ENOTSUP;
    (void)d.ops->info(d.ctx, &info); /* the driver's own context is not counted as ours */
    b->free_before = b->free_least = info.mem_free;
    d.ops->close(d.ctx);
    b->device_seconds = bench_now() - t0;
    int r =
        trainer_open(&b->t,
                     &(struct trainer_opts){
                         .spec = &b->spec, .backend = b->backend, .threads = 1, .data = &b->data},
                     err);
    if (r == 0 && b->opened)
        r = b->opened(b, b->opened_arg, err);
    if (r == 0)
        r = trainer_plan(&b->t, 0, err);
    if (r == 0 && !as_planned(&b->engine))
        r = bench_reopen_engine(b, err);
    b->ready_seconds = bench_now() - b->began;
    return r;
}

void bench_close(struct bench *b)
{
    if (b->t.ops)
        trainer_close(&b->t);
}

/* The start for another program: token ids and the adapter's PEFT files. */
int bench_write_start(struct bench *b, struct err *err)
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

int bench_step(struct bench *b, int step, struct step_result *ret, double *ret_seconds,
               struct err *err)
{
    struct trainer *t = &b->t;
    uint32_t *idx = malloc((size_t)b->rows.batch * sizeof *idx);
    int r = idx ? 0 : -ENOMEM;

    for (int i = 0; r == 0 && i < b->rows.batch; i++)
        idx[i] = (uint32_t)(step % BENCH_BATCHES * b->rows.batch + i);
    if (r == 0 && b->ref_each) {
        refcache_fini(&t->ref_train);
        r = refcache_init(&t->ref_train, t->data->train, t->plan.n_train);
    }
    const double t0 = bench_now();
    if (r == 0)
        r = step_run_on(t, step, idx, b->rows.batch, 0, step == 0, ret, err);
    *ret_seconds = bench_now() - t0;
    note_memory(b);
    free(idx);
    return r;
}

/* A micro-batch whose head has every row: behind the targets the other tokens, which
 * predict nothing. The arrays are the caller's to free, in *ret_rows. */
static int all_rows(const struct batch *m, struct batch *ret, int32_t **ret_rows)
{
    const int64_t most = m->n_head + m->n_tokens;
    int32_t *rows = malloc((size_t)most * 2 * sizeof *rows), *targets = rows + most;
    uint8_t *has = calloc(1, (size_t)m->n_tokens);

    *ret = *m;
    *ret_rows = rows;
    if (rows && has) {
        memcpy(rows, m->head_row, (size_t)m->n_head * sizeof *rows);
        memcpy(targets, m->head_target, (size_t)m->n_head * sizeof *targets);
        for (int64_t i = 0; i < m->n_head; i++)
            has[rows[i]] = 1;
        for (int32_t row = 0; row < m->n_tokens; row++) {
            if (has[row])
                continue;
            rows[ret->n_head] = row;
            targets[ret->n_head++] = m->ids[row];
        }
        ret->head_row = rows;
        ret->head_target = targets;
    }
    free(has);
    return rows && has ? 0 : -ENOMEM;
}

static bool same_logp(struct head_out *first, const struct head_out *now, int64_t n)
{
    if (!first)
        return true;
    if (first->cap > 0)
        return memcmp(first->logp, now->logp, (size_t)(n < first->cap ? n : first->cap) * 4) == 0;
    if (head_out_reserve(first, n) < 0)
        return false;
    memcpy(first->logp, now->logp, (size_t)n * 4);
    return true;
}

static int time_three(struct bench *b, const struct batch *m, struct bench_pass *p, struct err *err)
{
    struct trainer *t = &b->t;
    int r = 0;

    for (int k = 0; r == 0 && k < 3; k++) {
        const double t0 = bench_now();
        r = engine_forward(t->engine, m, NULL, false, 0, &t->head, err);
        const double t1 = bench_now();
        if (r == 0)
            r = engine_forward(t->engine, m, t->adapter, true, 0, &t->head, err);
        const double t2 = bench_now();
        if (r == 0)
            r = engine_backward(t->engine, m, t->adapter, 0, t->coef, err);
        if (r == 0)
            r = t->ops->sync(t->ctx);
        const double t3 = bench_now();
        p->reference = fmin(p->reference, t1 - t0);
        p->forward = fmin(p->forward, t2 - t1);
        p->backward = fmin(p->backward, t3 - t2);
        note_memory(b);
    }
    return r;
}

int bench_time_passes(struct bench *b, enum bench_rows_kind kind, struct bench_pass *ret,
                      struct head_out *first, struct err *err)
{
    struct trainer *t = &b->t;
    const struct example **v = malloc((size_t)b->rows.batch * sizeof *v);
    struct batch *m = NULL, use;
    float *coef = t->coef, *more = NULL;
    int32_t *rows = NULL;
    const int64_t budget =
        t->plan.token_budget < t->plan.max_tokens ? t->plan.token_budget : t->plan.max_tokens;
    int n = 0, r = v ? 0 : -ENOMEM;

    *ret = (struct bench_pass){.reference = 1e9, .forward = 1e9, .backward = 1e9};
    for (int i = 0; r == 0 && i < b->rows.batch; i++)
        v[i] = &b->data.train[i];
    if (r == 0)
        r = batch_pack(v, NULL, b->rows.batch, budget, kind != BENCH_UNSHARED, &m, &n);
    if (r < 0 || m[0].n_tokens > t->plan.max_tokens || m[0].n_head > t->plan.max_head)
        goto out; /* a budget of one pair with its prompt once */
    use = m[0];
    if (kind == BENCH_ALL_ROWS)
        r = all_rows(&m[0], &use, &rows);
    if (r == 0 && (more = calloc((size_t)use.n_head + 1, sizeof *more)) == NULL)
        r = -ENOMEM;
    for (int64_t i = 0; r == 0 && i < m[0].n_head; i++)
        more[i] = 1e-3f; /* the rows behind: no gradient */
    t->coef = more;
    if (r == 0)
        r = time_three(b, &use, ret, err);
    t->coef = coef;
    if (r == 0) {
        ret->pairs = use.n_examples;
        ret->tokens = use.n_tokens;
        ret->head_rows = use.n_head;
        ret->same = same_logp(first, &t->head, m[0].n_head);
    }
out:
    free(more);
    free(rows);
    batch_free_all(m, n);
    free(v);
    return r;
}
