/* supervise.c - see supervise.h. One loop over signals, ranks, logs and the daemon. */
#include "worker/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "proto/log.h"
#include "proto/msg.h"
#include "worker/child.h"
#include "worker/folder.h"
#include "worker/host.h"
#include "worker/meeting.h"
#include "worker/reporter.h"
#include "worker/run.h"

enum { TICK_MS = 100, LOCK_TRIES = 20, LOCK_WAIT_MS = 50 };

struct supervisor {
    struct supervise_opts o;
    struct gang *gang;
    int dir_fd, lock_fd, signal_fd, wake_fd;
    char attempt_dir[LIMIT_PATH];
    struct child ranks[LIMIT_RANKS];
    int n_ranks, n_alive;
    struct reporter_ask asks[LIMIT_RANKS];
    struct meeting *meeting;   /* without a daemon                                   */
    struct reporter *reporter; /* with one                                           */
    struct spool_tail *tail;   /* for o.row                                          */
    struct link_packet *packet;
    int64_t started_ms, ending_ms; /* clock; ending: the first failure               */
    int64_t patience_ms;           /* clock of the last tick without a daemon        */
    bool stopped, killed;          /* told to stop; to end at once                   */
    int interrupts;
    int first_rank; /* that failed; -1                                               */
    char why[1024]; /* our own reason for ending the gang                            */
    struct rusage used;
    int64_t peak_kb;
    enum link_phase phase; /* of rank 0                                              */
    int64_t step, steps;
};

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- ending ---- */

static void tell_all(struct supervisor *s, unsigned flags)
{
    for (int i = 0; i < s->n_ranks; i++)
        child_tell(&s->ranks[i], flags);
}

static void kill_all(struct supervisor *s)
{
    for (int i = 0; i < s->n_ranks; i++)
        child_kill(&s->ranks[i]);
}

/* The gang is lost: the others get grace_ms to notice and say so. */
static void end_gang(struct supervisor *s, int rank, const char *why)
{
    if (s->ending_ms == 0)
        s->ending_ms = now_ms();
    if (s->first_rank < 0 && rank >= 0) {
        s->first_rank = rank;
        snprintf(s->why, sizeof s->why, "%s", why);
    }
}

static bool failed_itself(const struct child *c)
{
    if (!c->over || c->killed)
        return false;
    return c->signal != 0 ||
           (c->code != RUN_EXIT_DONE && c->code != RUN_EXIT_STOPPED && c->code != RUN_EXIT_PEER);
}

static void describe_end(const struct child *c, int rank, const struct gang *g, char *buf,
                         size_t size)
{
    if (c->error[0])
        snprintf(buf, size, "%s", c->error);
    else if (c->signal == SIGKILL)
        snprintf(buf, size,
                 "rank %d (%s) was killed with SIGKILL by somebody else; the kernel does that when "
                 "memory runs out",
                 rank, g->devices[rank]);
    else if (c->signal != 0)
        snprintf(buf, size, "rank %d (%s) died of signal %d (%s)", rank, g->devices[rank],
                 c->signal, strsignal(c->signal));
    else
        snprintf(buf, size, "rank %d (%s) exited with code %d", rank, g->devices[rank], c->code);
}

static void reap(struct supervisor *s)
{
    for (int i = 0; i < s->n_ranks; i++) {
        struct child *c = &s->ranks[i];
        struct rusage u;
        char why[1024];

        if (c->over || !child_reap(c, &u))
            continue;
        while (child_hear(c, s->packet) == 1)
            ; /* its last words */
        s->n_alive--;
        timeradd(&s->used.ru_utime, &u.ru_utime, &s->used.ru_utime);
        timeradd(&s->used.ru_stime, &u.ru_stime, &s->used.ru_stime);
        if (u.ru_maxrss > s->peak_kb)
            s->peak_kb = u.ru_maxrss;
        log_info("rank_over", "rank=%d code=%d signal=%d step=%lld", i, c->code, c->signal,
                 (long long)c->step);
        if (c->code == RUN_EXIT_DONE && c->signal == 0)
            continue;
        describe_end(c, i, s->gang, why, sizeof why);
        if (failed_itself(c))
            end_gang(s, i, why);
        else if (c->code == RUN_EXIT_PEER && !c->killed)
            end_gang(s, -1, why);
    }
}

/* ---- watching ---- */

