/* core_gang.c - gangs: their start, their stops, their ends, and what the launcher
 * says of them. */
#include "daemon/core_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* How an attempt ended, and so its job. PREEMPTED and NODE_FAIL of an attempt may
 * leave the job PENDING. */
struct verdict {
    enum job_state attempt, job;
    enum job_reason reason;
};

static void write_attempt(struct effects *fx, const struct core_live *l)
{
    event_add(fx, FX_ATTEMPT)->attempt = l->row;
}

static void launch(struct core *c, struct core_live *l, bool drain, struct effects *fx)
{
    struct effect *e = event_add(fx, FX_LAUNCH);

    e->launch = (struct fx_launch){.job = l->row.job,
                                   .attempt = l->row.attempt,
                                   .uid = l->node->job.uid,
                                   .type = l->node->job.type,
                                   .output_dir = l->node->job.output_dir,
                                   .n_devices = l->n_devices,
                                   .drain = drain};
    core_fill_gang(c, fx, l, &e->launch.devices);
}

/* The job was taken off its queue; the devices are free. */
void core_gang_start(struct core *c, struct core_node *n, const uint16_t *device,
                     struct effects *fx)
{
    struct job *j = &n->job;

    j->attempt++;
    struct core_live *l = core_past_grow(n) == 0 ? core_gang_new(c, n) : NULL;
    if (!l) {
        c->failed = true;
        return;
    }
    (void)job_move(j, JOB_CONFIGURING);
    j->reason = JOB_REASON_NONE;
    j->want = JOB_WANT_RUN;
    j->phase = JOB_PHASE_LOADING;
    j->published = false;
    j->started_ms = c->wall_ms;
    n->placed_step = j->step;
    core_set_text(c, &n->error, NULL);
    j->error = NULL;
    l->told = true;
    l->started_ns = c->now_ns;
    l->n_devices = j->devices;
    memcpy(l->boot_id, c->boot_id, EVENT_BOOT_BYTES);
    for (uint32_t i = 0; i < l->n_devices; i++) {
        l->device[i] = device[i];
        c->device[device[i]].job = j->id;
    }
    l->row.state = JOB_CONFIGURING;
    l->row.step = j->step;
    l->row.started_ms = c->wall_ms;
    core_touch(c, n);
    write_attempt(fx, l);
    struct effect *e = event_add(fx, FX_GANG);
    e->gang = (struct fx_gang){.job = j->id,
                               .attempt = j->attempt,
                               .n_devices = l->n_devices,
                               .started_ns = l->started_ns};
    memcpy(e->gang.boot_id, l->boot_id, EVENT_BOOT_BYTES);
    core_fill_gang(c, fx, l, &e->gang.devices);
    launch(c, l, false, fx);
}

/* ---- stopping ------------------------------------------------------------ */

unsigned core_gang_directives(const struct core_live *l)
{
    const int want = l->node ? l->node->job.want : JOB_WANT_CANCEL_NOW;

    if (want == JOB_WANT_CANCEL_NOW)
        return EVENT_STOP | EVENT_KILL;
    return want == JOB_WANT_RUN ? 0 : EVENT_STOP;
}

static void tell(struct core *c, struct core_live *l, enum effect_kind kind, struct effects *fx)
{
    event_add(fx, kind)->gang_ref =
        (struct fx_gang_ref){.job = l->row.job, .attempt = l->row.attempt};
    if (kind == FX_KILL)
        l->kill_ns = c->now_ns;
    else
        l->stop_ns = c->now_ns;
}

/* Says (again) what the gang must do, if anything. A supervisor that only sends
 * what is left has nothing to stop, but can be in the way. */
static void tell_want(struct core *c, struct core_live *l, struct effects *fx)
{
    const int want = l->node->job.want;

    if (want == JOB_WANT_CANCEL_NOW)
        tell(c, l, FX_KILL, fx);
    else if (want != JOB_WANT_RUN && !l->draining)
        tell(c, l, FX_STOP, fx);
}

void core_gang_want(struct core *c, struct core_node *n, enum job_want want, struct effects *fx)
{
    struct core_live *l = n->live;

    if (!l || want <= (enum job_want)n->job.want)
        return;
    n->job.want = (uint8_t)want;
    if (n->job.state != JOB_COMPLETING) {
        (void)job_move(&n->job, JOB_COMPLETING);
        l->row.state = JOB_COMPLETING;
        write_attempt(fx, l);
    }
    core_touch(c, n);
    tell_want(c, l, fx);
}

void core_gang_error(struct core *c, struct core_node *n, const char *text)
{
    if (!text || !*text)
        return;
    core_set_text(c, &n->error, text);
    n->job.error = n->error;
}

