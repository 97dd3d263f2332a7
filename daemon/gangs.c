/* gangs.c - gangs as the loop sees them: which there are, what is asked of them, and what
 * is found at the start. gangs_op.c does it. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/gangs_impl.h"
#include "proto/log.h"

enum {
    PAST_S = 10,   /* what NVML shows may be so old                */
    LINGER_S = 60, /* an acknowledged supervisor that does not end */
};

static struct gang *find(const struct alignd *a, uint64_t job, uint32_t attempt)
{
    struct gang *g = a->gangs;

    while (g && (g->job != job || g->attempt != attempt))
        g = g->next;
    return g;
}

static struct gang *need(struct alignd *a, uint64_t job, uint32_t attempt)
{
    struct gang *g = find(a, job, attempt);

    if (g)
        return g;
    g = calloc(1, sizeof *g);
    if (!g)
        alignd_give_up(a, "out of memory");
    g->a = a;
    g->job = job;
    g->attempt = attempt;
    g->pidfd = -1;
    g->work.data = g;
    uv_timer_init(a->loop, &g->timer);
    g->timer.data = g;
    g->handles = 1;
    g->next = a->gangs;
    a->gangs = g;
    return g;
}

void gangs_start_free(struct start *s)
{
    free(s->output_dir);
    for (uint32_t i = 0; i < s->n_devices; i++)
        free(s->devices[i]);
    *s = (struct start){0};
}

void gangs_closed(uv_handle_t *h)
{
    struct gang *g = h->data;

    if (--g->handles > 0 || !g->closing)
        return;
    gangs_start_free(&g->start);
    free(g);
}

void gangs_drop(struct gang *g)
{
    struct gang **at = &g->a->gangs;

    while (*at && *at != g)
        at = &(*at)->next;
    if (*at)
        *at = g->next;
    g->closing = true;
    g->a->past[g->a->n_past].session = g->session;
    g->a->past[g->a->n_past].ns = alignd_boottime_ns();
    g->a->n_past = (g->a->n_past + 1) % ALIGND_PAST;
    uv_close((uv_handle_t *)&g->timer, gangs_closed);
}

void gangs_launch(struct alignd *a, const struct fx_launch *l)
{
    struct gang *g = need(a, l->job, l->attempt);
    bool ok;

    if (g->gone) { /* an older store was put back, and numbers are given again */
        g->gone = false;
        g->stale = true;
        memset(g->logs, 0, sizeof g->logs);
    }
    gangs_start_free(&g->start);
    g->start.output_dir = strdup(l->output_dir);
    ok = g->start.output_dir != NULL;
    for (uint32_t i = 0; i < l->n_devices && ok; i++) {
        g->start.devices[g->start.n_devices] = strdup(l->devices[i]);
        ok = g->start.devices[g->start.n_devices] != NULL;
        g->start.n_devices += ok;
    }
    if (!ok)
        alignd_give_up(a, "out of memory");
    g->start.type = l->type;
    g->start.drain = l->drain;
    g->start.since_ns = alignd_boottime_ns();
    g->n_devices = 0;
    for (uint32_t i = 0; i < l->n_devices && i < LIMIT_RANKS; i++)
        strncpy(g->devices[g->n_devices++], l->devices[i], sizeof g->devices[0] - 1);
    g->want_start = true;
    gangs_op_next(g);
}

/* One that still waits for its devices' locks is not started any more. */
static bool give_up_start(struct gang *g)
{
    if (!g->start.output_dir || g->start.drain || g->op == OP_START)
        return false;
    gangs_start_free(&g->start);
    g->want_start = false;
    gangs_op_tell(g, EV_LAUNCH_FAILED, "stopped before it was started");
    return true;
}

void gangs_stop(struct alignd *a, uint64_t job, uint32_t attempt)
{
    struct gang *g = find(a, job, attempt);

    if (held_order(a, job, attempt, EVENT_STOP) || !g || give_up_start(g))
        return;
    gangs_op_stop_later(g);
}

void gangs_kill(struct alignd *a, uint64_t job, uint32_t attempt)
{
    struct gang *g = need(a, job, attempt);

    if (give_up_start(g))
        return;
    g->want_kill = true;
    gangs_op_next(g);
}

void gangs_gone(struct alignd *a, uint64_t job, uint32_t attempt)
{
    struct gang *g = find(a, job, attempt);

    if (!g)
        return;
    g->gone = true;
    g->gone_ns = alignd_boottime_ns();
    gangs_start_free(&g->start);
    gangs_op_next(g);
}

void gangs_tick(struct alignd *a)
{
    struct gang *next;

    for (struct gang *g = a->gangs; g; g = next) {
        next = g->next;
        if (g->gone && g->polling && alignd_boottime_ns() - g->gone_ns > LINGER_S * 1000000000LL) {
            log_warn("gang_lingers", "job=%" PRIu64 " attempt=%u: killed", g->job, g->attempt);
            g->gone_ns = alignd_boottime_ns();
            g->want_kill = true;
        }
        gangs_op_next(g);
    }
}

