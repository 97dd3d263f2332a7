/* run.c - see run.h. One rank of a gang from its first file to its exit code. */
#include "worker/run.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/log.h"
#include "proto/sha256.h"
#include "worker/ckpt.h"
#include "worker/evaluate.h"
#include "worker/link.h"
#include "worker/publish.h"
#include "worker/report.h"
#include "worker/step.h"
#include "worker/tokenizer_files.h"
#include "worker/trainer.h"

struct run {
    const struct run_opts *o;
    const struct spec *spec;
    struct trainer t;
    struct ckpt_state state; /* where the run is; equal on every rank                */
    int64_t began;           /* step this attempt began at                           */
    int64_t saved;           /* step of this attempt's last checkpoint; -1: none     */
    bool fresh;              /* the adapter is untouched                             */
    bool stopped;
    /* rank 0's alone */
    struct rundir dir;
    struct spool *spool;
    struct history history;
    struct report report;
    void *image; /* host copy of the adapter's state, for checkpoints                  */
    double start_seconds;
    int64_t examples; /* trained by this attempt                                      */
};

static bool leads(const struct run *r)
{
    return r->o->rank == 0;
}

/* ---- start ---- */

static void describe(struct run *r)
{
    struct ckpt_state *s = &r->state;
    const char *json = r->o->resolved_json != NULL ? r->o->resolved_json : "";

    *s = (struct ckpt_state){.attempt = r->o->attempt,
                             .adapter = r->t.adapter->moments.shape,
                             .names_optim = true,
                             .ranks = r->t.ranks,
                             .threads = r->t.threads};
    snprintf(s->backend, sizeof s->backend, "%s", r->t.ops->name);
    snprintf(s->isa, sizeof s->isa, "%s", r->t.info.isa);
    sha256_of(json, strlen(json), s->spec_digest);
    memcpy(s->data_digest, r->t.data->digest, sizeof s->data_digest);
    memcpy(s->model_digest, r->t.model->digest, sizeof s->model_digest);
}

/* Rank 0 looks for a checkpoint. 1: found, and the run may go on from it. */
static int look(struct run *r, struct ckpt_state *found, void **ret_image, struct err *err)
{
    struct err note;
    char name[64];
    int n = ckpt_find(r->spec->output_dir, r->o->attempt, found, ret_image, name, &note, err);

    if (note.text[0] != 0)
        log_warn("resume", "ignoring a checkpoint: %s", note.text);
    if (n <= 0)
        return n;
    n = ckpt_fits(found, &r->state, r->spec->bitwise, err);
    if (n < 0) {
        free(*ret_image);
        *ret_image = NULL;
        return err_prefix(err, n, "%s/%s", r->spec->output_dir, name);
    }
    if (found->names_optim &&
        memcmp(found->spec_digest, r->state.spec_digest, sizeof found->spec_digest) != 0)
        log_warn("resume", "the job changed since %s was written", name);
    log_info("resume", "from=%s step=%lld", name, (long long)found->global_step);
    return 1;
}

/* What all ranks have to agree on before they plan. */
struct start {
    int64_t found; /* 0 or 1 */
    struct ckpt_state state;
};

static int adopt(struct run *r, const struct ckpt_state *found)
{
    struct ckpt_state *s = &r->state;

    s->global_step = found->global_step;
    s->num_tokens = found->num_tokens;
    s->loss_sum = found->loss_sum;
    s->window = found->window;
    s->token_budget = found->token_budget;
    r->fresh = false;
    return 0;
}

static int share_state(struct run *r, void *image, struct err *err)
{
    const size_t bytes = trainer_state_bytes(&r->t);
    const size_t chunk = (size_t)64 << 20; /* a collective's buffers stay small */
    int n_err = 0;

    for (size_t at = 0; n_err == 0 && r->t.ranks > 1 && at < bytes; at += chunk) {
        const size_t left = bytes - at;
        n_err = coll_broadcast(r->t.coll, (char *)image + at, left < chunk ? left : chunk, 0, err);
    }
    return n_err < 0 ? n_err : trainer_state_set(&r->t, image, err);
}

