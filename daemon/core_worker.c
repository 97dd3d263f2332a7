/* core_worker.c - what supervisors say: hello, reports, exit records, held requests
 * for directives, rendezvous. */
#include "daemon/core_state.h"

#include <string.h>

static struct fx_reply *reply(const struct event *ev, struct effects *fx, enum event_code code)
{
    struct effect *e = event_add(fx, FX_REPLY);

    e->reply = (struct fx_reply){
        .client = ev->client, .code = code, .job = ev->worker.job, .attempt = ev->worker.attempt};
    return &e->reply;
}

/* Cannot be stored now. Says nothing about stored state, so it need not wait. */
static void retry(const struct event *ev, struct effects *fx)
{
    (void)reply(ev, fx, EVENT_RETRY);
    fx->v[fx->n - 1].now = true;
}

/* The gang that the message speaks for, if its attempt is the one that lives. */
static struct core_live *speaker(struct core *c, const struct event *ev)
{
    struct core_live *l =
        ev->worker.token_ok ? core_gang_find(c, ev->worker.job, ev->worker.attempt) : NULL;

    return l && l->node ? l : NULL;
}

static void on_hello(struct core *c, struct core_live *l, const struct event *ev,
                     struct effects *fx)
{
    struct job *j = &l->node->job;

    if (c->store_full) {
        retry(ev, fx);
        return;
    }
    l->hello = true;
    if (j->launch_failures) {
        j->launch_failures = 0;
        core_touch(c, l->node);
    }
    struct effect *e = event_add(fx, FX_ATTEMPT);
    e->attempt = l->row;
    e->attempt.build = event_text(fx, ev->hello.build);
    struct fx_reply *r = reply(ev, fx, EVENT_OK);
    r->expect_n = core_past(l->node, j->attempt)->last_report + 1;
    r->directives = core_gang_directives(l);
}

/* ---- reports ------------------------------------------------------------- */

static void began(struct core *c, struct core_live *l, struct effects *fx)
{
    struct job *j = &l->node->job;

    if (j->state != JOB_CONFIGURING)
        return;
    (void)job_move(j, JOB_RUNNING);
    l->row.state = JOB_RUNNING;
    event_add(fx, FX_ATTEMPT)->attempt = l->row;
    core_touch(c, l->node);
}

/* A step is done, so all ranks have met. (Rank 0 may say "training" while two
 * others still look each other up.) */
static void met(struct core_live *l, struct effects *fx)
{
    if (!l->values)
        return;
    struct effect *e = event_add(fx, FX_RDV_CLEAR);
    e->rdv.job = l->row.job;
    e->rdv.attempt = l->row.attempt;
    core_gang_forget(l);
}

/* A newer attempt has gone back before that step. */
static bool superseded(const struct core_node *n, uint32_t attempt, int64_t step)
{
    for (uint32_t a = attempt + 1; a <= n->job.attempt; a++) {
        const struct core_past *p = core_past(n, a);
        if (p->resume_step >= 0 && step > p->resume_step)
            return true;
    }
    return false;
}

static bool row_valid(const struct event_row *row, uint64_t n)
{
    return row->kind < JOB_REPORTS && (row->kind == JOB_REPORT_START) == (n == 1) && row->step >= 0;
}

static void take_row(struct core *c, struct core_live *l, uint32_t attempt, uint64_t n,
                     const struct event_row *row, struct effects *fx)
{
    struct core_node *node = l->node;
    struct job *j = &node->job;
    struct core_past *p = core_past(node, attempt);

    p->last_report = n;
    if (row->kind == JOB_REPORT_START) {
        p->resume_step = row->step;
        if (attempt > 1) {
            event_add(fx, FX_REWIND)->rewind = (struct fx_rewind){
                .job = j->id, .seq = ++j->seq, .attempt = attempt, .step = row->step};
        }
    }
    const void *vals = event_copy(fx, row->vals, row->bytes);
    event_add(fx, FX_REPORT)->report =
        (struct fx_report){.job = j->id,
                           .seq = ++j->seq,
                           .attempt = attempt,
                           .n = n,
                           .kind = row->kind,
                           .superseded = superseded(node, attempt, row->step),
                           .step = row->step,
                           .wall_ms = row->wall_ms,
                           .vals = vals,
                           .bytes = row->bytes};
    if (attempt != j->attempt)
        return;
    j->step = row->step;
    if (row->loss == row->loss) /* not NAN */
        j->loss = row->loss;
    if (row->kind == JOB_REPORT_START)
        l->row.resume_step = row->step;
    else
        met(l, fx);
    began(c, l, fx);
}

