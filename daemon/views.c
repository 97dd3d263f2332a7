/* views.c - see views.h. */
#include "daemon/views.h"

#include <errno.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/alignd.h"
#include "daemon/gpus.h"
#include "daemon/place.h"
#include "daemon/store.h"

enum { USERS = 64 };

const char *views_user(uint32_t uid)
{
    static struct {
        bool known;
        uint32_t uid;
        char name[64];
    } cache[USERS]; /* a look-up may ask a directory server: once per uid and process */
    const unsigned i = uid % USERS;

    if (!cache[i].known || cache[i].uid != uid) {
        const struct passwd *pw = getpwuid(uid);
        if (pw)
            snprintf(cache[i].name, sizeof cache[i].name, "%s", pw->pw_name);
        else
            snprintf(cache[i].name, sizeof cache[i].name, "%u", uid);
        cache[i].uid = uid;
        cache[i].known = true;
    }
    return cache[i].name;
}

static void text(struct buf *b, const char *key, const char *value)
{
    buf_printf(b, ",\"%s\":", key);
    buf_json(b, value ? value : "");
}

static void number(struct buf *b, const char *key, int64_t value)
{
    buf_printf(b, ",\"%s\":%" PRId64, key, value);
}

static const char *type_name(uint8_t type)
{
    return type == JOB_GPU ? "gpu" : type == JOB_CPU ? "cpu" : "auto";
}

static void device_names(struct buf *b, const struct core *c, const struct job *j)
{
    struct core_gang g;

    buf_str(b, ",\"device_names\":[");
    if (job_has_gang((enum job_state)j->state) && core_gang(c, j->id, j->attempt, &g)) {
        for (uint32_t i = 0; i < g.n_devices; i++) {
            buf_str(b, i ? "," : "");
            buf_json(b, g.devices[i]);
        }
    }
    buf_str(b, "]");
}

void views_job(struct buf *b, const struct core *c, const struct job *j, bool open)
{
    char why[512] = "";
    const enum job_reason reason = core_reason(c, j, why, sizeof why);

    buf_printf(b, "{\"job\":%" PRIu64 ",\"rev\":%" PRIu64, j->id, j->rev);
    text(b, "name", j->name);
    text(b, "user", views_user(j->uid));
    number(b, "uid", j->uid);
    text(b, "method", j->method);
    text(b, "state", job_state_name((enum job_state)j->state));
    text(b, "st", job_state_short((enum job_state)j->state));
    text(b, "reason", job_reason_name(reason));
    text(b, "reason_text", why);
    buf_printf(b, ",\"held\":%s", j->held ? "true" : "false");
    number(b, "priority", j->priority);
    number(b, "attempt", j->attempt);
    text(b, "phase", job_phase_name((enum job_phase)j->phase));
    number(b, "step", j->step);
    number(b, "steps", j->steps);
    buf_str(b, ",\"loss\":");
    buf_json_double(b, j->loss);
    number(b, "devices", j->devices);
    text(b, "device_type", type_name(j->type));
    device_names(b, c, j);
    number(b, "submitted_ms", j->submitted_ms);
    number(b, "started_ms", j->started_ms);
    number(b, "ended_ms", j->ended_ms);
    text(b, "output_dir", j->output_dir);
    number(b, "exit_code", j->exit_code);
    number(b, "exit_signal", j->exit_signal);
    number(b, "first_rank", j->first_rank);
    text(b, "error", j->error);
    text(b, "adapter", j->adapter);
    buf_printf(b, ",\"published\":%s", j->published ? "true" : "false");
    if (!open)
        buf_str(b, "}");
}

void views_progress(struct buf *b, const struct job *j)
{
    double fraction = j->steps > 0 ? (double)j->step / (double)j->steps : 0;

    if (fraction > 1)
        fraction = 1;
    buf_printf(b,
               ",\"progress\":{\"step\":%" PRId64 ",\"steps\":%" PRId64 ",\"fraction\":", j->step,
               j->steps);
    buf_json_double(b, fraction);
    buf_str(b, "}");
}

