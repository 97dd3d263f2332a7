/* try.c - see try.h. */
#include "worker/try.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/ckpt.h"
#include "worker/evaluate.h"
#include "worker/report.h"
#include "worker/step.h"
#include "worker/trainer.h"

struct item {
    int64_t tokens;
    uint32_t index;
};

static int longer_first(const void *a, const void *b)
{
    const struct item *x = a, *y = b;

    if (x->tokens != y->tokens)
        return x->tokens > y->tokens ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

/* The examples of a rank's share of the longest step there could be. */
static int longest(const struct trainer *t, uint32_t **ret, int *ret_n, int64_t *ret_tokens)
{
    const int64_t n = t->plan.n_train, devices = t->spec->devices > 0 ? t->spec->devices : 1;
    int64_t k = (t->plan.batch + devices - 1) / devices;
    struct item *v = malloc((size_t)n * sizeof *v);
    uint32_t *idx;

    k = k < n ? k : n;
    idx = malloc((size_t)k * sizeof *idx);
    if (v == NULL || idx == NULL) {
        free(v);
        free(idx);
        return -ENOMEM;
    }
    for (int64_t i = 0; i < n; i++)
        v[i] = (struct item){batch_example_tokens(&t->data->train[i], true), (uint32_t)i};
    qsort(v, (size_t)n, sizeof *v, longer_first);
    *ret_tokens = 0;
    for (int64_t i = 0; i < k; i++) {
        idx[i] = v[i].index;
        *ret_tokens += v[i].tokens;
    }
    free(v);
    *ret = idx;
    *ret_n = (int)k;
    return 0;
}

/* Two steps: the first also computes the reference, the second is timed. */
static int steps(struct trainer *t, struct try_result *ret, struct err *err)
{
    uint32_t *idx = NULL;
    int n = 0, r;
    int64_t tokens = 0;
    const double share = t->spec->devices > 1 ? t->spec->devices : 1;
    double began, reference = 0;
    struct step_result s;

    r = longest(t, &idx, &n, &tokens);
    if (r < 0)
        return err_set(err, r, "out of memory");
    began = report_now();
    r = step_run_on(t, 0, idx, n, 0, true, &s, err);
    if (r == 0) {
        reference = report_now() - began;
        ret->step0_loss = s.v[METRIC_LOSS];
        ret->grad_norm = s.grad_norm;
        began = report_now();
        r = step_run_on(t, 1, idx, n, 0, false, &s, err);
    }
    if (r == 0) {
        const double per_token = (report_now() - began) / (double)tokens;
        const double mean = (double)t->plan.train_tokens / (double)t->plan.steps_per_epoch / share;
        const double first_pass = t->plan.epochs < 1 ? t->plan.epochs : 1;

        ret->longest_seconds = report_now() - began;
        reference = reference > ret->longest_seconds ? reference - ret->longest_seconds : 0;
        ret->step1_loss = s.v[METRIC_LOSS];
        ret->seconds_per_step = per_token * mean;
        ret->total_seconds =
            ret->seconds_per_step * (double)t->plan.steps +
            reference / (double)tokens * first_pass * (double)t->plan.train_tokens / share;
    }
    free(idx);
    return r;
}

static int evaluation(struct trainer *t, struct try_result *ret, struct err *err)
{
    const int64_t n = t->plan.n_eval < t->plan.batch ? t->plan.n_eval : t->plan.batch;
    const int64_t every = t->spec->eval_steps;
    const double share = t->spec->devices > 1 ? t->spec->devices : 1;
    double v[METRICS], began;
    int64_t tokens = 0;
    int r = 0;

    ret->eval_loss = NAN;
    if (n == 0)
        return 0;
    r = evaluate_run(t, n, v, err); /* with the reference: once per run */
    began = report_now();
    if (r == 0)
        r = evaluate_run(t, n, v, err);
    if (r < 0)
        return r;
    ret->eval_loss = v[METRIC_LOSS];
    for (int64_t i = 0; i < n; i++)
        tokens += batch_example_tokens(&t->data->eval[i], true);
    ret->total_seconds +=
        (report_now() - began) / (double)tokens * (double)t->plan.eval_tokens / share *
        (double)(every > 0 ? t->plan.steps / every + (t->plan.steps % every != 0) : 1);
    return 0;
}

static size_t folder_bytes(const char *dir)
{
    static const char *const names[] = {"adapter_model.safetensors", "adapter_config.json",
                                        "state.safetensors", "state.json", "trainer_state.json"};
    size_t bytes = 0;

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[PATH_MAX];
        struct stat st;
        if (snprintf(path, sizeof path, "%s/%s", dir, names[i]) < (int)sizeof path &&
            stat(path, &st) == 0)
            bytes += (size_t)st.st_size;
    }
    return bytes;
}

