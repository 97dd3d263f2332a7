/* effects.c - batches: the core decides, the store writes, then the rest happens. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/alignd.h"
#include "proto/log.h"

enum { RETRY_MS = 1000 };

struct later { /* an answer made from the core's memory */
    uint64_t request;
    uint8_t *frame;
    size_t bytes;
};

struct batch {
    uint64_t number;
    int64_t opened_s; /* core_age() */
    struct effects fx;
    struct store_log *logs;
    size_t n_logs, cap_logs;
    struct later *laters;
    size_t n_laters, cap_laters;
};

static void batch_free(struct batch *b)
{
    if (!b)
        return;
    event_effects_fini(&b->fx);
    for (size_t i = 0; i < b->n_logs; i++)
        free((void *)b->logs[i].data);
    for (size_t i = 0; i < b->n_laters; i++)
        free(b->laters[i].frame);
    free(b->logs);
    free(b->laters);
    free(b);
}

static bool batch_empty(const struct batch *b)
{
    return b->fx.n == 0 && b->n_logs == 0 && b->n_laters == 0;
}

static struct batch *batch_new(struct alignd *a)
{
    struct batch *b = calloc(1, sizeof *b);

    if (!b)
        alignd_give_up(a, "out of memory");
    b->number = ++a->batches;
    b->opened_s = core_age(a->core);
    return b;
}

/* ---- carrying out ---- */

static void log_job(const struct effect *e)
{
    const struct job *j = &e->job;

    if (e->kind == FX_SUBMITTED)
        log_info("job_submitted", "job=%llu user=%u name=\"%s\" devices=%u",
                 (unsigned long long)j->id, j->uid, j->name, j->devices);
    else
        log_debug("job", "job=%llu state=%s attempt=%u step=%lld", (unsigned long long)j->id,
                  job_state_name(j->state), j->attempt, (long long)j->step);
}

static void log_attempt(const struct effect *e)
{
    const struct attempt *t = &e->attempt;

    log_info("attempt", "job=%llu attempt=%u state=%s step=%lld code=%d signal=%d error=\"%s\"",
             (unsigned long long)t->job, t->attempt, job_state_name(t->state), (long long)t->step,
             t->exit_code, t->exit_signal, t->error ? t->error : "");
}

/* A row is durable: those who watch may see it. */
static void row_done(struct alignd *a, const struct effect *e)
{
    switch (e->kind) {
    case FX_SUBMITTED:
    case FX_JOB:
        log_job(e);
        break;
    case FX_ATTEMPT:
        log_attempt(e);
        feed_attempt(a, e->attempt.job);
        break;
    case FX_GANG_GONE:
        gangs_gone(a, e->gang_ref.job, e->gang_ref.attempt);
        break;
    case FX_REPORT:
        feed_report(a, &e->report);
        break;
    case FX_REWIND:
        feed_rewind(a, &e->rewind);
        break;
    case FX_RDV_PUT:
        held_value(a, &e->rdv);
        break;
    default:
        break;
    }
}

static void hold(struct alignd *a, const struct fx_hold *h)
{
    const struct request *q = server_request(a, h->client);
    const struct held w = {.kind = h->key ? HELD_RDV : HELD_POLL,
                           .request = h->client,
                           .uid = q ? q->uid : 0,
                           .job = h->job,
                           .attempt = h->attempt,
                           .since = q ? q->seen : 0,
                           .key = (char *)h->key};

    if (q && held_add(a, &w) < 0)
        server_error(a, h->client, MSG_RETRY, "out of memory");
}

static void act(struct alignd *a, const struct effect *e)
{
    switch (e->kind) {
    case FX_LAUNCH:
        gangs_launch(a, &e->launch);
        break;
    case FX_STOP:
        gangs_stop(a, e->gang_ref.job, e->gang_ref.attempt);
        break;
    case FX_KILL:
        gangs_kill(a, e->gang_ref.job, e->gang_ref.attempt);
        break;
    case FX_REPLY:
        server_reply(a, &e->reply);
        break;
    case FX_HOLD:
        hold(a, &e->hold);
        break;
    default:
        break;
    }
}

