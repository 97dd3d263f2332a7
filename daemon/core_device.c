/* core_device.c - devices: what is true of them, their faults, and who waits for them. */
#include "daemon/core_state.h"

#include <stdio.h>
#include <string.h>

#include "daemon/fault.h"

enum { LIKE_BYTES = 6 }; /* "GPU-8f": less is not enough to name a device */

struct place_device *core_device(struct core *c, const char *name, uint8_t type, bool add)
{
    for (size_t i = 0; name && i < c->n_devices; i++)
        if (strcmp(c->device[i].name, name) == 0)
            return &c->device[i];
    if (!name || !add || c->n_devices == CORE_DEVICES_MAX || !*name || strlen(name) >= PLACE_NAME ||
        type == 0 || type >= JOB_TYPES)
        return NULL;
    struct place_device *d = &c->device[c->n_devices++];
    *d = (struct place_device){.type = type, .gone = true};
    memcpy(d->name, name, strlen(name) + 1);
    return d;
}

struct place_device *core_device_like(struct core *c, const char *text)
{
    struct place_device *found = text ? core_device(c, text, 0, false) : NULL;
    const size_t n = text ? strlen(text) : 0;

    if (found || n < LIKE_BYTES)
        return found;
    for (size_t i = 0; i < c->n_devices; i++) {
        if (c->device[i].type != JOB_GPU || strncmp(c->device[i].name, text, n) != 0)
            continue;
        if (found)
            return NULL;
        found = &c->device[i];
    }
    return found;
}

/* NVML's UUIDs begin with GPU- and MIG-. */
uint8_t core_device_type(const char *name)
{
    return name && (strncmp(name, "GPU-", 4) == 0 || strncmp(name, "MIG-", 4) == 0 ||
                    strncmp(name, "gpu:", 4) == 0)
               ? JOB_GPU
               : JOB_CPU;
}

void core_write_device(const struct core *c, const struct place_device *d, struct effects *fx)
{
    struct effect *e = event_add(fx, FX_DEVICE);

    e->device = (struct fx_device){.name = d->name,
                                   .type = d->type,
                                   .drained = d->drained,
                                   .fenced = d->fenced,
                                   .fault = d->fault};
    memcpy(e->device.boot_id, c->boot_id, EVENT_BOOT_BYTES);
}

void core_fill_gang(const struct core *c, struct effects *fx, const struct core_live *l,
                    const char *const **ret)
{
    const char *names[LIMIT_RANKS];

    for (uint32_t i = 0; i < l->n_devices; i++)
        names[i] = c->device[l->device[i]].name;
    *ret = event_copy(fx, names, l->n_devices * sizeof(names[0]));
}

/* Those whose reason may have changed are the first of each queue. */
void core_device_changed(struct core *c)
{
    for (int type = 1; type < JOB_TYPES; type++) {
        const struct job *j = queue_at(&c->queue[type], 0);
        if (j)
            core_touch(c, (struct core_node *)j);
    }
}

/* A GPU that somebody has used a moment ago will probably be used again in a moment:
 * it is given out after CORE_CLEAN_S without them. */
static void set_foreign(const struct core *c, struct place_device *d, bool foreign)
{
    if (foreign || d->type != JOB_GPU || !d->foreign) {
        d->foreign = foreign;
        d->clean_ns = 0;
    } else if (d->clean_ns == 0) {
        d->clean_ns = c->now_ns > 0 ? c->now_ns : 1;
    }
}

void core_device_event(struct core *c, const struct event_device *ev, struct effects *fx)
{
    struct place_device *d = core_device(c, ev->name, ev->type, true);

    if (!d)
        return;
    const bool was_fenced = d->fenced;
    d->gone = ev->gone;
    if (!ev->gone)
        d->order = ev->order;
    d->unfit = ev->unfit;
    set_foreign(c, d, ev->foreign);
    if (ev->foreign || ev->unfit || !d->foreign)
        (void)snprintf(d->note, sizeof(d->note), "%s", ev->note ? ev->note : "");
    /* A stored fence outlives the start's inventory, which does not look for
     * processes that cannot be killed; the end of its gang lifts it. */
    if (ev->fenced || c->reconciled || (!d->job && !d->strays))
        d->fenced = ev->fenced;
    if (d->fenced != was_fenced)
        core_write_device(c, d, fx);
    for (size_t i = 0; i < c->n_live && d->fenced && !was_fenced; i++)
        for (uint32_t k = 0; c->live[i]->node && k < c->live[i]->n_devices; k++)
            if (&c->device[c->live[i]->device[k]] == d)
                core_fault_stuck(c, c->live[i], fx);
    core_device_changed(c);
}