static void watch_silence(struct supervisor *s, int64_t now)
{
    char why[256];

    for (int i = 0; i < s->n_ranks; i++) {
        struct child *c = &s->ranks[i];
        if (c->over || c->killed || now - c->heard_ms < s->gang->silence_ms)
            continue;
        snprintf(why, sizeof why, "rank %d (%s) was silent for %.0f s and was killed", i,
                 s->gang->devices[i], (double)(now - c->heard_ms) / 1000);
        log_warn("rank_silent", "rank=%d ms=%lld", i, (long long)(now - c->heard_ms));
        end_gang(s, i, why);
        child_kill(c);
    }
}

/* All ranks of a step wait for the slowest: the bound holds for the gang. */
static void watch_steps(struct supervisor *s, int64_t now)
{
    int64_t latest = 0, bound = s->gang->stall_ms;
    int behind = -1;
    char why[256];

    for (int i = 0; i < s->n_ranks; i++) {
        const struct child *c = &s->ranks[i];
        if (c->over || c->phase != LINK_TRAINING)
            return;
        if (c->moved_ms > latest)
            latest = c->moved_ms;
        if (10 * c->step_ms > bound)
            bound = 10 * c->step_ms;
        if (behind < 0 || c->step < s->ranks[behind].step)
            behind = i;
    }
    if (behind < 0 || s->killed || now - latest < bound)
        return;
    snprintf(why, sizeof why,
             "no step for %.0f s (bound %.0f s); rank %d (%s) stands at step %lld; all were killed",
             (double)(now - latest) / 1000, (double)bound / 1000, behind, s->gang->devices[behind],
             (long long)s->ranks[behind].step);
    end_gang(s, behind, why);
    kill_all(s);
}

static void watch(struct supervisor *s)
{
    const int64_t now = now_ms();

    if (s->n_alive == 0)
        return;
    watch_silence(s, now);
    if (s->ending_ms == 0)
        watch_steps(s, now);
    else if (now - s->ending_ms >= s->gang->grace_ms)
        kill_all(s);
    for (int i = 0; i < s->n_ranks; i++)
        child_cap_log(&s->ranks[i]);
}

/* ---- the loop's inputs ---- */

static void hear_asks(struct supervisor *s, uint32_t rank, const struct link_packet *p)
{
    struct reporter_ask *a = &s->asks[rank];

    free(a->value);
    *a = (struct reporter_ask){.open = true, .put = p->kind == LINK_PUT, .bytes = p->bytes};
    memcpy(a->key, p->key, sizeof a->key);
    if (a->put) {
        a->value = malloc(p->bytes + 1);
        if (!a->value) {
            a->open = false;
            (void)link_send_value(s->ranks[rank].link, a->key, -ENOMEM, NULL, 0);
            return;
        }
        memcpy(a->value, p->data, p->bytes);
    }
    if (s->meeting)
        meeting_ask(s->meeting, rank);
}

static void hear(struct supervisor *s)
{
    for (int i = 0; i < s->n_ranks; i++) {
        struct child *c = &s->ranks[i];
        int r;
        while ((r = child_hear(c, s->packet)) == 1)
            if (s->packet->kind == LINK_PUT || s->packet->kind == LINK_GET)
                hear_asks(s, (uint32_t)i, s->packet);
        child_tell_again(c);
    }
    const struct child *c = &s->ranks[0];
    if (s->n_ranks > 0 && (c->phase != s->phase || c->step != s->step || c->steps != s->steps)) {
        s->phase = c->phase;
        s->step = c->step;
        s->steps = c->steps;
        if (s->reporter)
            reporter_progress(s->reporter, s->phase, s->step, s->steps);
    }
}

static void answer(void *arg, uint32_t rank, const char *key, int result, const void *value,
                   size_t bytes)
{
    struct supervisor *s = arg;
    struct reporter_ask *a = &s->asks[rank];

    if (s->ranks[rank].link >= 0 &&
        link_send_value(s->ranks[rank].link, key, result, value, bytes) == -EAGAIN)
        return; /* it reads nothing now: asked again, answered again */
    free(a->value);
    *a = (struct reporter_ask){.open = false};
}

/* Ranks wait for a value while nobody can bring it: that time does not count. */
static void patience(struct supervisor *s)
{
    const int64_t now = now_ms();

    if (reporter_away(s->reporter) && s->patience_ms) {
        for (int i = 0; i < s->n_ranks; i++)
            if (s->asks[i].open && !s->ranks[i].over)
                (void)link_send_patience(s->ranks[i].link, now - s->patience_ms);
    }
    s->patience_ms = now;
}

