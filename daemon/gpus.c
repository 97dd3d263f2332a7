/* gpus.c - see gpus.h. */
#include "daemon/gpus.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/alignd.h"
#include "daemon/devices.h"
#include "daemon/fault.h"
#include "daemon/gpu_visible.h"
#include "daemon/gpu_watch.h"
#include "daemon/probe.h"
#include "proto/log.h"
#include "proto/proc.h"

enum {
    PERIOD_MS = 2000,
    HANG_MS = 10000,
    OPEN_MS = 60000,  /* a driver that initialises eight GPUs takes a while            */
    AWAIT_MS = 15000, /* alignd's start waits for that so long                         */
    RETRY_MS = 30000,
    PROBE_MS = 10000,
    LOCK_TICKS = 5,   /* between looks at the locks of other alignds                   */
    NOTE_S = 10,      /* how often the core hears of a change of words alone           */
    HOT_MARGIN_C = 5, /* below the limit a GPU is not called hot any more              */
};

struct card { /* a GPU that was seen and that alignd may use */
    struct nvml_gpu g;
    bool gone, locked; /* locked: not by a gang of ours                                 */
    bool foreign, unfit;
    uint16_t order; /* among those that NVML sees                                       */
    char note[160];
    struct { /* as the core knows it */
        bool known, gone, foreign, unfit;
        uint16_t order;
        char note[160];
        int64_t ns;
    } told;
    uint32_t hidden_pid; /* seen in the last sample; in no namespace of ours            */
    bool hidden_memory;  /* so                                                          */
    bool lost_told, rows_told, hot_told;
    uint64_t uncorrected; /* NVML_UNKNOWN: not counted yet                             */
};

struct gpus {
    struct gpu_watch *watch;
    struct gpu_watch_news news;
    struct gpu_visible_env env;
    uv_async_t async;
    struct card card[NVML_GPUS_MAX];
    size_t n;
    enum gpu_watch_state state;
    uint64_t sample;
    char visible_note[256], note[512];
    bool told;          /* the core is ready to hear                                   */
    bool whole_machine; /* NVML's numbers of processes are ours                        */
};

/* ---- processes ---- */

static void say_bytes(uint64_t bytes, char *to, size_t size)
{
    if (bytes == NVML_UNKNOWN)
        (void)snprintf(to, size, "memory not known");
    else
        (void)snprintf(to, size, "%.1f GiB", (double)bytes / (1 << 30));
}

static void say_other(struct card *c, const struct gpu_watch_gpu *g, uint32_t i, uint32_t more)
{
    const struct process *p = &g->process[i];
    char bytes[32], rest[32] = "";

    say_bytes(g->g.process[i].bytes, bytes, sizeof bytes);
    if (more)
        (void)snprintf(rest, sizeof rest, ", and %u more", more);
    if (p->pid)
        (void)snprintf(c->note, sizeof c->note, "%s of user %s, process %d, %s%s", p->name, p->user,
                       (int)p->pid, bytes, rest);
    else
        (void)snprintf(c->note, sizeof c->note, "a process of another container, %s%s", bytes,
                       rest);
}

/* The process may not have come to its GPU yet, or not be one of this namespace. */
static void say_locked(const struct alignd *a, struct card *c)
{
    char who[DEVICE_LOCK_WHO];

    device_lock_who(a->config->devices_dir, c->g.uuid, who, sizeof who);
    (void)snprintf(c->note, sizeof c->note, "%s has its lock", who);
}

/* In a container NVML may list nobody, but what they hold is counted. The driver's own share
 * is less than a sixteenth, also when it is counted too. */
static bool used_by_unseen(const struct alignd *a, struct card *c, const struct nvml_gpu *g,
                           bool ours_there)
{
    const bool was = c->hidden_memory;

    c->hidden_memory = !a->gpus->whole_machine && !ours_there && g->n_processes == 0 &&
                       g->memory_used != NVML_UNKNOWN && g->memory_total != NVML_UNKNOWN &&
                       g->memory_used > g->memory_total / 16;
    return was && c->hidden_memory;
}