void core_device_fault(struct core *c, const struct event_fault *ev, struct effects *fx)
{
    struct place_device *d = core_device(c, ev->name, ev->type, true);

    if (!d || d->fault || ev->code == 0)
        return; /* the first word about it stays */
    d->fault = ev->code;
    core_write_device(c, d, fx);
    core_device_changed(c);
    for (size_t i = 0; i < c->n_live; i++)
        for (uint32_t k = 0; c->live[i]->node && k < c->live[i]->n_devices; k++)
            if (&c->device[c->live[i]->device[k]] == d)
                core_gang_fault(c, c->live[i], k, fx);
}

void core_device_tick(struct core *c)
{
    for (size_t i = 0; i < c->n_devices; i++) {
        struct place_device *d = &c->device[i];
        if (d->clean_ns == 0 || c->now_ns - d->clean_ns < CORE_CLEAN_S * 1000000000LL)
            continue;
        d->foreign = false;
        d->clean_ns = 0;
        if (!d->unfit)
            d->note[0] = '\0';
        core_device_changed(c);
    }
}

/* ---- for people ----------------------------------------------------------- */

static void why_fenced(const struct place_device *d, char *text, size_t size)
{
    if (d->fault)
        (void)fault_text(d->fault, text, size);
    else if (d->fenced)
        (void)snprintf(text, size, "a process on it cannot be killed");
    else
        (void)snprintf(text, size, "%s", d->note[0] ? d->note : "it cannot be used");
}

static void why_foreign(const struct core *c, const struct place_device *d, char *text, size_t size)
{
    const long long left =
        d->clean_ns ? CORE_CLEAN_S - (long long)((c->now_ns - d->clean_ns) / 1000000000) : 0;
    const char *who = d->note[0] ? d->note : "another program has it";

    if (d->clean_ns)
        (void)snprintf(text, size, "%s, until a moment ago; free in %lld s", who, left);
    else
        (void)snprintf(text, size, "%s", who);
}

void core_device_at(const struct core *c, size_t i, struct core_device *ret)
{
    memset(ret, 0, sizeof(*ret));
    if (i >= c->n_devices)
        return;
    const struct place_device *d = &c->device[i];
    ret->name = d->name;
    ret->type = d->type;
    ret->job = d->job;
    ret->drained = d->drained;
    ret->order = d->order;
    if (d->job || d->strays)
        ret->state = place_is_fenced(d) ? CORE_DEVICE_FENCED : CORE_DEVICE_USED;
    else if (d->gone && !d->fault) /* a GPU that failed is often not seen any more */
        ret->state = CORE_DEVICE_GONE;
    else if (place_is_fenced(d))
        ret->state = CORE_DEVICE_FENCED;
    else if (d->drained)
        ret->state = CORE_DEVICE_DRAINED;
    else
        ret->state = d->foreign ? CORE_DEVICE_FOREIGN : CORE_DEVICE_FREE;
    if (ret->state == CORE_DEVICE_FENCED)
        why_fenced(d, ret->reason, sizeof(ret->reason));
    else if (d->foreign && ret->state != CORE_DEVICE_GONE)
        why_foreign(c, d, ret->reason, sizeof(ret->reason));
    else if (ret->state == CORE_DEVICE_DRAINED)
        (void)snprintf(ret->reason, sizeof(ret->reason), "an operator took it out");
}

/* The first device that keeps a job waiting for reason r, by name and cause. */
void core_device_wait(const struct core *c, int type, enum job_reason r, char *text, size_t size)
{
    const enum core_device_state want =
        r == JOB_REASON_DEVICES_FOREIGN ? CORE_DEVICE_FOREIGN : CORE_DEVICE_FENCED;
    struct core_device d;

    text[0] = '\0';
    if (r != JOB_REASON_DEVICES_FOREIGN && r != JOB_REASON_DEVICES_FENCED)
        return;
    for (size_t i = 0; i < c->n_devices; i++) {
        core_device_at(c, i, &d);
        if (d.type != type || d.state != want || d.job)
            continue;
        (void)snprintf(text, size, "; %s: %s", d.name, d.reason);
        return;
    }
}

uint32_t core_n_devices_of(const struct core *c, enum job_type type)
{
    return place_count(c->device, c->n_devices, type).all;
}

const char *core_device_state_name(enum core_device_state s)
{
    static const char *const names[] = {
        [CORE_DEVICE_FREE] = "FREE",       [CORE_DEVICE_USED] = "USED",
        [CORE_DEVICE_FOREIGN] = "FOREIGN", [CORE_DEVICE_FENCED] = "FENCED",
        [CORE_DEVICE_DRAINED] = "DRAINED", [CORE_DEVICE_GONE] = "GONE",
    };
    return (unsigned)s < sizeof(names) / sizeof(names[0]) ? names[s] : "?";
}