static void obey(struct supervisor *s, unsigned orders)
{
    if (orders & MSG_ORDER_CHECKPOINT)
        tell_all(s, LINK_CHECKPOINT);
    if (orders & MSG_ORDER_STOP) {
        s->stopped = true;
        tell_all(s, LINK_STOP);
    }
    if ((orders & MSG_ORDER_KILL) && !s->killed) {
        s->killed = true;
        snprintf(s->why, sizeof s->why, "killed by order");
        kill_all(s);
    }
}

static void take_signals(struct supervisor *s)
{
    struct signalfd_siginfo info;

    while (read(s->signal_fd, &info, sizeof info) == sizeof info) {
        const int number = (int)info.ssi_signo;
        if (number == SIGHUP)
            continue;
        if (!s->stopped)
            log_info("stop", "signal=%d", number);
        s->interrupts += number == SIGINT;
        obey(s, s->interrupts > 1 ? MSG_ORDER_KILL : MSG_ORDER_STOP);
    }
}

static void show_rows(struct supervisor *s)
{
    struct spool_row *row;

    if (!s->tail || !(row = malloc(sizeof *row)))
        return;
    while (spool_tail_next(s->tail, row) == 1)
        s->o.row(s->o.arg, row, s->steps);
    free(row);
}

static void turn(struct supervisor *s)
{
    struct pollfd v[2 + 2 * LIMIT_RANKS];
    uint64_t count;
    int n = 0;

    v[n++] = (struct pollfd){s->signal_fd, POLLIN, 0};
    v[n++] = (struct pollfd){s->wake_fd, POLLIN, 0};
    for (int i = 0; i < s->n_ranks; i++)
        n += child_poll(&s->ranks[i], v + n);
    (void)poll(v, (nfds_t)n, TICK_MS);
    (void)!read(s->wake_fd, &count, sizeof count);
    take_signals(s);
    hear(s); /* before watch: what waited while we were stopped was said in time */
    reap(s);
    watch(s);
    show_rows(s);
    if (!s->reporter)
        return;
    reporter_turn(s->reporter);
    patience(s);
    obey(s, reporter_orders(s->reporter));
    if (reporter_fenced(s->reporter))
        obey(s, MSG_ORDER_KILL);
}

/* ---- the end ---- */

static void end_code(const struct supervisor *s, struct gang_exit *e)
{
    const struct child *first = s->first_rank >= 0 ? &s->ranks[s->first_rank] : NULL;

    e->first_rank = s->first_rank;
    if (first) {
        e->code = first->code;
        e->signal = first->signal;
        return;
    }
    for (int i = 0; i < s->n_ranks; i++) { /* nobody failed by itself: 75, stopped, done, killed */
        const struct child *c = &s->ranks[i];
        if (c->signal == 0 && c->code == RUN_EXIT_PEER && e->first_rank < 0 && !s->killed) {
            e->first_rank = i;
            e->code = c->code;
            e->signal = 0;
            snprintf(e->error, sizeof e->error, "%s",
                     c->error[0] ? c->error : "every rank saw another one vanish");
        }
        if (e->first_rank < 0 && c->signal != 0)
            e->signal = c->signal;
        if (e->first_rank < 0 && c->code > e->code)
            e->code = c->code;
    }
}

static void end_record(const struct supervisor *s, struct gang_exit *e)
{
    const char *dir = s->gang->output_dir;
    const int64_t checkpoint = folder_newest_checkpoint(dir);

    memset(e, 0, sizeof *e);
    snprintf(e->error, sizeof e->error, "%s", s->why);
    end_code(s, e);
    e->step = s->step;
    e->peak_rss_kb = s->peak_kb;
    e->user_s = (double)s->used.ru_utime.tv_sec + 1e-6 * (double)s->used.ru_utime.tv_usec;
    e->system_s = (double)s->used.ru_stime.tv_sec + 1e-6 * (double)s->used.ru_stime.tv_usec;
    e->wall_s = (double)(now_ms() - s->started_ms) / 1000;
    if (e->code == RUN_EXIT_DONE && e->signal == 0 && e->first_rank < 0 && s->n_ranks > 0)
        snprintf(e->adapter, sizeof e->adapter, "%s", dir);
    else if (checkpoint >= 0)
        snprintf(e->adapter, sizeof e->adapter, "%s/checkpoint-%lld", dir, (long long)checkpoint);
    e->n_ranks = s->n_ranks;
    for (int i = 0; i < s->n_ranks; i++)
        e->ranks[i] = (struct gang_end){s->ranks[i].code, s->ranks[i].signal, s->ranks[i].step};
}