static bool past(const struct core *c, int64_t since_ns, int64_t seconds)
{
    return since_ns > 0 && c->now_ns - since_ns >= seconds * 1000000000;
}

void core_gang_tick(struct core *c, struct effects *fx)
{
    for (size_t i = 0; i < c->n_live; i++) {
        struct core_live *l = c->live[i];
        if (past(c, l->kill_ns, CORE_KILL_S) ||
            (l->kill_ns == 0 && past(c, l->stop_ns, CORE_STOP_S)))
            tell(c, l, FX_KILL, fx);
        if (l->node && l->node->job.limit_s > 0 && !c->store_full &&
            (c->now_ns - l->started_ns) / 1000000000 >= l->node->job.limit_s)
            core_gang_want(c, l->node, JOB_WANT_TIMEOUT, fx);
    }
}

/* ---- ends ---------------------------------------------------------------- */

/* Back to the queue; each further time in a row without progress a little later. */
static void requeue(struct core *c, struct core_node *n)
{
    if (n->job.step > n->placed_step)
        n->tries = 0;
    const int64_t wait_s = n->tries < 6 ? 1 << n->tries : CORE_BACKOFF_S;
    n->tries++;
    n->not_before_ns = c->now_ns + wait_s * 1000000000;
    n->job.want = JOB_WANT_RUN;
    core_enqueue(c, n);
}

/* The gang is gone: the attempt ends, and with it the job or not. */
static void end(struct core *c, struct core_live *l, struct verdict v, struct effects *fx)
{
    struct core_node *n = l->node;
    struct job *j = &n->job;

    l->row.state = (uint8_t)v.attempt;
    l->row.phase = j->phase;
    l->row.published = j->published;
    l->row.step = j->step;
    l->row.ended_ms = c->wall_ms;
    write_attempt(fx, l);
    fx->v[fx->n - 1].attempt.error = event_text(fx, j->error);
    fx->v[fx->n - 1].attempt.adapter = event_text(fx, j->adapter);
    event_add(fx, FX_GANG_GONE)->gang_ref =
        (struct fx_gang_ref){.job = j->id, .attempt = j->attempt};
    if (l->values) {
        struct effect *e = event_add(fx, FX_RDV_CLEAR);
        e->rdv.job = j->id;
        e->rdv.attempt = j->attempt;
    }
    core_past(n, j->attempt)->exit_known = l->row.exit_known;
    core_gang_free(c, l, fx);

    if (v.job == JOB_PENDING && v.attempt == JOB_PREEMPTED)
        (void)job_move(j, JOB_PREEMPTED);
    (void)job_move(j, v.job);
    j->reason = (uint8_t)v.reason;
    if (v.job == JOB_PENDING) {
        requeue(c, n);
    } else {
        j->ended_ms = c->wall_ms;
        core_unclaim(c, n);
    }
    core_touch(c, n);
}

/* What a job that was told to stop becomes when its gang is gone. */
static enum job_state stopped(const struct job *j)
{
    if (j->want == JOB_WANT_RUN)
        return JOB_PENDING;
    return j->want == JOB_WANT_TIMEOUT ? JOB_TIMEOUT : JOB_CANCELLED;
}

static struct verdict stop_verdict(const struct job *j)
{
    const enum job_state s = stopped(j);

    return (struct verdict){s, s, s == JOB_TIMEOUT ? JOB_REASON_TIME_LIMIT : JOB_REASON_NONE};
}

/* Gone without anybody to blame: once, the job goes on by itself. Also if its result
 * is published: the next attempt finds that, but first sends the reports that this
 * one could not send any more. */
static struct verdict lost_verdict(struct job *j, enum job_reason why)
{
    if (j->published && (j->want != JOB_WANT_RUN || j->lost >= CORE_LOST_MAX))
        return (struct verdict){JOB_COMPLETED, JOB_COMPLETED, JOB_REASON_NONE};
    if (j->want != JOB_WANT_RUN)
        return stop_verdict(j);
    j->lost++;
    if (j->lost > CORE_LOST_MAX)
        return (struct verdict){JOB_NODE_FAIL, JOB_NODE_FAIL, why};
    return (struct verdict){JOB_NODE_FAIL, JOB_PENDING, JOB_REASON_NONE};
}

/* A device failed under it: it is taken out, so the job may always go on elsewhere. */
static struct verdict fault_verdict(const struct job *j)
{
    return j->want != JOB_WANT_RUN ? stop_verdict(j)
                                   : (struct verdict){JOB_NODE_FAIL, JOB_PENDING, JOB_REASON_NONE};
}

