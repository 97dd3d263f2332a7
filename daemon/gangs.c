/* gangs.c - gangs as the loop sees them: launcher calls in the thread pool, one at a
 * time per gang, and a descriptor per supervisor that tells when it is gone. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/alignd.h"
#include "daemon/gpus.h"
#include "proto/device_lock.h"
#include "proto/log.h"

enum {
    AGAIN_MS = 200,      /* between looks at processes that must end            */
    STOP_WAIT_MS = 5000, /* a poll to answer before SIGTERM                     */
    DEVICE_WAIT_S = 20,  /* the last gang's supervisor may still hold the locks */
    FENCE_S = 20,        /* from SIGKILL to "cannot be killed"                  */
    PAST_S = 10,         /* what NVML shows may be so old                       */
    LINGER_S = 60,       /* an acknowledged supervisor that does not end        */
};

enum op { OP_NONE, OP_START, OP_LOOK, OP_STOP, OP_KILL, OP_FORGET };

struct start { /* copies of what a launch needs */
    char *output_dir;
    char *devices[LIMIT_RANKS];
    uint32_t n_devices;
    uint8_t type;
    bool drain;
    int64_t since_ns;
};

struct gang {
    struct gang *next;
    struct alignd *a;
    uint64_t job;
    uint32_t attempt;
    struct gangs_log logs[LIMIT_RANKS];
    struct gangs_memory memory;
    char devices[LIMIT_RANKS][64]; /* it may hold their locks */
    uint32_t n_devices;

    uv_work_t work;
    enum op op;                                       /* in the pool now       */
    bool want_start, want_look, want_stop, want_kill; /* as soon as it is back */
    bool launched; /* started by this process, or seen alive: an end is news   */
    bool gone;     /* the core has let go of it                                */
    bool stale;    /* started anew in the folder of one that was               */
    bool taken;    /* not started: a device is another program's               */
    int64_t gone_ns;
    bool polling, closing;
    uv_poll_t poll; /* the supervisor's pidfd */
    int pidfd;
    pid_t pid;
    pid_t session;    /* the supervisor's number, also when it is dead; 0: not known */
    uv_timer_t timer; /* look again; SIGTERM */
    int handles;      /* of libuv, still open */
    bool stop_later;
    int64_t left_ns; /* since when ranks outlive their supervisor and SIGKILL; 0: none do */
    bool fenced;     /* and so its devices are                                            */

    struct start start; /* OP_START's input */
    int r, new_pidfd;   /* its result       */
    pid_t new_pid;
    struct launch_look look; /* OP_LOOK's result */
    struct err err;
};

static void next_op(struct gang *g);

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

static void start_free(struct start *s)
{
    free(s->output_dir);
    for (uint32_t i = 0; i < s->n_devices; i++)
        free(s->devices[i]);
    *s = (struct start){0};
}

static void on_closed(uv_handle_t *h)
{
    struct gang *g = h->data;

    if (--g->handles > 0 || !g->closing)
        return;
    start_free(&g->start);
    free(g);
}

static void drop(struct gang *g)
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
    uv_close((uv_handle_t *)&g->timer, on_closed);
}

/* ---- what the core hears ---- */

static void tell(struct gang *g, enum event_kind kind, const char *error)
{
    const struct job *j = core_job(g->a->core, g->job);
    const bool stray = !j || j->attempt != g->attempt || !job_has_gang((enum job_state)j->state);
    struct event ev = {.kind = kind};
    const char *devices[LIMIT_RANKS];

    for (uint32_t i = 0; i < g->look.n_devices; i++)
        devices[i] = g->look.devices[i];
    ev.gang = (struct event_gang){.job = g->job,
                                  .attempt = g->attempt,
                                  .devices = devices,
                                  .n_devices = g->look.n_devices,
                                  .error = error && *error ? error : NULL,
                                  .taken = g->taken};
    if (kind == EV_GANG_EXITED)
        ev.gang.exit = g->look.record.exit;
    log_info("gang", "job=%" PRIu64 " attempt=%u event=%s error=\"%s\"", g->job, g->attempt,
             event_kind_name(kind), error ? error : "");
    effects_step(g->a, &ev);
    if (stray && (kind == EV_GANG_EXITED || kind == EV_GANG_LOST)) {
        g->gone = true; /* no FX_GANG_GONE will say so */
        g->gone_ns = alignd_boottime_ns();
    }
}

/* ---- the supervisor's end ---- */

static void on_poll(uv_poll_t *h, int status, int events)
{
    struct gang *g = h->data;

    (void)status;
    (void)events;
    if (!g->polling)
        return;
    if (g->pid > 0)
        (void)waitpid(g->pid, NULL, WNOHANG); /* only if it is our child */
    uv_poll_stop(&g->poll);
    g->polling = false;
    uv_close((uv_handle_t *)&g->poll, on_closed);
    close(g->pidfd);
    g->pidfd = -1;
    g->pid = 0;
    g->want_look = true;
    next_op(g);
}