/* Others' processes on it. One whose number this namespace does not show may be a rank
 * that has just ended, or one of ours: it counts when no gang of ours is there, and it
 * was there the last time too. In a container the number of one of ours can be somebody
 * else's here. */
static void judge_processes(const struct alignd *a, struct card *c, const struct gpu_watch_gpu *g)
{
    const bool ours_there = gangs_use_device(a, g->g.uuid);
    uint32_t first = NVML_PROCESSES_MAX, others = 0, hidden = 0;

    for (uint32_t i = 0; i < g->g.n_processes; i++) {
        const struct process *p = &g->process[i];
        if (p->pid && gangs_session(a, p->session))
            continue;
        if (!p->pid || (ours_there && !a->gpus->whole_machine)) {
            hidden = g->g.process[i].pid ? g->g.process[i].pid : UINT32_MAX;
            if (ours_there || c->hidden_pid != hidden)
                continue;
        }
        if (others++ == 0)
            first = i;
    }
    c->hidden_pid = hidden;
    const bool unseen = used_by_unseen(a, c, &g->g, ours_there);
    c->foreign = others > 0 || c->locked || unseen;
    if (others > 0)
        say_other(c, g, first, others - 1);
    else if (c->locked)
        say_locked(a, c);
    else if (unseen)
        (void)snprintf(c->note, sizeof c->note,
                       "a program that this container does not show, %.1f GiB",
                       (double)g->g.memory_used / (1 << 30));
}

/* ---- what the core hears ---- */

void gpus_fill(const struct alignd *a, struct event_device *ev)
{
    const struct gpus *s = a->gpus;

    for (size_t i = 0; s && i < s->n; i++) {
        const struct card *c = &s->card[i];
        if (strcmp(c->g.uuid, ev->name) != 0)
            continue;
        ev->gone = c->gone;
        ev->order = c->order;
        ev->foreign = c->foreign;
        ev->unfit = c->unfit;
        ev->note = c->note;
    }
}

static void tell(struct alignd *a, struct card *c)
{
    struct event ev = {.kind = EV_DEVICE};
    const int64_t now = alignd_boottime_ns();
    const bool same = c->told.known && c->told.gone == c->gone && c->told.foreign == c->foreign &&
                      c->told.unfit == c->unfit && c->told.order == c->order;

    if (same && (!strcmp(c->told.note, c->note) || now - c->told.ns < NOTE_S * 1000000000LL))
        return;
    if (!same)
        log_info("device", "device=%s %s%s%s", c->g.uuid,
                 c->gone      ? "is gone"
                 : c->unfit   ? "cannot be used: "
                 : c->foreign ? "is used by others: "
                              : "is there, and nobody else's",
                 c->gone ? "" : c->note, c->told.known ? "" : " (new)");
    c->told.known = true;
    c->told.gone = c->gone;
    c->told.foreign = c->foreign;
    c->told.unfit = c->unfit;
    c->told.order = c->order;
    c->told.ns = now;
    memcpy(c->told.note, c->note, sizeof c->note);
    ev.device = (struct event_device){
        .name = c->g.uuid, .type = JOB_GPU, .fenced = gangs_fence(a, c->g.uuid)};
    gpus_fill(a, &ev.device);
    effects_step(a, &ev);
}

/* Which job and rank has it; false: none. */
static bool holder(const struct alignd *a, const char *uuid, uint64_t *job, uint32_t *rank)
{
    struct core_gang g;

    for (size_t i = 0; i < core_n_gangs(a->core); i++) {
        core_gang_at(a->core, i, &g);
        for (uint32_t d = 0; d < g.n_devices; d++) {
            if (strcmp(g.devices[d], uuid) != 0)
                continue;
            *job = g.job;
            *rank = d;
            return true;
        }
    }
    return false;
}