/* Takes what is new of the batch. */
static enum event_code take_rows(struct core *c, struct core_live *l, uint32_t attempt,
                                 const struct event_report *r, struct effects *fx)
{
    struct core_past *p = core_past(l->node, attempt);
    const uint64_t before = p->last_report;
    enum event_code code = EVENT_OK;

    for (uint32_t i = 0; i < r->n && code == EVENT_OK; i++) {
        const uint64_t n = r->first_n + i;
        if (n <= p->last_report)
            continue;
        if (n > p->last_report + 1)
            code = EVENT_GAP;
        else if (!row_valid(&r->rows[i], n))
            code = EVENT_INVALID;
        else
            take_row(c, l, attempt, n, &r->rows[i], fx);
    }
    if (p->last_report > before) {
        event_add(fx, FX_REPORTED)->reported = (struct fx_reported){.job = l->node->job.id,
                                                                    .attempt = attempt,
                                                                    .last_report = p->last_report,
                                                                    .resume_step = p->resume_step};
        if (attempt == l->row.attempt)
            l->row.last_report = p->last_report;
        core_touch(c, l->node);
    }
    return code;
}

static void take_progress(struct core *c, struct core_live *l, const struct event_report *r,
                          struct effects *fx)
{
    struct job *j = &l->node->job;

    if (r->phase >= JOB_PHASES || j->published) /* an old message, delivered late */
        return;
    if (r->steps > 0 && r->steps != j->steps) {
        j->steps = r->steps;
        core_touch(c, l->node);
    }
    if (r->step > j->step && (j->steps == 0 || r->step <= j->steps)) {
        j->step = r->step;
        core_touch(c, l->node);
    }
    if (r->phase == j->phase)
        return;
    j->phase = l->row.phase = r->phase;
    core_touch(c, l->node);
    if (r->phase >= JOB_PHASE_TRAINING)
        began(c, l, fx);
    if (r->phase != JOB_PHASE_DONE)
        return;
    j->published = l->row.published = true;
    if (j->state == JOB_RUNNING) {
        (void)job_move(j, JOB_COMPLETING);
        l->row.state = JOB_COMPLETING;
    }
    event_add(fx, FX_ATTEMPT)->attempt = l->row;
}

static void on_report(struct core *c, struct core_live *l, const struct event *ev,
                      struct effects *fx)
{
    const struct event_report *r = &ev->report;
    const uint32_t attempt = r->rows_attempt ? r->rows_attempt : l->row.attempt;
    struct core_past *p = core_past(l->node, attempt);
    enum event_code code = EVENT_OK;

    if (c->store_full) {
        retry(ev, fx);
        return;
    }
    if (!p || r->n > LIMIT_REPORT_BATCH || (r->n > 0 && (r->first_n == 0 || !r->rows)) ||
        r->first_n > UINT64_MAX - LIMIT_REPORT_BATCH)
        code = EVENT_INVALID;
    else
        code = take_rows(c, l, attempt, r, fx);
    if (p && attempt == l->row.attempt && code != EVENT_INVALID)
        take_progress(c, l, r, fx);
    struct fx_reply *a = reply(ev, fx, code);
    a->expect_n = p ? p->last_report + 1 : 0;
    a->directives = core_gang_directives(l);
}

/* ---- directives and rendezvous ------------------------------------------- */

static void hold(const struct event *ev, struct effects *fx, const char *key)
{
    struct effect *e = event_add(fx, FX_HOLD);

    e->now = true;
    e->hold = (struct fx_hold){.client = ev->client,
                               .job = ev->worker.job,
                               .attempt = ev->worker.attempt,
                               .key = event_text(fx, key)};
}

static void on_poll(struct core_live *l, const struct event *ev, struct effects *fx)
{
    const unsigned d = core_gang_directives(l);

    if (d & ~ev->poll.seen)
        reply(ev, fx, EVENT_OK)->directives = d;
    else
        hold(ev, fx, NULL);
}