static void carry_out(struct alignd *a, struct batch *b)
{
    for (size_t i = 0; i < b->fx.n; i++)
        if (event_is_row(b->fx.v[i].kind))
            row_done(a, &b->fx.v[i]);
    for (size_t i = 0; i < b->fx.n; i++)
        if (!event_is_row(b->fx.v[i].kind) && !b->fx.v[i].now)
            act(a, &b->fx.v[i]);
    for (size_t i = 0; i < b->n_logs; i++) {
        const struct store_log *l = &b->logs[i];
        struct gangs_log *end = gangs_log(a, l->job, l->attempt, l->rank);
        if (end && end->durable < l->at + l->bytes)
            end->durable = l->at + l->bytes;
    }
    a->durable = b->number;
    for (size_t i = 0; i < b->n_laters; i++)
        server_send_frame(a, b->laters[i].request, b->laters[i].frame, b->laters[i].bytes);
}

/* ---- the pipe to the store ---- */

static void flush(struct alignd *a)
{
    while (!a->flying && !a->retrying && !a->tidying && !batch_empty(a->open)) {
        struct batch *b = a->open;
        const bool stored = b->fx.rows > 0 || b->n_logs > 0;
        a->open = batch_new(a);
        if (stored) {
            a->flying = b;
            if (committer_start(a->committer, &b->fx, b->logs, b->n_logs) < 0)
                alignd_give_up(a, "the store's thread is out of step");
            return;
        }
        carry_out(a, b);
        batch_free(b);
    }
}

static void on_prepare(uv_prepare_t *h)
{
    struct alignd *a = h->data;

    flush(a);
    if (core_stopping(a->core) && effects_clean(a) && !uv_is_active((uv_handle_t *)&a->goodbye))
        alignd_stop(a);
}

static void on_retry(uv_timer_t *t)
{
    struct alignd *a = t->data;

    a->flying = a->retrying;
    a->retrying = NULL;
    if (committer_start(a->committer, &a->flying->fx, a->flying->logs, a->flying->n_logs) < 0)
        alignd_give_up(a, "the store's thread is out of step");
}

static void disk_full(struct alignd *a, const char *why)
{
    a->retrying = a->flying;
    a->flying = NULL;
    uv_timer_start(&a->retry, on_retry, RETRY_MS, 0);
    if (a->store_full)
        return;
    log_error("store_full", "why=\"%s\"; nothing is acknowledged or started until there is room",
              why);
    a->store_full = true;
    effects_step(a, &(struct event){.kind = EV_STORE_FULL});
}

static void on_committed(uv_async_t *h)
{
    struct alignd *a = h->data;
    struct err err = {""};
    struct batch *b = a->flying;
    int r;

    if (committer_take(a->committer, &r, &err) != 0)
        return;
    if (a->tidying) { /* what has come meanwhile is flushed before the loop waits again */
        a->tidying = false;
        tidy_done(a, r, committer_tidied(a->committer), err.text);
        return;
    }
    if (r == -ENOSPC) {
        disk_full(a, err.text);
        return;
    }
    if (r < 0) {
        alignd_give_up(a, err.text);
        return;
    }
    a->flying = NULL;
    carry_out(a, b);
    batch_free(b);
    if (a->store_full) {
        a->store_full = false;
        log_info("store_ok", "there is room again");
        effects_step(a, &(struct event){.kind = EV_STORE_OK});
    }
    held_look(a);
}

static void on_done(void *arg) /* the store's thread */
{
    uv_async_send(&((struct alignd *)arg)->committed);
}

int effects_open(struct alignd *a)
{
    int r;

    a->open = batch_new(a);
    uv_async_init(a->loop, &a->committed, on_committed);
    uv_prepare_init(a->loop, &a->prepare);
    uv_timer_init(a->loop, &a->retry);
    a->committed.data = a->prepare.data = a->retry.data = a;
    r = committer_open(a->store, on_done, a, &a->committer);
    if (r == 0)
        uv_prepare_start(&a->prepare, on_prepare);
    return r;
}

