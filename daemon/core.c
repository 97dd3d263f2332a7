/* core.c - the core's life, its step, placement and devices. */
#include "daemon/core_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- the queue and placement -------------------------------------------- */

void core_enqueue(struct core *c, struct core_node *n)
{
    if (n->job.held || n->job.state != JOB_PENDING)
        return;
    if (n->not_before_ns > 0)
        (void)core_append(c, &c->waiting, n);
    else if (queue_insert(&c->queue[n->job.type], &n->job) < 0)
        c->failed = true;
}

void core_dequeue(struct core *c, struct core_node *n)
{
    (void)queue_remove(&c->queue[n->job.type], &n->job);
    for (size_t i = 0; i < c->waiting.n; i++)
        if (c->waiting.v[i] == n)
            c->waiting.v[i--] = c->waiting.v[--c->waiting.n];
}

static void end_waits(struct core *c)
{
    for (size_t i = 0; i < c->waiting.n; i++) {
        struct core_node *n = c->waiting.v[i];
        if (n->not_before_ns > c->now_ns)
            continue;
        c->waiting.v[i--] = c->waiting.v[--c->waiting.n];
        n->not_before_ns = 0;
        core_enqueue(c, n);
        core_touch(c, n);
    }
}

/* First come, first served, within each type of device. The first job that could
 * run if devices in use came back stops the queue behind it: no overtaking, so a
 * large gang is not starved. One that could not run even then (devices foreign,
 * drained, gone) does not hold up the others. */
static void place_type(struct core *c, int type, struct effects *fx)
{
    const struct job *blocked = NULL;

    for (size_t i = 0; !blocked && !c->failed;) {
        const struct job *j = queue_at(&c->queue[type], i);
        uint16_t picked[LIMIT_RANKS];
        if (!j)
            break;
        struct core_node *n = (struct core_node *)j;
        const struct place_count count = place_count(c->device, c->n_devices, type);
        if (place_pick(c->device, c->n_devices, type, j->devices, picked)) {
            (void)queue_remove(&c->queue[type], j);
            core_gang_start(c, n, picked, fx);
        } else if (place_reason(&count, j->devices) == JOB_REASON_RESOURCES) {
            blocked = j;
        } else {
            i++;
        }
    }
    const uint64_t id = blocked ? blocked->id : 0;
    if (id && id != c->blocked[type]) /* its reason changes from Priority to Resources */
        core_touch(c, (struct core_node *)blocked);
    c->blocked[type] = id;
}

static void place(struct core *c, struct effects *fx)
{
    end_waits(c);
    if (!c->reconciled || c->store_full || c->stopping)
        return;
    for (int type = 1; type < JOB_TYPES; type++)
        place_type(c, type, fx);
}

/* ---- the step ------------------------------------------------------------ */

static void write_jobs(struct core *c, struct effects *fx)
{
    for (size_t i = 0; i < c->dirty.n; i++) {
        struct core_node *n = c->dirty.v[i];
        n->dirty = false;
        n->job.rev = ++c->meta.rev;
        if (!job_is_over(n->job.state))
            n->job.ended_s = -1;
        else if (n->job.ended_s < 0)
            n->job.ended_s = c->meta.age_s;
        core_newest_is(c, n);
        struct effect *e = event_add(fx, FX_JOB);
        e->job = n->job;
        e->job.error = event_text(fx, n->job.error);
        e->job.adapter = event_text(fx, n->job.adapter);
    }
    c->dirty.n = 0;
}

static void write_meta(struct core *c, struct effects *fx)
{
    const struct fx_meta *m = &c->meta, *w = &c->meta_written;

    /* The age alone is worth a row once in ten minutes. */
    if (m->next_job == w->next_job && m->rev == w->rev && m->age_s - w->age_s < 600)
        return;
    event_add(fx, FX_META)->meta = c->meta;
    c->meta_written = c->meta;
}