static void fault(struct alignd *a, const struct card *c, uint32_t code, bool fences)
{
    struct event ev = {.kind = EV_FAULT};
    char text[128], where[64] = "";
    uint64_t job;
    uint32_t rank;

    if (holder(a, c->g.uuid, &job, &rank))
        (void)snprintf(where, sizeof where, " job=%" PRIu64 " rank=%u", job, rank);
    log_error("gpu", "device=%s%s %s; %s", c->g.uuid, where, fault_text(code, text, sizeof text),
              fences ? "it is fenced" : "it goes on");
    if (!fences)
        return;
    ev.fault = (struct event_fault){.name = c->g.uuid, .type = JOB_GPU, .code = code};
    effects_step(a, &ev);
}

/* Each failure is news once. */
static void judge_health(struct alignd *a, struct card *c)
{
    if (c->g.lost && !c->lost_told)
        fault(a, c, FAULT_LOST, true);
    c->lost_told = c->g.lost;
    if (c->g.rows_failed && !c->rows_told)
        fault(a, c, FAULT_ROWS, true);
    c->rows_told = c->g.rows_failed;
    if (c->g.uncorrected != NVML_UNKNOWN && c->uncorrected != NVML_UNKNOWN &&
        c->g.uncorrected > c->uncorrected)
        fault(a, c, FAULT_ECC, true);
    if (c->g.uncorrected != NVML_UNKNOWN)
        c->uncorrected = c->g.uncorrected;
    if (c->g.slowdown <= 0 || c->g.temperature < 0)
        return;
    if (c->g.temperature >= c->g.slowdown && !c->hot_told)
        log_warn("gpu", "device=%s is hot: %d C, its clocks are lowered from %d C on", c->g.uuid,
                 c->g.temperature, c->g.slowdown);
    if (c->g.temperature >= c->g.slowdown || c->g.temperature < c->g.slowdown - HOT_MARGIN_C)
        c->hot_told = c->g.temperature >= c->g.slowdown;
}

/* ---- news ---- */

static struct card *card_of(struct gpus *s, const char *uuid, bool add)
{
    for (size_t i = 0; i < s->n; i++)
        if (!strcmp(s->card[i].g.uuid, uuid))
            return &s->card[i];
    if (!add || s->n == NVML_GPUS_MAX)
        return NULL;
    struct card *c = &s->card[s->n++];
    *c = (struct card){.uncorrected = NVML_UNKNOWN};
    return c;
}

static void take_gpu(const struct alignd *a, struct card *c, const struct gpu_watch_gpu *g)
{
    const struct nvml_gpu was = c->g;

    c->g = g->g;
    if (c->g.lost && was.name[0]) { /* the driver does not say it any more */
        memcpy(c->g.name, was.name, sizeof was.name);
        memcpy(c->g.pci, was.pci, sizeof was.pci);
    }
    c->gone = c->unfit = false;
    c->note[0] = 0;
    judge_processes(a, c, g);
    if (g->g.trouble[0] || g->g.mig) {
        c->unfit = true;
        (void)snprintf(c->note, sizeof c->note, "%s",
                       g->g.mig ? "it is split into MIG instances, but there is none"
                                : g->g.trouble);
    }
}

/* The driver has lost this GPU, and with it what it said of its instances. */
static bool lose_parts(struct gpus *s, const char *uuid, bool *here)
{
    bool any = false;

    for (size_t i = 0; i < s->n; i++) {
        if (strcmp(s->card[i].g.parent, uuid) != 0)
            continue;
        s->card[i].g.lost = here[i] = any = true;
        s->card[i].gone = false;
    }
    return any;
}

static void take_sample(struct alignd *a, struct gpus *s)
{
    const struct gpu_watch_news *n = &s->news;
    const char *uuids[NVML_GPUS_MAX], *names[NVML_GPUS_MAX], *parents[NVML_GPUS_MAX];
    bool visible[NVML_GPUS_MAX], here[NVML_GPUS_MAX] = {false};
    char note[sizeof s->visible_note];

    for (size_t i = 0; i < n->n_gpus; i++) {
        uuids[i] = n->gpus[i].g.uuid;
        names[i] = n->gpus[i].g.name;
        parents[i] = n->gpus[i].g.parent;
    }
    (void)gpu_visible(&s->env, uuids, names, parents, n->n_gpus, visible, note, sizeof note);
    if (note[0] && strcmp(note, s->visible_note) != 0)
        log_info("devices", "%s", note);
    memcpy(s->visible_note, note, sizeof note);
    for (size_t i = 0; i < n->n_gpus; i++) {
        struct card *c = NULL;
        if (n->gpus[i].g.lost && lose_parts(s, uuids[i], here))
            continue;
        if (visible[i])
            c = card_of(s, uuids[i], true);
        if (!c)
            continue;
        here[c - s->card] = true;
        c->order = (uint16_t)i;
        take_gpu(a, c, &n->gpus[i]);
    }
    for (size_t i = 0; i < s->n; i++)
        s->card[i].gone = s->card[i].gone || !here[i];
}

