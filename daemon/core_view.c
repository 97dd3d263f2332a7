/* core_view.c - what others may read of the core. */
#include <stdio.h>
#include <string.h>

#include "daemon/core_state.h"

size_t core_n_jobs(const struct core *c)
{
    return c->jobs.n;
}

const struct job *core_job_at(const struct core *c, size_t i)
{
    return i < c->jobs.n ? &c->jobs.v[i]->job : NULL;
}

const struct job *core_job(const struct core *c, uint64_t id)
{
    const struct core_node *n = core_find(c, id);

    return n ? &n->job : NULL;
}

const struct job *core_newest(const struct core *c)
{
    return c->newest ? &c->newest->job : NULL;
}

const struct job *core_older(const struct core *c, const struct job *j)
{
    const struct core_node *n = (const struct core_node *)j;

    (void)c;
    return n->older ? &n->older->job : NULL;
}

uint64_t core_rev(const struct core *c)
{
    return c->meta.rev;
}

bool core_stopping(const struct core *c)
{
    return c->stopping;
}

static enum job_reason pending_reason(const struct core *c, const struct core_node *n,
                                      const struct place_count *count)
{
    if (n->job.held)
        return JOB_REASON_HELD;
    if (!c->reconciled)
        return JOB_REASON_RECONCILING;
    if (c->stopping)
        return JOB_REASON_STOPPING;
    if (c->store_full)
        return JOB_REASON_STORE_FULL;
    if (n->not_before_ns > 0)
        return JOB_REASON_BEGIN_TIME;
    const enum job_reason r = place_reason(count, n->job.devices);
    if (r == JOB_REASON_NONE || (r == JOB_REASON_RESOURCES && c->blocked[n->job.type] != n->job.id))
        return JOB_REASON_PRIORITY;
    return r;
}

static void say(enum job_reason r, const struct core *c, const struct core_node *n,
                const struct place_count *count, char *text, size_t size)
{
    const char *type = n->job.type == JOB_GPU ? "gpu" : "cpu";
    char which[PLACE_NAME + 256 + 8];

    switch (r) {
    case JOB_REASON_HELD:
        (void)snprintf(text, size, "held; alignctl release %llu", (unsigned long long)n->job.id);
        break;
    case JOB_REASON_RECONCILING:
        (void)snprintf(text, size, "alignd is looking at what still runs");
        break;
    case JOB_REASON_STOPPING:
        (void)snprintf(text, size, "alignd is shutting down");
        break;
    case JOB_REASON_STORE_FULL:
        (void)snprintf(text, size, "no disk space for alignd's database");
        break;
    case JOB_REASON_BEGIN_TIME:
        (void)snprintf(text, size, "started again in %lld s",
                       (long long)((n->not_before_ns - c->now_ns + 999999999) / 1000000000));
        break;
    case JOB_REASON_PRIORITY:
        (void)snprintf(text, size, "other jobs are before it");
        break;
    default:
        core_device_wait(c, n->job.type, r, which, sizeof(which));
        (void)snprintf(text, size,
                       "wants %u %s device%s: %u free, %u in use, %u foreign, %u fenced, %u "
                       "drained%s",
                       n->job.devices, type, n->job.devices == 1 ? "" : "s", count->free,
                       count->used, count->foreign, count->fenced, count->drained, which);
        break;
    }
}

enum job_reason core_reason(const struct core *c, const struct job *j, char *text, size_t size)
{
    const struct core_node *n = (const struct core_node *)j;

    if (job_has_gang((enum job_state)j->state) && n->live &&
        core_fault_why_stuck(c, n->live, text, size))
        return JOB_REASON_DEVICES_FENCED;
    if (j->state != JOB_PENDING) {
        if (size > 0 && text)
            (void)snprintf(text, size, "%s", j->error ? j->error : "");
        return (enum job_reason)j->reason;
    }
    const struct place_count count = place_count(c->device, c->n_devices, j->type);
    const enum job_reason r = pending_reason(c, n, &count);
    if (size > 0 && text)
        say(r, c, n, &count, text, size);
    return r;
}

uint64_t core_last_report(const struct core *c, uint64_t job, uint32_t attempt)
{
    const struct core_node *n = core_find(c, job);
    const struct core_past *p = n ? core_past(n, attempt) : NULL;

    return p ? p->last_report : 0;
}

size_t core_n_gangs(const struct core *c)
{
    return c->n_live;
}

static void fill(const struct core *c, const struct core_live *l, struct core_gang *ret)
{
    *ret = (struct core_gang){.job = l->row.job,
                              .attempt = l->row.attempt,
                              .hello = l->hello,
                              .directives = core_gang_directives(l),
                              .n_devices = l->n_devices};
    for (uint32_t i = 0; i < l->n_devices; i++)
        ret->devices[i] = c->device[l->device[i]].name;
}

void core_gang_at(const struct core *c, size_t i, struct core_gang *ret)
{
    if (i < c->n_live)
        fill(c, c->live[i], ret);
    else
        memset(ret, 0, sizeof(*ret));
}

bool core_gang(const struct core *c, uint64_t job, uint32_t attempt, struct core_gang *ret)
{
    const struct core_live *l = core_gang_find(c, job, attempt);

    if (l)
        fill(c, l, ret);
    return l;
}

size_t core_n_devices(const struct core *c)
{
    return c->n_devices;
}