static void advance(struct core *c, int64_t boottime_ns, int64_t wall_ms)
{
    if (boottime_ns > c->now_ns)
        c->now_ns = boottime_ns;
    c->wall_ms = wall_ms;
    const int64_t s = (c->now_ns - c->age_base_ns) / 1000000000;
    if (s > 0) {
        c->meta.age_s += s;
        c->age_base_ns += s * 1000000000;
    }
}

static void machine_event(struct core *c, const struct event *ev, struct effects *fx)
{
    switch (ev->kind) {
    case EV_DEVICE:
        core_device_event(c, &ev->device, fx);
        break;
    case EV_FAULT:
        core_device_fault(c, &ev->fault, fx);
        break;
    case EV_RECONCILED:
        if (!c->reconciled)
            core_gang_reconciled(c, fx);
        c->reconciled = true;
        break;
    case EV_STORE_FULL:
        c->store_full = true;
        break;
    case EV_STORE_OK:
        c->store_full = false;
        break;
    case EV_TICK:
        core_device_tick(c);
        core_gang_tick(c, fx);
        core_recall_sweep(c, ev->tick.durable_s, fx);
        break;
    case EV_RECALL:
        core_recall_event(c, &ev->recall);
        break;
    default: /* a kind of a later version: nothing to do */
        break;
    }
}

int core_step(struct core *c, int64_t boottime_ns, int64_t wall_ms, const struct event *ev,
              struct effects *fx)
{
    advance(c, boottime_ns, wall_ms);
    switch (ev->kind) {
    case EV_SUBMIT:
    case EV_CANCEL:
    case EV_RESUME:
    case EV_HOLD:
    case EV_RELEASE:
    case EV_DRAIN:
    case EV_SHUTDOWN:
        core_client_event(c, ev, fx);
        if (ev->kind == EV_DRAIN)
            core_device_changed(c);
        break;
    case EV_HELLO:
    case EV_REPORT:
    case EV_EXIT_RECORD:
    case EV_POLL:
    case EV_RDV_PUT:
    case EV_RDV_GET:
        core_worker_event(c, ev, fx);
        break;
    case EV_GANG_ALIVE:
    case EV_GANG_ABSENT:
    case EV_GANG_EXITED:
    case EV_GANG_LOST:
    case EV_LAUNCH_FAILED:
        core_gang_event(c, ev, fx);
        break;
    default:
        machine_event(c, ev, fx);
        break;
    }
    place(c, fx);
    write_jobs(c, fx);
    write_meta(c, fx);
    return c->failed || fx->failed ? -ENOMEM : 0;
}

/* ---- life ---------------------------------------------------------------- */

int core_new(const struct core_opts *opts, struct core **ret)
{
    struct core *c = calloc(1, sizeof(*c));

    if (!c)
        return -ENOMEM;
    c->device = calloc(CORE_DEVICES_MAX, sizeof(*c->device));
    if (!c->device) {
        free(c);
        return -ENOMEM;
    }
    memcpy(c->boot_id, opts->boot_id, EVENT_BOOT_BYTES);
    c->now_ns = c->age_base_ns = opts->boottime_ns;
    c->ended_keep_s = opts->ended_keep_s ? opts->ended_keep_s : CORE_ENDED_DAYS * 86400LL;
    c->request_keep_s = opts->request_keep_s ? opts->request_keep_s : CORE_REQUEST_DAYS * 86400LL;
    c->sweep_s = opts->sweep_s ? opts->sweep_s : CORE_SWEEP_S;
    c->meta.next_job = 1;
    c->meta_written.next_job = 1;
    *ret = c;
    return 0;
}

void core_free(struct core *c)
{
    if (!c)
        return;
    while (c->n_live)
        core_gang_free(c, c->live[c->n_live - 1], NULL);
    for (size_t i = 0; i < c->jobs.n; i++)
        core_node_free(c->jobs.v[i]);
    free(c->jobs.v);
    free(c->dirty.v);
    free(c->waiting.v);
    free(c->owners);
    for (int type = 0; type < JOB_TYPES; type++)
        queue_fini(&c->queue[type]);
    free(c->device);
    free(c->live);
    request_fini(&c->requests);
    free(c);
}