/* service.md 15-17: a published result counts, whatever was asked meanwhile. */
static struct verdict exit_verdict(struct job *j, const struct event_exit *x, bool faulted)
{
    if (j->published || (x->code == JOB_EXIT_DONE && x->signal == 0))
        return (struct verdict){JOB_COMPLETED, JOB_COMPLETED, JOB_REASON_NONE};
    if (faulted)
        return fault_verdict(j);
    if (j->want == JOB_WANT_CANCEL_NOW) /* killed: what it ended with means nothing */
        return stop_verdict(j);
    if (x->signal != 0)
        return j->want != JOB_WANT_RUN
                   ? stop_verdict(j)
                   : (struct verdict){JOB_FAILED, JOB_FAILED, JOB_REASON_RAISED_SIGNAL};
    switch (x->code) {
    case JOB_EXIT_STOPPED:
        return j->want != JOB_WANT_RUN
                   ? stop_verdict(j)
                   : (struct verdict){JOB_PREEMPTED, JOB_PENDING, JOB_REASON_NONE};
    case JOB_EXIT_PEER:
        return lost_verdict(j, JOB_REASON_PEER_VANISHED);
    case JOB_EXIT_OOM:
        return (struct verdict){JOB_OUT_OF_MEMORY, JOB_OUT_OF_MEMORY, JOB_REASON_OUT_OF_MEMORY};
    default:
        return (struct verdict){JOB_FAILED, JOB_FAILED, JOB_REASON_NON_ZERO_EXIT};
    }
}

void core_gang_exited(struct core *c, struct core_live *l, const struct event_exit *x,
                      struct effects *fx)
{
    struct core_node *n = l->node;
    struct job *j = &n->job;
    const bool blame = core_fault_of(c, l);
    const struct verdict v = exit_verdict(j, x, blame);

    if (v.job == JOB_COMPLETED && !j->published) {
        j->published = true;
        j->phase = JOB_PHASE_DONE;
    }
    j->exit_code = l->row.exit_code = x->code;
    j->exit_signal = l->row.exit_signal = x->signal;
    if (!blame || v.job == JOB_COMPLETED || l->row.first_rank < 0)
        j->first_rank = l->row.first_rank = x->first_rank;
    l->row.peak_rss_kb = x->peak_rss_kb;
    l->row.exit_known = true;
    if (x->step > j->step && (j->steps == 0 || x->step <= j->steps))
        j->step = x->step;
    if (v.job == JOB_COMPLETED) {
        core_set_text(c, &n->error, NULL);
        j->error = NULL;
    } else if (!blame || !n->error) {
        core_gang_error(c, n, x->error);
    }
    if (x->adapter && *x->adapter) {
        core_set_text(c, &n->adapter, x->adapter);
        j->adapter = n->adapter;
    }
    end(c, l, v, fx);
}

static void gang_lost(struct core *c, struct core_live *l, const char *error, struct effects *fx)
{
    struct core_node *n = l->node;
    struct job *j = &n->job;

    if (l->draining) { /* its record was read; only reports are left in its spool */
        struct event_exit x = l->exit;
        l->exit.error = l->exit.adapter = NULL;
        core_gang_exited(c, l, &x, fx);
        free((char *)x.error);
        free((char *)x.adapter);
        return;
    }
    const bool blame = core_fault_of(c, l);
    const struct verdict v =
        blame && j->want == JOB_WANT_RUN ? fault_verdict(j) : lost_verdict(j, JOB_REASON_GANG_LOST);
    if (v.job != JOB_COMPLETED && j->want == JOB_WANT_RUN && !(blame && n->error))
        core_gang_error(c, n, error ? error : "the gang is gone and left no exit record");
    end(c, l, v, fx);
}

static void launch_failed(struct core *c, struct core_live *l, const char *error, bool taken,
                          struct effects *fx)
{
    struct job *j = &l->node->job;

    if (l->draining) {
        gang_lost(c, l, NULL, fx);
        return;
    }
    core_gang_error(c, l->node, error);
    if (j->want != JOB_WANT_RUN) {
        end(c, l, stop_verdict(j), fx);
        return;
    }
    if (taken) { /* nobody's fault: it waits until the device is free again */
        end(c, l, (struct verdict){JOB_PREEMPTED, JOB_PENDING, JOB_REASON_NONE}, fx);
        return;
    }
    j->launch_failures++;
    const bool again = j->launch_failures < CORE_LAUNCH_TRIES;
    end(c, l,
        (struct verdict){JOB_FAILED, again ? JOB_PENDING : JOB_FAILED,
                         again ? JOB_REASON_NONE : JOB_REASON_LAUNCH_FAILURE},
        fx);
}