/* Until the daemon has everything. The record is on disk: whoever ends us now loses
 * nothing, the daemon starts another supervisor to send the rest. */
static void linger(struct supervisor *s, const char *record)
{
    struct signalfd_siginfo info;
    uint64_t count;

    reporter_finish(s->reporter, record);
    while (!reporter_done(s->reporter) && !reporter_fenced(s->reporter)) {
        struct pollfd v[2] = {{s->signal_fd, POLLIN, 0}, {s->wake_fd, POLLIN, 0}};
        reporter_turn(s->reporter);
        (void)poll(v, 2, TICK_MS);
        (void)!read(s->wake_fd, &count, sizeof count);
        while (read(s->signal_fd, &info, sizeof info) == sizeof info)
            if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT)
                return;
    }
}

/* ---- the start ---- */

/* 0; 1: another one has it. */
static int take_lock(struct supervisor *s, struct err *err)
{
    s->dir_fd = open(s->o.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->dir_fd < 0)
        return err_set(err, -errno, "%s: %s", s->o.dir, strerror(errno));
    if (s->lock_fd >= 0)
        return 0;
    s->lock_fd = openat(s->dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (s->lock_fd < 0)
        return err_set(err, -errno, "%s/lock: %s", s->o.dir, strerror(errno));
    for (int i = 0; i < LOCK_TRIES; i++) { /* who only looks holds it for a moment */
        if (flock(s->lock_fd, LOCK_EX | LOCK_NB) == 0)
            return 0;
        if (errno != EWOULDBLOCK && errno != EINTR)
            return err_set(err, -errno, "%s/lock: %s", s->o.dir, strerror(errno));
        (void)poll(NULL, 0, LOCK_WAIT_MS);
    }
    return 1;
}

static int open_inputs(struct supervisor *s, struct err *err)
{
    static const int taken[] = {SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGHUP};
    struct rlimit files;
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < sizeof taken / sizeof taken[0]; i++)
        sigaddset(&set, taken[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    (void)setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}); /* a core holds data and weights */
    s->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->packet = malloc(sizeof *s->packet);
    if (s->signal_fd < 0 || s->wake_fd < 0 || !s->packet)
        return err_set(err, -ENOMEM, "cannot supervise: %s", strerror(errno));
    return 0;
}

static int open_voice(struct supervisor *s, struct err *err)
{
    struct reporter_opts o = {.gang = s->gang,
                              .attempt_dir = s->attempt_dir,
                              .wake_fd = s->wake_fd,
                              .asks = s->asks,
                              .answer = answer,
                              .arg = s};
    int r;

    if (s->o.token_fd < 0) {
        r = meeting_new(s->asks, s->gang->n_devices, answer, s, &s->meeting);
        return r < 0 ? err_set(err, r, "no memory for the ranks to meet") : 0;
    }
    if (read(s->o.token_fd, o.token, sizeof o.token) != (ssize_t)sizeof o.token)
        return err_set(err, -EBADMSG, "no token came on descriptor %d", s->o.token_fd);
    close(s->o.token_fd);
    r = reporter_open(&o, &s->reporter, err);
    explicit_bzero(o.token, sizeof o.token);
    return r;
}

/* The folder of the attempt: from here on no earlier one publishes. */
static int make_attempt(struct supervisor *s, struct err *err)
{
    const struct gang *g = s->gang;
    int r = 0;

    if (g->overwrite && g->attempt == 1 && folder_newest_attempt(g->output_dir) > 0)
        r = folder_clear(g->output_dir, s->o.token_fd < 0, err);
    return r < 0 ? r : folder_make_attempt(g->output_dir, g->attempt, false, err);
}