static int resume(struct run *r, struct err *err)
{
    struct start s;
    void *image = NULL;
    int n = 0;

    memset(&s, 0, sizeof s);
    r->fresh = true;
    if (leads(r) && r->o->attempt > 1) {
        n = look(r, &s.state, &image, err);
        if (n < 0)
            return n;
        s.found = n;
    }
    n = r->t.ranks > 1 ? coll_broadcast(r->t.coll, &s, sizeof s, 0, err) : 0;
    if (n == 0 && s.found)
        n = adopt(r, &s.state);
    if (n == 0)
        n = trainer_plan(&r->t, r->spec->bitwise ? r->state.token_budget : 0, err);
    if (n == 0 && (s.found || leads(r)) && image == NULL) {
        image = malloc(trainer_state_bytes(&r->t));
        n = image != NULL ? 0 : err_set(err, -ENOMEM, "out of memory for a copy of the adapter");
    }
    if (n == 0 && s.found)
        n = share_state(r, image, err);
    r->state.token_budget = r->t.plan.token_budget;
    r->began = r->state.global_step;
    r->saved = -1;
    if (leads(r))
        r->image = image;
    else
        free(image);
    return n;
}

static int open_files(struct run *r, struct err *err)
{
    char path[LIMIT_PATH];
    int n;

    r->report = (struct report){.spec = r->spec, .plan = &r->t.plan, .history = &r->history};
    if (!leads(r))
        return 0;
    n = rundir_open(&r->dir, r->spec->output_dir, r->o->attempt, err);
    if (n == 0)
        n = history_load(&r->history, &r->dir, r->began, err);
    if (n < 0)
        return n;
    if (snprintf(path, sizeof path, "%s/attempts/%u", r->spec->output_dir, r->o->attempt) >=
        (int)sizeof path)
        return err_set(err, -ENAMETOOLONG, "output_dir: name too long");
    n = spool_create(path, r->o->attempt, &r->spool, err);
    r->report.spool = r->spool;
    return n;
}

static void say_plan(const struct run *r)
{
    const struct plan *p = &r->t.plan;
    char text[320];

    if (!leads(r))
        return;
    log_info("run",
             "backend=%s device=\"%s\" isa=%s ranks=%u sums=%s threads=%d parameters=%lld "
             "memory=%.1fMB%s%s",
             r->t.ops->name, r->t.info.device, r->t.info.isa, r->t.ranks,
             coll_attached(r->t.coll) ? "nccl" : "host", r->t.threads, (long long)r->t.adapter->n,
             (double)r->t.memory.need / 1e6, r->t.info.uuid[0] ? " gpu=" : "", r->t.info.uuid);
    memory_text(&r->t.memory, text, sizeof text);
    log_info("memory", "%s", text);
    log_info("run",
             "examples=%lld eval=%lld dropped=%lld cut=%lld batch=%lld steps=%lld epochs=%.2f "
             "warmup=%lld token_budget=%lld longest=%d",
             (long long)p->n_train, (long long)p->n_eval, (long long)r->t.data->n_dropped,
             (long long)r->t.data->n_cut, (long long)p->batch, (long long)p->steps, p->epochs,
             (long long)p->warmup, (long long)p->token_budget, r->t.data->longest);
}

/* Which rows are used can be looked up while the run trains, and when it fails; the
 * tokenizer's files are there for the checkpoints. No step depends on either, so a full
 * disk is only said. */
static void say_rows(const struct run *r)
{
    const struct publish p = {.dir = &r->dir, .spec = r->spec, .data = r->t.data};
    struct err err = {0};

    if (!leads(r))
        return;
    if (publish_rows(&p, &err) < 0)
        log_warn("rows", "error=\"%s\"", err.text);
    if (tokenizer_files_keep(r->spec->model_dir, &r->dir, &err) < 0)
        log_warn("tokenizer", "checkpoints go without its files: %s", err.text);
}

static int start(struct run *r, struct err *err)
{
    const struct trainer_opts to = {.spec = r->spec,
                                    .backend = r->o->backend,
                                    .uuid = r->o->uuid,
                                    .threads = r->o->threads,
                                    .coll = r->o->coll};
    int n;

    link_progress(r->o->link, LINK_LOADING, 0, 0);
    n = trainer_open(&r->t, &to, err);
    if (n < 0)
        return n;
    describe(r);
    n = resume(r, err);
    if (n == 0)
        n = open_files(r, err);
    if (n < 0)
        return n;
    say_plan(r);
    say_rows(r);
    return report_start(&r->report, r->began, err);
}