static struct ckpt_state state_of(const struct trainer *t)
{
    struct ckpt_state s = {.global_step = 2,
                           .adapter = t->adapter->moments.shape,
                           .names_optim = true,
                           .attempt = 1,
                           .token_budget = t->plan.token_budget,
                           .ranks = t->ranks,
                           .threads = t->threads};

    snprintf(s.backend, sizeof s.backend, "%s", t->ops->name);
    snprintf(s.isa, sizeof s.isa, "%s", t->info.isa);
    return s;
}

/* Writes a checkpoint under dir and reads it back. */
static int checkpoint_in(struct trainer *t, const char *dir, void *image, struct try_result *ret,
                         struct err *err)
{
    const struct ckpt_state s = state_of(t);
    struct ckpt_state got;
    struct rundir d = {.fd = -1, .attempt_fd = -1};
    char path[PATH_MAX];
    void *back = NULL;
    int r = rundir_open(&d, dir, 1, err);

    if (r == 0)
        r = ckpt_save(&(struct ckpt_save){.dir = &d,
                                          .state = &s,
                                          .image = image,
                                          .adapter = t->adapter,
                                          .model = t->model,
                                          .spec = t->spec,
                                          .trainer_state = "{}\n",
                                          .trainer_state_bytes = 3},
                      err);
    rundir_close(&d);
    snprintf(path, sizeof path, "%s/checkpoint-2", dir);
    if (r == 0)
        r = ckpt_load(path, &got, &back, err);
    if (r == 0) {
        ret->checkpoint = memcmp(back, image, trainer_state_bytes(t)) == 0;
        ret->checkpoint_bytes = folder_bytes(path);
    }
    free(back);
    return r;
}

static int checkpoint(struct trainer *t, struct try_result *ret, struct err *err)
{
    const char *tmp = getenv("TMPDIR");
    char dir[PATH_MAX], attempt[PATH_MAX + 16], attempts[PATH_MAX + 16];
    void *image = malloc(trainer_state_bytes(t));
    int r;

    if (image == NULL)
        return err_set(err, -ENOMEM, "out of memory for a copy of the adapter");
    snprintf(dir, sizeof dir, "%s/alignd-try-XXXXXX", tmp != NULL && *tmp == '/' ? tmp : "/tmp");
    if (mkdtemp(dir) == NULL) {
        r = err_set(err, -errno, "%s: %s", dir, strerror(errno));
        free(image);
        return r;
    }
    snprintf(attempts, sizeof attempts, "%s/attempts", dir);
    snprintf(attempt, sizeof attempt, "%s/attempts/1", dir);
    r = mkdir(attempts, 0700) < 0 || mkdir(attempt, 0700) < 0
            ? err_set(err, -errno, "%s: %s", attempt, strerror(errno))
            : trainer_state_get(t, image, err);
    if (r == 0)
        r = checkpoint_in(t, dir, image, ret, err);
    (void)rundir_remove(AT_FDCWD, dir);
    free(image);
    return r;
}

static void describe(const struct trainer *t, struct try_result *ret)
{
    ret->plan = t->plan;
    ret->lora_parameters = t->adapter->n;
    ret->starts_at_reference = t->spec->method == SPEC_DPO && !trainer_dropout(t->spec);
    for (int i = 0; i < t->spec->n_train; i++)
        ret->rows += t->data->n_rows[i];
    for (int64_t i = 0; i < t->data->n_dropped; i++)
        ret->dropped[t->data->dropped[i].reason]++;
    ret->n_dropped = t->data->n_dropped;
    ret->n_cut = t->data->n_cut;
    ret->longest = t->data->longest;
}

int try_run(const struct spec *spec, const struct device_set *devices, int threads,
            struct try_result *ret, struct err *err)
{
    const struct trainer_opts o = {.spec = spec,
                                   .backend = devices->backend,
                                   .uuid = devices->gpu ? devices->v[0].uuid : NULL,
                                   .as_of = spec->devices > 1 ? (uint32_t)spec->devices : 1,
                                   .threads = threads};
    struct trainer t;
    int r = trainer_open(&t, &o, err);

    *ret = (struct try_result){0};
    if (r == 0)
        r = trainer_plan(&t, 0, err);
    if (r == 0) {
        describe(&t, ret);
        ret->memory = t.memory;
        ret->plan_bytes = t.memory.need;
    }
    if (r == 0)
        r = steps(&t, ret, err);
    if (r == 0)
        r = evaluation(&t, ret, err);
    if (r == 0) /* by now all has grown to what it stays */
        r = trainer_held(&t, &ret->peak_bytes, err);
    if (r == 0)
        r = checkpoint(&t, ret, err);
    if (r == -ENOMEM)
        trainer_would_fit(&t, err);
    trainer_close(&t);
    return r;
}