/* Takes the descriptor. */
static void watch(struct gang *g, int pidfd, pid_t pid)
{
    if (pid > 0)
        g->session = pid;
    if (g->polling || pidfd < 0) {
        if (pidfd >= 0 && pidfd != g->pidfd)
            close(pidfd);
        return;
    }
    if (uv_poll_init(g->a->loop, &g->poll, pidfd) < 0) {
        close(pidfd);
        g->want_look = true;
        return;
    }
    g->poll.data = g;
    g->handles++;
    g->pidfd = pidfd;
    g->pid = pid;
    g->polling = true;
    uv_poll_start(&g->poll, UV_READABLE, on_poll);
}

static void on_timer(uv_timer_t *t)
{
    struct gang *g = t->data;

    if (g->stop_later) {
        g->stop_later = false;
        g->want_stop = true;
    } else if (g->start.output_dir) {
        g->want_start = true;
    } else {
        g->want_look = !g->polling;
    }
    next_op(g);
}

static void again(struct gang *g)
{
    uv_timer_start(&g->timer, on_timer, AGAIN_MS, 0);
}

/* ---- results ---- */

static bool used_by_another(const struct gang *g, const char *name)
{
    for (const struct gang *o = g->a->gangs; o; o = o->next)
        for (uint32_t i = 0; i < o->n_devices && o != g; i++)
            if (!strcmp(o->devices[i], name))
                return true;
    return false;
}

/* Whether another program took a device since the last look, not a gang of ours that is
 * about to end; the core hears of the device. */
static bool taken(struct gang *g)
{
    bool any = false;

    for (uint32_t i = 0; i < g->n_devices; i++) {
        if (used_by_another(g, g->devices[i]) ||
            !device_lock_held(g->a->config->devices_dir, g->devices[i]))
            continue;
        any = true;
        loop_device_is_foreign(g->a, g->devices[i]);
    }
    return any;
}

static void after_start(struct gang *g)
{
    const int64_t waited_s = (alignd_boottime_ns() - g->start.since_ns) / 1000000000;

    if (g->r == -EBUSY && !g->want_kill && taken(g)) {
        start_free(&g->start);
        g->taken = true;
        tell(g, EV_LAUNCH_FAILED, g->err.text);
        return;
    }
    if (g->r == -EBUSY && waited_s < DEVICE_WAIT_S && !g->stop_later && !g->want_kill) {
        again(g);
        return;
    }
    start_free(&g->start);
    if (g->r == 0 || g->r == 1) {
        log_info("gang_started", "job=%" PRIu64 " attempt=%u pid=%d%s", g->job, g->attempt,
                 g->r == 0 ? (int)g->new_pid : 0, g->r == 1 ? " (runs already)" : "");
        g->launched = true;
        if (g->new_pid > 0)
            g->session = g->new_pid;
        if (g->r == 0 && g->new_pidfd >= 0)
            watch(g, g->new_pidfd, g->new_pid);
        else
            g->want_look = true;
        return;
    }
    tell(g, EV_LAUNCH_FAILED, g->err.text);
}

/* A process that SIGKILL does not end (it hangs in the kernel) keeps its devices from
 * everybody; when it is gone after all, they are as before. */
static void fence(struct gang *g, bool on)
{
    g->fenced = on;
    for (uint32_t i = 0; i < g->look.n_devices; i++) {
        const char *name = g->look.devices[i];
        struct event ev = {.kind = EV_DEVICE};
        ev.device = (struct event_device){
            .name = name, .type = strncmp(name, "cpu:", 4) ? JOB_GPU : JOB_CPU, .fenced = on};
        gpus_fill(g->a, &ev.device);
        log_error("device", "device=%s %s", name,
                  on ? "is fenced: a process on it cannot be killed" : "is no longer fenced");
        effects_step(g->a, &ev);
    }
}

static void look_at_ranks(struct gang *g)
{
    const int64_t now = alignd_boottime_ns();

    if (g->look.ranks_left == 0) {
        g->left_ns = 0;
        if (g->fenced)
            fence(g, false);
    } else if (g->left_ns == 0) {
        g->left_ns = now;
    } else if (!g->fenced && now - g->left_ns > FENCE_S * 1000000000LL) {
        fence(g, true);
    }
}

static void after_look(struct gang *g)
{
    look_at_ranks(g);
    switch (g->look.state) {
    case LAUNCH_ALIVE:
        if (g->look.pidfd >= 0)
            watch(g, g->look.pidfd, g->look.supervisor);
        else
            again(g);
        return;
    case LAUNCH_EXITED:
        if (!g->gone)
            tell(g, EV_GANG_EXITED, g->look.record.error);
        break;
    case LAUNCH_LOST:
        if (!g->gone)
            tell(g, EV_GANG_LOST, g->look.why);
        break;
    case LAUNCH_ABSENT:
        if (!g->gone)
            tell(g, EV_LAUNCH_FAILED,
                 g->look.why[0] ? g->look.why : "the supervisor ended at once");
        break;
    }
}

static void on_after(uv_work_t *w, int status)
{
    struct gang *g = w->data;
    const enum op was = g->op;

    (void)status;
    g->op = OP_NONE;
    if (was == OP_START)
        after_start(g);
    else if (was == OP_LOOK)
        after_look(g);
    else if (was == OP_KILL && !g->polling)
        g->want_look = true;
    if (was == OP_FORGET && !g->want_start)
        drop(g);
    else
        next_op(g);
}