/* ---- checkpoints and what is published ---- */

static double total_flos(const struct run *r)
{
    /* As transformers counts: 6 per token and parameter that multiplies it. */
    const struct model_config *c = &r->t.model->config;

    return 6.0 * (double)r->state.num_tokens * (double)(model_parameters(c) - c->vocab * c->hidden);
}

static void print_trainer_state(const struct run *r, struct text_out *out)
{
    history_print(&r->history,
                  &(struct history_state){.spec = r->spec,
                                          .plan = &r->t.plan,
                                          .global_step = r->state.global_step,
                                          .num_tokens = r->state.num_tokens,
                                          .total_flos = total_flos(r)},
                  out);
}

/* must: the run ends on it, so it has to be there. Otherwise a failure is said and the
 * checkpoints of before remain (service.md 9). */
static int save(struct run *r, bool must, struct err *err)
{
    struct text_out text = {0};
    int n;

    if (!leads(r) || r->saved == r->state.global_step)
        return 0;
    link_progress(r->o->link, LINK_SAVING, r->state.global_step, r->t.plan.steps);
    n = trainer_state_get(&r->t, r->image, err);
    if (n < 0)
        return n;
    print_trainer_state(r, &text);
    n = text.error < 0 ? err_set(err, text.error, "out of memory for trainer_state.json") : 0;
    if (n == 0)
        n = ckpt_save(&(struct ckpt_save){.dir = &r->dir,
                                          .state = &r->state,
                                          .image = r->image,
                                          .adapter = r->t.adapter,
                                          .model = r->t.model,
                                          .spec = r->spec,
                                          .trainer_state = text.p,
                                          .trainer_state_bytes = text.bytes,
                                          .keep = r->spec->save_total_limit},
                      err);
    text_out_free(&text);
    if (n == 0) {
        r->saved = r->state.global_step;
        log_info("checkpoint", "step=%lld path=%s/checkpoint-%lld", (long long)r->saved,
                 r->spec->output_dir, (long long)r->saved);
    } else if (!must && n != -ESTALE) {
        log_warn("checkpoint", "not written, ignoring: %s", err->text);
        n = 0;
    }
    return n;
}

static int publish(struct run *r, struct err *err)
{
    struct text_out text = {0};
    int n;

    if (!leads(r))
        return 0;
    print_trainer_state(r, &text);
    n = text.error < 0 ? err_set(err, text.error, "out of memory for trainer_state.json") : 0;
    if (n == 0)
        n = publish_run(&(struct publish){.dir = &r->dir,
                                          .spec = r->spec,
                                          .resolved_json = r->o->resolved_json,
                                          .user_json = r->o->user_json,
                                          .data = r->t.data,
                                          .adapter = r->t.adapter,
                                          .model = r->t.model,
                                          .trainer_state = &text},
                        err);
    text_out_free(&text);
    if (n == 0)
        log_info("published", "adapter=%s", r->spec->output_dir);
    return n;
}

/* ---- the loop ---- */

static bool every(int64_t step, int64_t n)
{
    return n > 0 && step % n == 0;
}

static int evaluate(struct run *r, struct err *err)
{
    const double began = report_now();
    double v[METRICS];
    int n;

    link_progress(r->o->link, LINK_EVALUATING, r->state.global_step, r->t.plan.steps);
    n = evaluate_run(&r->t, r->t.plan.n_eval, v, err);
    if (n < 0)
        return err_prefix(err, n, "evaluation after step %lld", (long long)r->state.global_step);
    return report_eval(&r->report, r->state.global_step, v, report_now() - began,
                       r->state.num_tokens, err);
}

/* What is due after a step, in the Trainer's order: log, evaluate, save. */
static int after_step(struct run *r, const struct step_result *s, struct err *err)
{
    struct ckpt_state *now = &r->state;
    const int64_t steps = r->t.plan.steps;
    const bool last = now->global_step >= steps;
    const bool stop = (s->flags & LINK_STOP) != 0 && !last;
    int n = 0;

    if (every(now->global_step, r->spec->logging_steps) || last) {
        n = report_train(&r->report, now->global_step, &now->window, s, now->num_tokens, err);
        now->window = (struct metrics_window){0};
    }
    if (n == 0 && r->t.plan.n_eval > 0 && (every(now->global_step, r->spec->eval_steps) || last))
        n = evaluate(r, err);
    if (n == 0 && (every(now->global_step, r->spec->save_steps) || last || s->flags != 0))
        n = save(r, last || stop, err);
    r->stopped = stop;
    return n;
}