static void all_unfit(struct gpus *s, const char *why)
{
    for (size_t i = 0; i < s->n; i++) {
        s->card[i].unfit = true;
        (void)snprintf(s->card[i].note, sizeof s->card[i].note, "%s", why);
    }
}

static void set_state(struct gpus *s)
{
    const struct gpu_watch_news *n = &s->news;

    if (n->state == s->state)
        return;
    if (n->state == GPU_WATCH_HANGS)
        log_error("devices", "NVIDIA's driver does not answer: GPUs are not given out");
    else if (n->state == GPU_WATCH_REFUSED)
        log_error("devices", "%s", n->why);
    else if (n->state == GPU_WATCH_OK)
        log_info("devices", "NVIDIA's driver %s answers: %zu GPU%s%s", n->driver, n->n_gpus,
                 n->n_gpus == 1 ? "" : "s", n->no_events ? ", no events" : "");
    s->state = n->state;
}

/* A GPU's, and so all its instances'. */
static void take_event(struct alignd *a, const struct nvml_event *e)
{
    struct gpus *s = a->gpus;

    for (size_t i = 0; i < s->n; i++) {
        const struct card *c = &s->card[i];
        if (!strcmp(c->g.uuid, e->uuid) || !strcmp(c->g.parent, e->uuid))
            fault(a, c, e->ecc ? FAULT_ECC : (uint32_t)(e->xid < FAULT_XID_MAX ? e->xid : 0),
                  e->ecc || fault_is_xid(e->xid));
    }
}

static void take(struct alignd *a)
{
    struct gpus *s = a->gpus;

    if (!s->watch)
        return;
    gpu_watch_take(s->watch, &s->news);
    set_state(s);
    if (s->state == GPU_WATCH_OK && s->news.sample != s->sample)
        take_sample(a, s);
    else if (s->state == GPU_WATCH_HANGS)
        all_unfit(s, "NVIDIA's driver does not answer");
    else if (s->state == GPU_WATCH_REFUSED)
        all_unfit(s, s->news.why);
    if (s->state == GPU_WATCH_OK)
        s->sample = s->news.sample;
    if (!s->told)
        return;
    for (size_t i = 0; i < s->n; i++) {
        tell(a, &s->card[i]);
        if (s->state == GPU_WATCH_OK)
            judge_health(a, &s->card[i]);
    }
    for (size_t i = 0; i < s->news.n_events; i++)
        take_event(a, &s->news.events[i]);
}

static void on_async(uv_async_t *h)
{
    take(h->data);
}

static void on_wake(void *arg)
{
    struct gpus *s = arg;

    (void)uv_async_send(&s->async);
}

static void look_at_locks(struct alignd *a)
{
    struct gpus *s = a->gpus;

    for (size_t i = 0; i < s->n; i++)
        s->card[i].locked = !gangs_use_device(a, s->card[i].g.uuid) &&
                            device_lock_held(a->config->devices_dir, s->card[i].g.uuid);
}

void gpus_tick(struct alignd *a)
{
    struct gpus *s = a->gpus;

    if (!s->watch)
        return;
    if (a->ticks % LOCK_TICKS == 0)
        look_at_locks(a);
    take(a); /* a hang is noticed by the time it takes */
}

void gpus_locked(struct alignd *a, const char *name)
{
    struct card *c = card_of(a->gpus, name, false);

    if (!c || c->foreign)
        return;
    c->locked = c->foreign = true;
    say_locked(a, c);
    tell(a, c);
}

