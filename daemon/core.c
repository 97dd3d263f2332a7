/* core.c - the core's life, its step, placement, and what views read of it. */
#include "daemon/core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core_state.h"

/* ---- jobs -------------------------------------------------------------- */

struct core_node *core_find(const struct core *c, uint64_t id)
{
    size_t lo = 0, hi = c->jobs.n;

    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (c->jobs.v[mid]->job.id < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < c->jobs.n && c->jobs.v[lo]->job.id == id ? c->jobs.v[lo] : NULL;
}

int core_append(struct core *c, struct core_nodes *l, struct core_node *n)
{
    if (l->n == l->cap) {
        const size_t cap = l->cap ? 2 * l->cap : 16;
        struct core_node **v = realloc(l->v, cap * sizeof(*v));
        if (!v) {
            c->failed = true;
            return -ENOMEM;
        }
        l->v = v;
        l->cap = cap;
    }
    l->v[l->n++] = n;
    return 0;
}

/* The job's row has changed: it is written once, at the end of the step. */
void core_touch(struct core *c, struct core_node *n)
{
    if (!n->dirty && core_append(c, &c->dirty, n) == 0)
        n->dirty = true;
}

static void unlink_rev(struct core *c, struct core_node *n)
{
    if (n->newer)
        n->newer->older = n->older;
    else if (c->newest == n)
        c->newest = n->older;
    if (n->older)
        n->older->newer = n->newer;
    else if (c->oldest == n)
        c->oldest = n->newer;
    n->newer = n->older = NULL;
}

/* Puts it where its rev belongs; at the top in service, anywhere while restoring. */
void core_newest_is(struct core *c, struct core_node *n)
{
    unlink_rev(c, n);
    struct core_node *below = c->newest, *above = NULL;
    while (below && below->job.rev > n->job.rev) {
        above = below;
        below = below->older;
    }
    n->older = below;
    n->newer = above;
    if (below)
        below->newer = n;
    else
        c->oldest = n;
    if (above)
        above->older = n;
    else
        c->newest = n;
}

struct core_past *core_past(const struct core_node *n, uint32_t attempt)
{
    return attempt >= 1 && attempt <= n->job.attempt && attempt <= n->past_cap
               ? &n->past[attempt - 1]
               : NULL;
}

int core_past_grow(struct core_node *n)
{
    if (n->job.attempt <= n->past_cap)
        return 0;
    const uint32_t cap = n->job.attempt + n->job.attempt / 2;
    struct core_past *p = realloc(n->past, cap * sizeof(*p));
    if (!p)
        return -ENOMEM;
    for (uint32_t i = n->past_cap; i < cap; i++)
        p[i] = (struct core_past){.resume_step = -1};
    n->past = p;
    n->past_cap = cap;
    return 0;
}

void core_set_text(struct core *c, char **slot, const char *s)
{
    char *copy = s && *s ? strdup(s) : NULL;

    if (s && *s && !copy)
        c->failed = true;
    free(*slot);
    *slot = copy;
}

struct core_node *core_node_new(struct core *c, const struct job *row)
{
    const size_t a = strlen(row->name) + 1, b = strlen(row->method) + 1,
                 d = strlen(row->output_dir) + 1;
    struct core_node *n = calloc(1, sizeof(*n) + a + b + d);

    if (!n) {
        c->failed = true;
        return NULL;
    }
    n->job = *row;
    n->job.name = memcpy(n->text, row->name, a);
    n->job.method = memcpy(n->text + a, row->method, b);
    n->job.output_dir = memcpy(n->text + a + b, row->output_dir, d);
    core_set_text(c, &n->error, row->error);
    core_set_text(c, &n->adapter, row->adapter);
    n->job.error = n->error;
    n->job.adapter = n->adapter;
    if (core_past_grow(n) < 0 || core_append(c, &c->jobs, n) < 0) {
        c->failed = true;
        free(n->past);
        free(n->error);
        free(n->adapter);
        free(n);
        return NULL;
    }
    return n;
}

/* ---- who owns an output_dir --------------------------------------------- */

static uint64_t hash(const char *s)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return h ^ h >> 29;
}

struct core_node *core_owner(const struct core *c, const char *output_dir)
{
    struct core_node *n = c->owners_cap ? c->owners[hash(output_dir) & (c->owners_cap - 1)] : NULL;

    while (n && strcmp(n->job.output_dir, output_dir) != 0)
        n = n->dir_next;
    return n;
}

static void owners_grow(struct core *c)
{
    const size_t cap = c->owners_cap ? 2 * c->owners_cap : 256;
    struct core_node **v = calloc(cap, sizeof(*v));

    if (!v) {
        c->failed = true;
        return;
    }
    for (size_t i = 0; i < c->owners_cap; i++) {
        for (struct core_node *n = c->owners[i], *next; n; n = next) {
            struct core_node **p = &v[hash(n->job.output_dir) & (cap - 1)];
            next = n->dir_next;
            n->dir_next = *p;
            *p = n;
        }
    }
    free(c->owners);
    c->owners = v;
    c->owners_cap = cap;
}

void core_claim(struct core *c, struct core_node *n)
{
    c->unfinished++;
    if (c->n_owners >= c->owners_cap)
        owners_grow(c);
    if (c->failed)
        return;
    struct core_node **p = &c->owners[hash(n->job.output_dir) & (c->owners_cap - 1)];
    n->dir_next = *p;
    *p = n;
    c->n_owners++;
}

void core_unclaim(struct core *c, struct core_node *n)
{
    if (!c->owners_cap)
        return;
    struct core_node **p = &c->owners[hash(n->job.output_dir) & (c->owners_cap - 1)];
    while (*p && *p != n)
        p = &(*p)->dir_next;
    if (!*p)
        return;
    *p = n->dir_next;
    n->dir_next = NULL;
    c->n_owners--;
    c->unfinished--;
}

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
        core_client_sweep(c, fx);
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
    for (size_t i = 0; i < c->jobs.n; i++) {
        struct core_node *n = c->jobs.v[i];
        free(n->past);
        free(n->error);
        free(n->adapter);
        free(n);
    }
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