void views_attempts(struct buf *b, const char *text, int64_t step)
{
    const char *at = strchr(text, STORE_STEP);

    buf_str(b, ",\"attempts\":");
    if (at) {
        buf_add(b, text, (size_t)(at - text));
        buf_printf(b, "%" PRId64, step);
        text = at + 1;
    }
    buf_str(b, text);
}

/* A restart brings devices back in another order. */
static int by_name(const void *a, const void *b)
{
    const struct core_device *p = a, *q = b;

    if (p->type != q->type)
        return p->type < q->type ? -1 : 1;
    if (p->order != q->order)
        return p->order < q->order ? -1 : 1;
    return place_order(p->name, q->name);
}

static void amount(struct buf *b, const char *key, uint64_t v, bool known)
{
    if (known)
        number(b, key, (int64_t)v);
    else
        buf_printf(b, ",\"%s\":null", key);
}

static void gpu(struct buf *b, const struct nvml_gpu *g)
{
    text(b, "name", g->name);
    text(b, "pci", g->pci);
    amount(b, "memory_used", g->memory_used, g->memory_used != NVML_UNKNOWN);
    amount(b, "memory_total", g->memory_total, g->memory_total != NVML_UNKNOWN);
    amount(b, "utilisation", (uint64_t)g->utilisation, g->utilisation >= 0);
    amount(b, "temperature", (uint64_t)g->temperature, g->temperature >= 0);
}

void views_host_memory(struct buf *b, const struct alignd *a, const struct job *j)
{
    const struct gangs_memory m = gangs_memory(a, j->id, j->attempt);

    if (job_has_gang((enum job_state)j->state) && m.rss_kb > 0)
        buf_printf(b, ",\"host_memory\":{\"now_kb\":%" PRIu64 ",\"peak_kb\":%" PRIu64 "}", m.rss_kb,
                   m.peak_kb);
}

void views_gpus(struct buf *b, const struct alignd *a, const struct job *j)
{
    struct core_gang g;
    bool any = false;

    if (j->type != JOB_GPU || !core_gang(a->core, j->id, j->attempt, &g))
        return;
    for (uint32_t i = 0; i < g.n_devices; i++) {
        const struct nvml_gpu *known = gpus_find(a, g.devices[i]);
        if (!known)
            continue;
        buf_printf(b, "%s{\"rank\":%u,\"device\":", any ? "," : ",\"gpus\":[", i);
        buf_json(b, g.devices[i]);
        gpu(b, known);
        buf_str(b, "}");
        any = true;
    }
    if (any)
        buf_str(b, "]");
}

static void device(struct buf *b, const struct alignd *a, const struct core_device *d)
{
    const struct nvml_gpu *known = d->type == JOB_GPU ? gpus_find(a, d->name) : NULL;
    const struct job *j = d->job ? core_job(a->core, d->job) : NULL;
    char note[96] = "";

    buf_str(b, "{\"device\":");
    buf_json(b, d->name);
    text(b, "type", type_name(d->type));
    text(b, "state", core_device_state_name(d->state));
    number(b, "job", (int64_t)d->job);
    text(b, "user", j ? views_user(j->uid) : "");
    if (known)
        gpu(b, known);
    text(b, "reason", d->reason);
    if (d->drained && d->state == CORE_DEVICE_USED)
        (void)snprintf(note, sizeof note, "drained: given out no more once its job is over");
    else if (known && known->slowdown > 0 && known->temperature >= known->slowdown)
        (void)snprintf(note, sizeof note, "hot: its clocks are lowered from %d C on",
                       known->slowdown);
    text(b, "note", note);
    buf_str(b, "}");
}

void views_devices(struct buf *b, const struct alignd *a)
{
    const size_t n = core_n_devices(a->core);
    struct core_device *all = calloc(n ? n : 1, sizeof(*all));

    if (!all) {
        b->r = -ENOMEM;
        return;
    }
    for (size_t i = 0; i < n; i++)
        core_device_at(a->core, i, &all[i]);
    qsort(all, n, sizeof(*all), by_name);
    buf_str(b, "[");
    for (size_t i = 0; i < n; i++) {
        buf_str(b, i ? "," : "");
        device(b, a, &all[i]);
    }
    buf_str(b, "]");
    free(all);
}