void gangs_memory_set(struct alignd *a, uint64_t job, uint32_t attempt, struct gangs_memory m)
{
    struct gang *g = find(a, job, attempt);

    if (g)
        g->memory = m;
}

struct gangs_memory gangs_memory(const struct alignd *a, uint64_t job, uint32_t attempt)
{
    const struct gang *g = find(a, job, attempt);

    return g ? g->memory : (struct gangs_memory){0};
}

struct gangs_log *gangs_log(struct alignd *a, uint64_t job, uint32_t attempt, uint32_t rank)
{
    struct gang *g = find(a, job, attempt);

    return g && !g->gone && rank < LIMIT_RANKS ? &g->logs[rank] : NULL;
}

bool gangs_use_device(const struct alignd *a, const char *name)
{
    for (const struct gang *g = a->gangs; g; g = g->next)
        for (uint32_t i = 0; i < g->n_devices; i++)
            if (!strcmp(g->devices[i], name))
                return true;
    return false;
}

/* What was seen a moment ago may be of a gang that is forgotten by now. */
bool gangs_session(const struct alignd *a, pid_t session)
{
    for (unsigned i = 0; i < ALIGND_PAST; i++)
        if (a->past[i].session == session && session > 0 &&
            alignd_boottime_ns() - a->past[i].ns < PAST_S * 1000000000LL)
            return true;
    for (const struct gang *g = a->gangs; g; g = g->next)
        if (g->session == session && session > 0)
            return true;
    return false;
}

bool gangs_fence(const struct alignd *a, const char *name)
{
    for (const struct gang *g = a->gangs; g; g = g->next)
        for (uint32_t i = 0; g->fenced && i < g->look.n_devices; i++)
            if (!strcmp(g->look.devices[i], name))
                return true;
    return false;
}

/* ---- at start ---- */

static void found_log(void *arg, uint32_t rank, uint64_t end)
{
    struct gang *g = arg;

    if (rank < LIMIT_RANKS)
        g->logs[rank] = (struct gangs_log){end, end};
}

static void found_folder(void *arg, uint64_t job, uint32_t attempt)
{
    (void)need(arg, job, attempt);
}

static void reconcile_one(struct gang *g, bool known)
{
    g->launched = g->look.state == LAUNCH_ALIVE;
    switch (g->look.state) {
    case LAUNCH_ALIVE:
        gangs_op_tell(g, EV_GANG_ALIVE, NULL);
        gangs_op_looked(g);
        return;
    case LAUNCH_ABSENT:
        if (known)
            gangs_op_tell(g, EV_GANG_ABSENT, NULL);
        break;
    case LAUNCH_EXITED:
        if (known)
            gangs_op_tell(g, EV_GANG_EXITED, g->look.record.error);
        break;
    case LAUNCH_LOST:
        if (known)
            gangs_op_tell(g, EV_GANG_LOST, g->look.why);
        break;
    }
    if (!known)
        g->gone = true; /* only its folder is left */
}

int gangs_find(struct alignd *a, struct err *err)
{
    int r;

    for (size_t i = 0; i < core_n_gangs(a->core); i++) {
        struct core_gang c;
        core_gang_at(a->core, i, &c);
        (void)need(a, c.job, c.attempt);
    }
    r = launch_scan(&a->launch, found_folder, a);
    if (r < 0)
        return err_set(err, r, "cannot read %s: %s", a->launch.gangs_dir, strerror(-r));
    for (struct gang *g = a->gangs; g; g = g->next) {
        launch_look(&a->launch, g->job, g->attempt, &g->look);
        g->n_devices = g->look.n_devices;
        memcpy(g->devices, g->look.devices, sizeof g->devices);
    }
    return 0;
}

int gangs_reconcile(struct alignd *a, struct err *err)
{
    struct store_reader *db;
    int r;

    r = store_reader_open(store_path(a->store), &db, err);
    if (r < 0)
        return r;
    for (struct gang *g = a->gangs; g && r == 0; g = g->next)
        r = store_read_log_ends(db, g->job, g->attempt, found_log, g);
    store_reader_close(db);
    if (r < 0)
        return err_set(err, r, "cannot read the logs' ends: %s", strerror(-r));
    for (struct gang *g = a->gangs; g; g = g->next) {
        struct core_gang c;
        reconcile_one(g, core_gang(a->core, g->job, g->attempt, &c));
    }
    return 0;
}

bool gangs_busy(const struct alignd *a)
{
    for (const struct gang *g = a->gangs; g; g = g->next)
        if (g->op != OP_NONE)
            return true;
    return false;
}

void gangs_close(struct alignd *a)
{
    while (a->gangs) {
        struct gang *g = a->gangs;
        a->gangs = g->next;
        if (g->pidfd >= 0)
            close(g->pidfd);
        gangs_start_free(&g->start);
        free(g); /* after the loop has ended: its handles are not touched again */
    }
}
