/* core_restore.c - the core takes over what was stored. Rows come from a file:
 * nothing in them is believed before it is checked. */
#include <errno.h>
#include <string.h>

#include "daemon/core_state.h"

#define BAD(...)  err_set(err, -EINVAL, __VA_ARGS__)
#define NO_MEMORY err_set(err, -ENOMEM, "out of memory")

int core_restore_meta(struct core *c, const struct fx_meta *row, struct err *err)
{
    if (row->next_job == 0 || row->age_s < 0)
        return BAD("store: the row of high-water marks is damaged");
    c->meta = c->meta_written = *row;
    c->swept_s = row->age_s;
    return 0;
}

int core_restore_device(struct core *c, const struct fx_device *row, struct err *err)
{
    struct place_device *d = core_device(c, row->name, row->type, true);

    if (!d)
        return BAD("store: device '%s' of type %d cannot be", row->name ? row->name : "",
                   (int)row->type);
    d->drained = row->drained;
    if (memcmp(row->boot_id, c->boot_id, EVENT_BOOT_BYTES) == 0) {
        d->fenced = row->fenced;
        d->fault = row->fault;
    }
    return 0;
}

const char *core_restore_bad_job(const struct core *c, const struct job *row)
{
    if (row->id == 0 || row->id >= c->meta.next_job)
        return "has an id that was never given";
    if (row->rev > c->meta.rev || row->order > c->meta.rev)
        return "has a rev that was never given";
    if (!job_state_valid(row->state) || row->reason >= JOB_REASONS || row->want >= JOB_WANTS ||
        row->phase >= JOB_PHASES)
        return "has a state, reason, want or phase that does not exist";
    if (row->type == 0 || row->type >= JOB_TYPES || row->devices < 1 || row->devices > LIMIT_RANKS)
        return "wants devices that cannot be";
    if (!row->name || !row->method || !row->output_dir || row->output_dir[0] != '/')
        return "lacks its name, method or output_dir";
    if (job_has_gang(row->state) && row->attempt == 0)
        return "runs without an attempt";
    if (row->attempt > 1000000)
        return "has more attempts than can be";
    return NULL;
}

int core_restore_job(struct core *c, const struct job *row, struct err *err)
{
    const char *bad = core_restore_bad_job(c, row);

    if (!bad && c->jobs.n && row->id <= c->jobs.v[c->jobs.n - 1]->job.id)
        bad = "is out of order";
    if (bad)
        return BAD("store: job %llu %s", (unsigned long long)row->id, bad);
    struct core_node *n = core_node_new(c, row);
    if (!n)
        return NO_MEMORY;
    if (n->job.state == JOB_PREEMPTED)
        n->job.state = JOB_PENDING;
    if (!job_is_over(n->job.state))
        core_claim(c, n);
    core_newest_is(c, n);
    core_enqueue(c, n);
    return c->failed ? NO_MEMORY : 0;
}

const char *core_restore_bad_attempt(const struct attempt *row)
{
    if (!job_state_valid(row->state) || row->phase >= JOB_PHASES || row->resume_step < -1)
        return "is damaged";
    return NULL;
}

int core_restore_attempt(struct core *c, const struct attempt *row, struct err *err)
{
    struct core_node *n = core_find(c, row->job);
    struct core_past *p = n ? core_past(n, row->attempt) : NULL;

    if (!p)
        return BAD("store: attempt %u belongs to job %llu, which has no such attempt", row->attempt,
                   (unsigned long long)row->job);
    if (core_restore_bad_attempt(row))
        return BAD("store: attempt %u of job %llu is damaged", row->attempt,
                   (unsigned long long)row->job);
    p->last_report = row->last_report;
    p->resume_step = row->resume_step;
    p->exit_known = row->exit_known;
    if (row->attempt != n->job.attempt || !job_has_gang(n->job.state))
        return 0;
    struct core_live *l = n->live ? n->live : core_gang_new(c, n);
    if (!l)
        return NO_MEMORY;
    l->row = *row;
    l->row.build = l->row.error = l->row.adapter = NULL;
    n->placed_step = row->step;
    return 0;
}

int core_restore_gang(struct core *c, const struct fx_gang *row, struct err *err)
{
    struct core_node *n = core_find(c, row->job);
    struct core_live *l = n ? n->live : NULL;

    if (!l || l->row.attempt != row->attempt || l->n_devices || row->n_devices < 1 ||
        row->n_devices > LIMIT_RANKS)
        return BAD("store: a gang of job %llu, attempt %u, which does not run",
                   (unsigned long long)row->job, row->attempt);
    for (uint32_t i = 0; i < row->n_devices; i++) {
        const char *name = row->devices[i];
        struct place_device *d = core_device(c, name, core_device_type(name), true);
        if (!d)
            return BAD("store: device '%s' cannot be", name ? name : "");
        if (d->job)
            return BAD("store: jobs %llu and %llu both have device %s", (unsigned long long)d->job,
                       (unsigned long long)row->job, name);
        d->job = row->job;
        l->device[l->n_devices++] = (uint16_t)(d - c->device);
    }
    memcpy(l->boot_id, row->boot_id, EVENT_BOOT_BYTES);
    l->started_ns = row->started_ns;
    return 0;
}

int core_restore_request(struct core *c, const struct fx_request *row, struct err *err)
{
    return request_put(&c->requests, row) < 0 ? NO_MEMORY : 0;
}

int core_restore_rdv(struct core *c, const struct fx_rdv *row, struct err *err)
{
    struct core_live *l = core_gang_find(c, row->job, row->attempt);

    if (!l || !row->key || row->bytes > LIMIT_RDV_BYTES)
        return BAD("store: a rendezvous value of job %llu, attempt %u, which does not run",
                   (unsigned long long)row->job, row->attempt);
    return core_gang_put(l, row) < 0 ? NO_MEMORY : 0;
}