static const struct core_value *value_of(const struct core_live *l, const char *key)
{
    const struct core_value *v = l->values;

    while (v && strcmp(v->key, key) != 0)
        v = v->next;
    return v;
}

static void on_put(struct core *c, struct core_live *l, const struct event *ev, struct effects *fx)
{
    const struct core_value *v = value_of(l, ev->rdv.key);
    const struct fx_rdv row = {.job = l->row.job,
                               .attempt = l->row.attempt,
                               .key = ev->rdv.key,
                               .value = ev->rdv.value,
                               .bytes = ev->rdv.bytes};

    if (v) {
        const bool same =
            v->bytes == row.bytes && (v->bytes == 0 || memcmp(v->value, row.value, v->bytes) == 0);
        (void)reply(ev, fx, same ? EVENT_OK : EVENT_CONFLICT);
        return;
    }
    if (row.bytes > LIMIT_RDV_BYTES || (row.bytes > 0 && !row.value)) {
        (void)reply(ev, fx, EVENT_INVALID);
        return;
    }
    if (c->store_full) {
        retry(ev, fx);
        return;
    }
    if (l->n_values >= CORE_RDV_KEYS || l->value_bytes + row.bytes > CORE_RDV_BYTES) {
        (void)reply(ev, fx, EVENT_TOO_MANY);
        return;
    }
    if (core_gang_put(l, &row) < 0) {
        c->failed = true;
        return;
    }
    const char *key = event_text(fx, row.key);
    const void *value = event_copy(fx, row.value, row.bytes);
    struct effect *e = event_add(fx, FX_RDV_PUT);
    e->rdv = row;
    e->rdv.key = key;
    e->rdv.value = value;
    (void)reply(ev, fx, EVENT_OK);
}

static void on_get(struct core_live *l, const struct event *ev, struct effects *fx)
{
    const struct core_value *v = value_of(l, ev->rdv.key);

    if (!v) {
        hold(ev, fx, ev->rdv.key);
        return;
    }
    struct fx_reply *r = reply(ev, fx, EVENT_OK);
    r->value = event_copy(fx, v->value, v->bytes);
    r->bytes = v->bytes;
}

static void on_exit(struct core *c, struct core_live *l, const struct event *ev, struct effects *fx)
{
    if (core_fault_awaited(c, l, &ev->exit_record, fx)) {
        reply(ev, fx, EVENT_RETRY)->text = "a moment, in case that a GPU failed";
        return;
    }
    core_gang_exited(c, l, &ev->exit_record, fx);
    (void)reply(ev, fx, EVENT_OK);
}

/* ---- which message ------------------------------------------------------- */

/* Nobody alive speaks. The end of an attempt that is over is acknowledged again: its
 * supervisor waits for just that. */
static void not_alive(struct core *c, const struct event *ev, struct effects *fx)
{
    const struct core_node *n = ev->worker.token_ok ? core_find(c, ev->worker.job) : NULL;
    const bool known = n && core_past(n, ev->worker.attempt);

    (void)reply(ev, fx, ev->kind == EV_EXIT_RECORD && known ? EVENT_OK : EVENT_FENCED);
}

void core_worker_event(struct core *c, const struct event *ev, struct effects *fx)
{
    struct core_live *l = speaker(c, ev);

    if (!l) {
        not_alive(c, ev, fx);
        return;
    }
    if ((ev->kind == EV_RDV_PUT || ev->kind == EV_RDV_GET) &&
        (!ev->rdv.key || !*ev->rdv.key || strlen(ev->rdv.key) > 255)) {
        (void)reply(ev, fx, EVENT_INVALID);
        return;
    }
    switch (ev->kind) {
    case EV_HELLO:
        on_hello(c, l, ev, fx);
        break;
    case EV_REPORT:
        on_report(c, l, ev, fx);
        break;
    case EV_EXIT_RECORD:
        on_exit(c, l, ev, fx);
        break;
    case EV_POLL:
        on_poll(l, ev, fx);
        break;
    case EV_RDV_PUT:
        on_put(c, l, ev, fx);
        break;
    default:
        on_get(l, ev, fx);
        break;
    }
}