/* ---- in the pool ---- */

static int do_start(struct gang *g)
{
    struct launch_gang l = {.job = g->job,
                            .attempt = g->attempt,
                            .output_dir = g->start.output_dir,
                            .device_type = g->start.type == JOB_GPU ? "gpu" : "cpu",
                            .devices = (const char *const *)g->start.devices,
                            .n_devices = g->start.n_devices,
                            .threads_per_device = g->a->threads_per_device,
                            .drain = g->start.drain};
    struct store_reader *db;
    char *user, *resolved;
    int r = store_reader_open(store_path(g->a->store), &db, &g->err);

    if (r < 0)
        return r;
    r = store_read_spec(db, g->job, g->attempt, &user, &resolved, &l.overwrite);
    store_reader_close(db);
    if (r < 0)
        return err_set(&g->err, r == -EBUSY ? -EIO : r, "the job's spec cannot be read: %s",
                       strerror(-r));
    l.user_spec = user;
    l.resolved_spec = resolved;
    if (g->stale)
        launch_forget(&g->a->launch, g->job, g->attempt);
    g->stale = false;
    alignd_token(g->a, g->job, g->attempt, &l.token);
    r = launch_start(&g->a->launch, &l, &g->new_pid, &g->new_pidfd, &g->err);
    free(user);
    free(resolved);
    return r;
}

static void on_work(uv_work_t *w)
{
    struct gang *g = w->data;
    const struct launch *l = &g->a->launch;

    switch (g->op) {
    case OP_START:
        g->new_pidfd = -1;
        g->new_pid = 0;
        g->err.text[0] = 0;
        g->r = do_start(g);
        break;
    case OP_LOOK:
        launch_look(l, g->job, g->attempt, &g->look);
        break;
    case OP_STOP:
        (void)launch_stop(l, g->job, g->attempt);
        break;
    case OP_KILL:
        (void)launch_kill(l, g->job, g->attempt);
        break;
    case OP_FORGET:
        launch_forget(l, g->job, g->attempt);
        break;
    case OP_NONE:
        break;
    }
}

/* ---- which call is next ---- */

static void next_op(struct gang *g)
{
    enum op op = OP_NONE;

    if (g->op != OP_NONE || g->closing)
        return;
    if (g->want_start) {
        g->want_start = false;
        op = OP_START;
    } else if (g->want_kill) {
        g->want_kill = false;
        op = OP_KILL;
    } else if (g->want_stop) {
        g->want_stop = false;
        op = OP_STOP;
    } else if (g->want_look) {
        g->want_look = false;
        op = OP_LOOK;
    } else if (g->gone && !g->polling && !g->start.output_dir &&
               !uv_is_active((uv_handle_t *)&g->timer)) {
        op = g->look.state == LAUNCH_ALIVE && g->launched ? OP_LOOK : OP_FORGET;
    }
    if (op == OP_NONE)
        return;
    g->op = op;
    if (uv_queue_work(g->a->loop, &g->work, on_work, on_after) < 0) {
        g->op = OP_NONE;
        again(g);
    }
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
    start_free(&g->start);
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
    next_op(g);
}

/* One that still waits for its devices' locks is not started any more. */
static bool give_up_start(struct gang *g)
{
    if (!g->start.output_dir || g->start.drain || g->op == OP_START)
        return false;
    start_free(&g->start);
    g->want_start = false;
    tell(g, EV_LAUNCH_FAILED, "stopped before it was started");
    return true;
}

void gangs_stop(struct alignd *a, uint64_t job, uint32_t attempt)
{
    struct gang *g = find(a, job, attempt);

    if (held_order(a, job, attempt, EVENT_STOP) || !g || give_up_start(g))
        return;
    g->stop_later = true;
    uv_timer_start(&g->timer, on_timer, STOP_WAIT_MS, 0);
}

void gangs_kill(struct alignd *a, uint64_t job, uint32_t attempt)
{
    struct gang *g = need(a, job, attempt);

    if (give_up_start(g))
        return;
    g->want_kill = true;
    next_op(g);
}

void gangs_gone(struct alignd *a, uint64_t job, uint32_t attempt)
{
    struct gang *g = find(a, job, attempt);

    if (!g)
        return;
    g->gone = true;
    g->gone_ns = alignd_boottime_ns();
    start_free(&g->start);
    next_op(g);
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
        next_op(g);
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
        tell(g, EV_GANG_ALIVE, NULL);
        after_look(g);
        return;
    case LAUNCH_ABSENT:
        if (known)
            tell(g, EV_GANG_ABSENT, NULL);
        break;
    case LAUNCH_EXITED:
        if (known)
            tell(g, EV_GANG_EXITED, g->look.record.error);
        break;
    case LAUNCH_LOST:
        if (known)
            tell(g, EV_GANG_LOST, g->look.why);
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
        start_free(&g->start);
        free(g); /* after the loop has ended: its handles are not touched again */
    }
}