/* Where the time before the first step went. */
static void say_start(const struct run *r, double first_step)
{
    char text[160];
    double all = first_step;

    for (int i = 0; i < TRAINER_STAGES; i++)
        all += r->t.took[i];
    trainer_stages_text(&r->t, text, sizeof text);
    if (leads(r))
        log_info("start", "seconds=%.3f %s first_step=%.3f", all, text, first_step);
}

static int train(struct run *r, struct err *err)
{
    struct ckpt_state *now = &r->state;
    int n = 0;

    r->start_seconds = report_now();
    while (n == 0 && !r->stopped && now->global_step < r->t.plan.steps) {
        const unsigned told = link_flags(r->o->link) & (LINK_CHECKPOINT | LINK_STOP);
        const double began = report_now();
        struct step_result s;

        link_progress(r->o->link, LINK_TRAINING, now->global_step, r->t.plan.steps);
        n = step_run(&r->t, now->global_step, told, r->fresh, &s, err);
        if (n < 0)
            break;
        if (now->global_step == r->began)
            say_start(r, report_now() - began);
        r->fresh = false;
        now->global_step++;
        now->num_tokens += s.num_tokens;
        now->loss_sum += s.v[METRIC_LOSS];
        metrics_window_add(&now->window, s.v, s.examples);
        r->examples += s.examples;
        report_timed(&r->report, report_now() - began, &s);
        n = after_step(r, &s, err);
        if (told != 0)
            link_clear(r->o->link, told);
    }
    link_progress(r->o->link, LINK_TRAINING, now->global_step, r->t.plan.steps);
    return n;
}

static void say_held(const struct run *r)
{
    struct err err;
    size_t held;

    if (leads(r) && trainer_held(&r->t, &held, &err) == 0)
        log_info("memory", "held=%.1fMB planned=%.1fMB", (double)held / 1e6,
                 (double)r->t.memory.need / 1e6);
}

static int finish(struct run *r, struct err *err)
{
    const struct ckpt_state *now = &r->state;
    const double seconds = report_now() - r->start_seconds;
    const double loss = now->global_step > 0 ? now->loss_sum / (double)now->global_step : 0;
    int n = 0;

    say_held(r);
    if (!r->stopped)
        n = report_summary(&r->report, now->global_step, loss, seconds, now->global_step - r->began,
                           r->examples, total_flos(r), err);
    if (n == 0)
        n = publish(r, err);
    if (n == 0 && !r->stopped) /* DONE says: the finished result lies in output_dir */
        link_progress(r->o->link, LINK_DONE, now->global_step, r->t.plan.steps);
    return n;
}

static int exit_code(const struct run *r, int n)
{
    switch (n) {
    case 0:
        return r->stopped ? RUN_EXIT_STOPPED : RUN_EXIT_DONE;
    case -ENOMEM:
        return RUN_EXIT_OOM;
    case -ECONNRESET: /* only the collective says these two */
    case -ETIMEDOUT:
        return RUN_EXIT_PEER;
    default:
        return RUN_EXIT_ERROR;
    }
}

int run_train(const struct run_opts *o, struct err *err)
{
    struct run r = {.o = o, .spec = o->spec, .dir = {.fd = -1, .attempt_fd = -1}};
    int n, code;

    err->text[0] = 0;
    n = start(&r, err);
    if (n == 0)
        n = train(&r, err);
    if (n == 0)
        n = finish(&r, err);
    if (n == -ENOMEM)
        trainer_would_fit(&r.t, err);
    code = exit_code(&r, n);
    if (n < 0 && err->text[0] == 0)
        err_set(err, n, "%s", strerror(-n));
    spool_close(r.spool);
    history_free(&r.history);
    rundir_close(&r.dir);
    free(r.image);
    trainer_close(&r.t);
    return code;
}
