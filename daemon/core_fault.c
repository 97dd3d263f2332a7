/* core_fault.c - gangs on a GPU that failed: killed, named and, when their ranks died of it
 * before anybody knew, waited for. */
#include <stdio.h>

#include "daemon/core_state.h"
#include "daemon/fault.h"

bool core_fault_of(const struct core *c, const struct core_live *l)
{
    bool any = l->faulted;

    for (uint32_t i = 0; i < l->n_devices; i++)
        any |= c->device[l->device[i]].fault != 0;
    return any;
}

static void completing(struct core *c, struct core_live *l, struct effects *fx)
{
    struct job *j = &l->node->job;

    core_touch(c, l->node);
    if (j->state == JOB_COMPLETING)
        return;
    (void)job_move(j, JOB_COMPLETING);
    l->row.state = JOB_COMPLETING;
    event_add(fx, FX_ATTEMPT)->attempt = l->row;
}

/* A device under it failed: its ranks hang or fail now, and no checkpoint can come of
 * them. The job goes on elsewhere from its last one. */
void core_gang_fault(struct core *c, struct core_live *l, uint32_t rank, struct effects *fx)
{
    const struct place_device *d = &c->device[l->device[rank]];
    char text[PLACE_NAME + 160], what[128];

    if (l->faulted)
        return;
    l->faulted = true;
    (void)snprintf(text, sizeof(text), "rank %u: %s: %s", rank, d->name,
                   fault_text(d->fault, what, sizeof(what)));
    core_gang_error(c, l->node, text);
    l->node->job.first_rank = l->row.first_rank = (int32_t)rank;
    completing(c, l, fx);
    if (l->draining || l->ended_ns > 0) /* only its supervisor is left, and will end */
        return;
    event_add(fx, FX_KILL)->gang_ref =
        (struct fx_gang_ref){.job = l->row.job, .attempt = l->row.attempt};
    l->kill_ns = c->now_ns;
}

/* Its device failed before the daemon went away, maybe before the gang was killed. */
void core_fault_adopt(struct core *c, struct core_live *l, struct effects *fx)
{
    for (uint32_t i = 0; i < l->n_devices; i++)
        if (c->device[l->device[i]].fault)
            core_gang_fault(c, l, i, fx);
}

/* A process of it outlives SIGKILL, and so its supervisor: nobody trains any more. */
void core_fault_stuck(struct core *c, struct core_live *l, struct effects *fx)
{
    completing(c, l, fx);
}

bool core_fault_why_stuck(const struct core *c, const struct core_live *l, char *text, size_t size)
{
    for (uint32_t i = 0; i < l->n_devices; i++) {
        const struct place_device *d = &c->device[l->device[i]];
        if (!d->fenced)
            continue;
        if (text && size > 0)
            (void)snprintf(text, size,
                           "a process of it cannot be killed (it hangs in the kernel), and keeps "
                           "%s%s; the job ends when it is gone",
                           d->name, l->n_devices > 1 ? " and its other devices" : "");
        return true;
    }
    return false;
}

/* A rank may die of its GPU before NVML says a word about it. So an end that would count
 * against the job waits, with its devices, for CORE_FAULT_S: until then the supervisor,
 * which has nothing else to do, is asked to come again. */
bool core_fault_awaited(struct core *c, struct core_live *l, const struct event_exit *x,
                        struct effects *fx)
{
    const struct job *j = &l->node->job;

    if (j->type != JOB_GPU || j->want != JOB_WANT_RUN || j->published || core_fault_of(c, l))
        return false;
    if (x->signal == 0 &&
        (x->code == JOB_EXIT_DONE || x->code == JOB_EXIT_STOPPED || x->code == JOB_EXIT_OOM))
        return false;
    if (l->ended_ns == 0) {
        l->ended_ns = c->now_ns > 0 ? c->now_ns : 1;
        core_gang_error(c, l->node, x->error);
        completing(c, l, fx);
    }
    return c->now_ns - l->ended_ns < CORE_FAULT_S * 1000000000LL;
}