/* ---- what the launcher says ---------------------------------------------- */

/* Nobody is left of it and its record is there: if its supervisor could not hand
 * that in by itself, reports may be missing too, and a supervisor is started once
 * more to send all that is left. */
static void found_exit(struct core *c, struct core_live *l, const struct event_exit *x,
                       struct effects *fx)
{
    if (l->draining) {
        core_gang_exited(c, l, x, fx);
        return;
    }
    l->draining = true;
    l->exit = *x;
    l->exit.error = x->error ? strdup(x->error) : NULL;
    l->exit.adapter = x->adapter ? strdup(x->adapter) : NULL;
    l->stop_ns = l->kill_ns = 0;
    if (l->node->job.state != JOB_COMPLETING) {
        (void)job_move(&l->node->job, JOB_COMPLETING);
        l->row.state = JOB_COMPLETING;
        write_attempt(fx, l);
        core_touch(c, l->node);
    }
    launch(c, l, true, fx);
}

/* A gang that lives and that the store does not know, or knows to be over: its
 * devices are not given out before it is gone. */
static void stray(struct core *c, const struct event_gang *g, struct effects *fx)
{
    const struct core_node *n = core_find(c, g->job);
    const struct core_past *p = n ? core_past(n, g->attempt) : NULL;

    if (p && p->exit_known) /* its supervisor waits for an answer: it will get one */
        return;
    struct core_live *l = core_gang_new(c, NULL);
    if (!l)
        return;
    l->row.job = g->job;
    l->row.attempt = g->attempt;
    for (uint32_t i = 0; i < g->n_devices && i < LIMIT_RANKS; i++) {
        struct place_device *d =
            core_device(c, g->devices[i], core_device_type(g->devices[i]), true);
        if (!d)
            continue;
        d->strays++;
        l->device[l->n_devices++] = (uint16_t)(d - c->device);
    }
    tell(c, l, FX_KILL, fx);
}

/* Never started: its first launch was not carried out. */
static void absent(struct core *c, struct core_live *l, struct effects *fx)
{
    const struct job *j = &l->node->job;
    const struct core_past *p = core_past(l->node, j->attempt);

    if (j->want != JOB_WANT_RUN)
        end(c, l, stop_verdict(j), fx);
    else if (j->state != JOB_CONFIGURING || p->last_report > 0 || l->n_devices == 0)
        gang_lost(c, l, "the gang's folder is gone", fx);
    else
        launch(c, l, false, fx);
}

void core_gang_event(struct core *c, const struct event *ev, struct effects *fx)
{
    const struct event_gang *g = &ev->gang;
    struct core_live *l = core_gang_find(c, g->job, g->attempt);

    if (!l) {
        if (ev->kind == EV_GANG_ALIVE)
            stray(c, g, fx);
        return; /* else: late or repeated news of a gang that is over */
    }
    l->told = true;
    if (!l->node) {
        if (ev->kind != EV_GANG_ALIVE)
            core_gang_free(c, l, fx);
        return;
    }
    switch (ev->kind) {
    case EV_GANG_ALIVE:
        tell_want(c, l, fx);
        core_fault_adopt(c, l, fx);
        break;
    case EV_GANG_ABSENT:
        absent(c, l, fx);
        break;
    case EV_GANG_EXITED:
        found_exit(c, l, &g->exit, fx);
        break;
    case EV_GANG_LOST:
        gang_lost(c, l, g->error, fx);
        break;
    default:
        launch_failed(c, l, g->error, g->taken, fx);
        break;
    }
}

/* All has been told. Gangs of an earlier boot cannot live; a gang of this boot that
 * the launcher forgot to speak of keeps its devices until it does. */
void core_gang_reconciled(struct core *c, struct effects *fx)
{
    for (size_t i = c->n_live; i-- > 0;) {
        struct core_live *l = c->live[i];
        if (l->node && !l->told && memcmp(l->boot_id, c->boot_id, EVENT_BOOT_BYTES) != 0)
            gang_lost(c, l, "the machine was started again", fx);
    }
    for (size_t i = 0; i < c->jobs.n && !c->failed; i++) {
        struct core_node *n = c->jobs.v[i];
        if (!job_has_gang(n->job.state) || n->live)
            continue;
        /* A job row without its gang row: not written by this program. */
        struct core_live *l = core_gang_new(c, n);
        if (l)
            gang_lost(c, l, "the store does not know its gang", fx);
    }
}