void effects_close(struct alignd *a)
{
    committer_close(a->committer);
    a->committer = NULL;
    batch_free(a->open);
    batch_free(a->flying);
    batch_free(a->retrying);
    a->open = a->flying = a->retrying = NULL;
}

void effects_step(struct alignd *a, const struct event *ev)
{
    struct effects *fx = &a->open->fx;
    const size_t from = fx->n;
    const int r = core_step(a->core, alignd_boottime_ns(), alignd_wall_ms(), ev, fx);

    if (r < 0 || fx->failed) {
        alignd_give_up(a, "out of memory");
        return;
    }
    for (size_t i = from; i < fx->n; i++) {
        if (fx->v[i].now)
            act(a, &fx->v[i]);
    }
}

bool effects_clean(const struct alignd *a)
{
    return !a->flying && !a->retrying && batch_empty(a->open);
}

bool effects_tidy(struct alignd *a, const struct store_keep *keep)
{
    if (!effects_clean(a) || a->tidying || committer_start_tidy(a->committer, keep) < 0)
        return false;
    a->tidying = true;
    return true;
}

int64_t effects_durable_s(const struct alignd *a)
{
    const struct batch *oldest = a->retrying ? a->retrying : a->flying ? a->flying : a->open;

    return oldest == a->open && batch_empty(oldest) ? core_age(a->core) : oldest->opened_s;
}

struct effect *effects_submitted(struct alignd *a)
{
    struct effects *fx = &a->open->fx;

    for (size_t i = fx->n; i-- > 0;)
        if (fx->v[i].kind == FX_SUBMITTED)
            return &fx->v[i];
    return NULL;
}

uint64_t effects_mark(const struct alignd *a)
{
    return effects_clean(a) ? a->durable : a->batches;
}

void effects_frame_later(struct alignd *a, uint64_t mark, uint64_t request, uint8_t *frame,
                         size_t bytes)
{
    struct batch *const all[] = {a->open, a->flying, a->retrying};
    struct batch *b = NULL;

    for (size_t i = 0; i < sizeof all / sizeof all[0] && !b; i++)
        if (all[i] && all[i]->number == mark)
            b = all[i];
    if (mark <= a->durable || !b) {
        server_send_frame(a, request, frame, bytes);
        free(frame);
        return;
    }
    if (b->n_laters == b->cap_laters) {
        const size_t cap = b->cap_laters ? 2 * b->cap_laters : 8;
        struct later *v = realloc(b->laters, cap * sizeof *v);
        if (!v) {
            free(frame);
            server_error(a, request, MSG_RETRY, "out of memory");
            return;
        }
        b->laters = v;
        b->cap_laters = cap;
    }
    b->laters[b->n_laters++] = (struct later){request, frame, bytes};
}

void effects_reply_later(struct alignd *a, uint64_t request, const struct msg *m)
{
    struct err err = {""};
    uint8_t *frame;
    size_t bytes;

    if (codec_encode(m, &frame, &bytes, &err) < 0)
        server_error(a, request, MSG_INTERNAL, "%s", err.text);
    else
        effects_frame_later(a, effects_mark(a), request, frame, bytes);
}

int effects_log(struct alignd *a, uint64_t job, uint32_t attempt, uint32_t rank, uint64_t at,
                const void *data, size_t bytes)
{
    struct batch *b = a->open;
    void *copy = malloc(bytes ? bytes : 1);

    if (copy && b->n_logs == b->cap_logs) {
        const size_t cap = b->cap_logs ? 2 * b->cap_logs : 8;
        struct store_log *v = realloc(b->logs, cap * sizeof *v);
        if (v) {
            b->logs = v;
            b->cap_logs = cap;
        }
    }
    if (!copy || b->n_logs == b->cap_logs) {
        free(copy);
        return -ENOMEM;
    }
    memcpy(copy, data, bytes);
    b->logs[b->n_logs++] = (struct store_log){job, attempt, rank, at, copy, bytes};
    return 0;
}