static int spawn_all(struct supervisor *s, struct err *err)
{
    struct gang_process pids[LIMIT_RANKS];
    int r;

    host_calm_threads();
    for (int i = 0; i < s->gang->n_devices; i++) {
        r = child_spawn(&s->ranks[i], s->gang, i, s->dir_fd, s->attempt_dir, err);
        if (r < 0)
            return r;
        s->n_ranks++;
        s->n_alive++;
        s->ranks[i].heard_ms = s->ranks[i].moved_ms = now_ms();
        pids[i] = (struct gang_process){s->ranks[i].pid, gang_process_start(s->ranks[i].pid)};
    }
    r = gang_write_pids(s->dir_fd, s->gang, pids, s->n_ranks);
    return r < 0 ? err_set(err, r, "%s/pids.json: %s", s->o.dir, strerror(-r)) : 0;
}

/* Starts the ranks and stays until the last is reaped. A start that fails is an end
 * like any other, with its sentence. */
static void run_ranks(struct supervisor *s)
{
    struct err err = {""};
    int r = make_attempt(s, &err);

    if (r == 0)
        r = spawn_all(s, &err);
    if (r < 0) {
        log_error("start", "error=\"%s\"", err.text);
        snprintf(s->why, sizeof s->why, "%s", err.text);
        kill_all(s);
    }
    while (s->n_alive > 0)
        turn(s);
    show_rows(s);
    for (int i = 0; i < s->n_ranks; i++)
        child_cap_log(&s->ranks[i]);
}

static void supervisor_close(struct supervisor *s)
{
    reporter_close(s->reporter);
    meeting_free(s->meeting);
    spool_tail_close(s->tail);
    for (int i = 0; i < s->n_ranks; i++)
        child_close(&s->ranks[i]);
    for (int i = 0; i < LIMIT_RANKS; i++)
        free(s->asks[i].value);
    gang_free(s->gang);
    free(s->packet);
    const int fds[] = {s->wake_fd, s->signal_fd, s->lock_fd, s->dir_fd};
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(s);
}

/* Another supervisor of this gang wrote its record and did not get rid of it. */
static void drain(struct supervisor *s, char *record, const struct gang_exit *e)
{
    log_info("drain", "job=%llu attempt=%u", (unsigned long long)s->gang->job, s->gang->attempt);
    if (s->reporter) {
        reporter_progress(s->reporter, e->code == 0 && e->signal == 0 ? LINK_DONE : LINK_SAVING,
                          e->step, 0);
        linger(s, record);
    }
}

int supervise_gang(const struct supervise_opts *o, struct gang_exit *ret, struct err *err)
{
    struct supervisor *s = calloc(1, sizeof *s);
    char *record = NULL;
    int r;

    if (!s)
        return err_set(err, -ENOMEM, "no memory to supervise");
    s->o = *o;
    s->dir_fd = s->signal_fd = s->wake_fd = s->first_rank = -1;
    s->lock_fd = o->lock_fd;
    s->started_ms = now_ms();
    r = take_lock(s, err);
    if (r == 0)
        r = gang_read(s->dir_fd, &s->gang, err);
    if (r == 0)
        r = open_inputs(s, err);
    if (r != 0)
        goto fail;
    snprintf(s->attempt_dir, sizeof s->attempt_dir, "%s/attempts/%u", s->gang->output_dir,
             s->gang->attempt);
    if (o->row)
        r = spool_tail_open(s->attempt_dir, &s->tail);
    if (r == 0)
        r = open_voice(s, err);
    if (r == 0 && (r = gang_write_pids(s->dir_fd, s->gang, NULL, 0)) < 0)
        err_set(err, r, "%s/pids.json: %s", o->dir, strerror(-r));
    if (r < 0)
        goto fail;

    if (gang_read_exit(s->dir_fd, &record, ret) == 0) {
        drain(s, record, ret);
        goto fail;
    }
    run_ranks(s);
    end_record(s, ret);
    if (ret->code == 0 && ret->signal == 0 && ret->error[0] && !s->killed)
        ret->code = RUN_EXIT_ERROR; /* nothing ran */
    r = gang_write_exit(s->dir_fd, s->gang, ret, &record);
    log_info("gang_over", "job=%llu attempt=%u code=%d signal=%d rank=%d error=\"%s\"",
             (unsigned long long)s->gang->job, s->gang->attempt, ret->code, ret->signal,
             ret->first_rank, ret->error);
    if (r < 0)
        err_set(err, r, "%s/exit.json: %s", o->dir, strerror(-r));
    else if (s->reporter)
        linger(s, record);

fail:
    free(record);
    supervisor_close(s);
    return r;
}
