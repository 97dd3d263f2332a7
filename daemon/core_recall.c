/* core_recall.c - what leaves the core's memory because only the store needs to know it,
 * and how it comes back. */
#include "daemon/core_state.h"

#include <string.h>

/* ---- what is where ------------------------------------------------------- */

int64_t core_age(const struct core *c)
{
    return c->meta.age_s;
}

int64_t core_ended_before(const struct core *c)
{
    return c->meta.age_s - c->ended_keep_s;
}

/* Answers about no job leave the store too, by the sweep alone: those that it may not
 * have come to before a crash come back. */
int64_t core_request_before(const struct core *c)
{
    return c->meta.age_s - c->request_keep_s - 2 * c->sweep_s;
}

/* Every id below the mark was given to a job, and jobs stay in the store. */
static bool is_job(const struct core *c, uint64_t id)
{
    return id > 0 && id < c->meta.next_job;
}

bool core_forgotten(const struct core *c, uint64_t job)
{
    return is_job(c, job) && !core_find(c, job);
}

bool core_any_forgotten(const struct core *c)
{
    return c->jobs.n + 1 < c->meta.next_job;
}

uint64_t core_forgets(const struct core *c)
{
    return c->forgets;
}

bool core_recall_due(const struct core *c, const struct event *ev, uint64_t *ret_job,
                     bool *ret_request)
{
    const struct fx_request *r = request_find(&c->requests, ev->req.uid, ev->req.id);
    uint64_t job = 0;

    if (r)
        job = r->job; /* whose words are a part of the answer */
    else if (ev->kind == EV_CANCEL)
        job = ev->cancel.job;
    else if (ev->kind == EV_RESUME)
        job = ev->resume.job;
    else if (ev->kind == EV_HOLD || ev->kind == EV_RELEASE)
        job = ev->hold.job;
    *ret_job = core_forgotten(c, job) ? job : 0;
    *ret_request = !r && c->meta.age_s >= c->request_keep_s;
    return *ret_job || *ret_request;
}

/* ---- going --------------------------------------------------------------- */

static bool job_may_go(const struct core *c, const struct core_node *n, int64_t durable_s)
{
    return job_is_over(n->job.state) && !n->dirty && n->job.ended_s <= core_ended_before(c) &&
           n->job.ended_s < durable_s && c->meta.age_s - n->recalled_s >= c->sweep_s;
}

static void forget_jobs(struct core *c, int64_t durable_s)
{
    size_t kept = 0;

    for (size_t i = 0; i < c->jobs.n; i++) {
        struct core_node *n = c->jobs.v[i];
        if (!job_may_go(c, n, durable_s)) {
            c->jobs.v[kept++] = n;
            continue;
        }
        core_unlink(c, n);
        core_node_free(n);
        c->forgets++;
    }
    c->jobs.n = kept;
}

struct sweep {
    struct core *c;
    struct effects *fx;
    int64_t durable_s;
};

static bool request_may_go(void *arg, const struct fx_request *row)
{
    const struct sweep *s = arg;

    if (s->c->meta.age_s - row->age_s < s->c->request_keep_s || row->age_s >= s->durable_s)
        return false;
    s->c->forgets++;
    if (is_job(s->c, row->job)) /* the store keeps it as long as the job */
        return true;
    struct effect *e = event_add(s->fx, FX_REQUEST_DROP);
    e->request = *row;
    e->request.text = NULL;
    return true;
}

void core_recall_sweep(struct core *c, int64_t durable_s, struct effects *fx)
{
    struct sweep s = {c, fx, durable_s};

    if (c->store_full || c->meta.age_s - c->swept_s < c->sweep_s)
        return;
    c->swept_s = c->meta.age_s;
    forget_jobs(c, durable_s);
    request_sweep(&c->requests, request_may_go, &s);
}

/* ---- coming back --------------------------------------------------------- */

static void recall_job(struct core *c, const struct event_recall *r)
{
    const struct job *row = r->job;

    if (!core_forgotten(c, row->id) || core_restore_bad_job(c, row) || !job_is_over(row->state))
        return;
    struct core_node *n = core_node_new(c, row);
    if (!n)
        return;
    n->recalled_s = c->meta.age_s;
    for (uint32_t i = 0; i < r->n_attempts; i++) {
        const struct attempt *a = &r->attempts[i];
        struct core_past *p = a->job == row->id ? core_past(n, a->attempt) : NULL;
        if (p && !core_restore_bad_attempt(a))
            *p = (struct core_past){a->last_report, a->resume_step, a->exit_known};
    }
    core_newest_is(c, n);
}

void core_recall_event(struct core *c, const struct event_recall *r)
{
    if (r->request && !request_find(&c->requests, r->request->uid, r->request->id) &&
        request_put(&c->requests, r->request) < 0)
        c->failed = true;
    if (r->job)
        recall_job(c, r);
}
