/* gangs_op.c - launcher calls in the thread pool, one at a time per gang, and a descriptor
 * per supervisor that tells when it is gone. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/devices.h"
#include "daemon/gangs_impl.h"
#include "daemon/gpus.h"
#include "proto/log.h"

enum {
    AGAIN_MS = 200,      /* between looks at processes that must end            */
    STOP_WAIT_MS = 5000, /* a poll to answer before SIGTERM                     */
    DEVICE_WAIT_S = 20,  /* the last gang's supervisor may still hold the locks */
    FENCE_S = 20,        /* from SIGKILL to "cannot be killed"                  */
};

void gangs_op_tell(struct gang *g, enum event_kind kind, const char *error)
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
    uv_close((uv_handle_t *)&g->poll, gangs_closed);
    close(g->pidfd);
    g->pidfd = -1;
    g->pid = 0;
    g->want_look = true;
    gangs_op_next(g);
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
    gangs_op_next(g);
}

void gangs_op_stop_later(struct gang *g)
{
    g->stop_later = true;
    uv_timer_start(&g->timer, on_timer, STOP_WAIT_MS, 0);
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
        gangs_start_free(&g->start);
        g->taken = true;
        gangs_op_tell(g, EV_LAUNCH_FAILED, g->err.text);
        return;
    }
    if (g->r == -EBUSY && waited_s < DEVICE_WAIT_S && !g->stop_later && !g->want_kill) {
        again(g);
        return;
    }
    gangs_start_free(&g->start);
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
    gangs_op_tell(g, EV_LAUNCH_FAILED, g->err.text);
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

void gangs_op_looked(struct gang *g)
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
            gangs_op_tell(g, EV_GANG_EXITED, g->look.record.error);
        break;
    case LAUNCH_LOST:
        if (!g->gone)
            gangs_op_tell(g, EV_GANG_LOST, g->look.why);
        break;
    case LAUNCH_ABSENT:
        if (!g->gone)
            gangs_op_tell(g, EV_LAUNCH_FAILED,
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
        gangs_op_looked(g);
    else if (was == OP_KILL && !g->polling)
        g->want_look = true;
    if (was == OP_FORGET && !g->want_start)
        gangs_drop(g);
    else
        gangs_op_next(g);
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

void gangs_op_next(struct gang *g)
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