void gpus_tell(struct alignd *a)
{
    struct gpus *s = a->gpus;

    look_at_locks(a);
    if (s->watch && s->state == GPU_WATCH_OK) /* again: now it is known which processes are ours */
        take_sample(a, s);
    s->told = true;
    for (size_t i = 0; i < s->n; i++)
        tell(a, &s->card[i]);
}

/* ---- life ---- */

static void close_watch(struct gpus *s)
{
    if (gpu_watch_stop(s->watch) == 1)
        log_warn("devices", "NVIDIA's driver does not answer: its thread is left as it is");
    s->watch = NULL;
    s->news = (struct gpu_watch_news){.state = s->state}; /* it pointed into the watch */
}

/* GPUs are there, but nothing to train on them with: they are told, and no more. */
static void count_only(struct gpus *s, const char *begin, const char *why)
{
    const size_t n = s->state == GPU_WATCH_OK ? s->news.n_gpus : (size_t)devices_gpus_seen();

    if (n > 0)
        (void)snprintf(s->note, sizeof s->note, "%s%zu GPU%s seen, not used%s%.300s", begin, n,
                       n == 1 ? "" : "s", *why ? ": " : "", why);
    close_watch(s);
    s->n = 0;
}

/* Before the loop runs: this may take a while. */
static void choose(struct alignd *a)
{
    struct gpus *s = a->gpus;
    char why[320];

    if (!devices_gpu_module(a->config->worker))
        count_only(s, "This build trains on the CPU only; ", "");
    else if (s->state == GPU_WATCH_ABSENT)
        count_only(s, "", s->news.why);
    else if (s->state == GPU_WATCH_OK && s->n > 0 &&
             probe_gpus(a->config->worker, PROBE_MS, why, sizeof why) == 0)
        count_only(s, "", why);
    if (gpus_note(a)[0])
        log_info("devices", "%s", gpus_note(a));
}

int gpus_open(struct alignd *a)
{
    struct gpus *s = calloc(1, sizeof *s);
    const struct gpu_watch_opts o = {.period_ms = PERIOD_MS,
                                     .hang_ms = HANG_MS,
                                     .open_ms = OPEN_MS,
                                     .retry_ms = RETRY_MS,
                                     .wake = on_wake,
                                     .arg = s};
    int r;

    if (!s)
        return -ENOMEM;
    a->gpus = s;
    s->whole_machine = proc_whole_machine();
    gpu_visible_env(&s->env);
    r = uv_async_init(a->loop, &s->async, on_async);
    if (r < 0)
        return r;
    s->async.data = a;
    r = gpu_watch_start(&o, &s->watch);
    if (r < 0)
        return r;
    gpu_watch_await(s->watch, AWAIT_MS);
    take(a);
    choose(a);
    return 0;
}

void gpus_close(struct alignd *a)
{
    if (!a->gpus)
        return;
    close_watch(a->gpus);
    free(a->gpus); /* after the loop has ended: its handle is not touched again */
    a->gpus = NULL;
}

const char *gpus_note(const struct alignd *a)
{
    struct gpus *s = a->gpus;

    if (!s->watch)
        return s->note;
    if (s->state == GPU_WATCH_REFUSED)
        return s->news.why;
    if (s->state == GPU_WATCH_STARTING || s->state == GPU_WATCH_HANGS)
        return "NVIDIA's driver does not answer: GPUs are not given out until it does";
    return s->visible_note;
}

uint64_t gpus_sample(const struct alignd *a)
{
    return a->gpus->sample;
}

const struct nvml_gpu *gpus_find(const struct alignd *a, const char *name)
{
    const struct card *c = a->gpus ? card_of(a->gpus, name, false) : NULL;

    return c ? &c->g : NULL;
}

bool gpus_news(const struct alignd *a, uint64_t job, uint32_t attempt, uint64_t sample)
{
    struct core_gang g;

    return a->gpus->sample > sample && core_gang(a->core, job, attempt, &g) && g.n_devices > 0 &&
           card_of(a->gpus, g.devices[0], false);
}
