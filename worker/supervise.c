/* supervise.c - see supervise.h. One loop over signals, ranks, logs and the daemon. */
#include "worker/supervise.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "proto/atomic_file.h"
#include "proto/log.h"
#include "proto/msg.h"
#include "proto/proc.h"
#include "worker/host.h"
#include "worker/run.h"
#include "worker/supervise_impl.h"

enum { TICK_MS = 100, MEMORY_MS = 1000 };

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
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
        supervise_watch_tell(s, LINK_CHECKPOINT);
    if (orders & MSG_ORDER_STOP) {
        s->stopped = true;
        supervise_watch_tell(s, LINK_STOP);
    }
    if ((orders & MSG_ORDER_KILL) && !s->killed) {
        s->killed = true;
        snprintf(s->why, sizeof s->why, "killed by order");
        supervise_watch_kill(s);
    }
}

static void take_signals(struct supervisor *s)
{
    struct signalfd_siginfo info;

    while (read(s->signal_fd, &info, sizeof info) == sizeof info) {
        const int number = (int)info.ssi_signo;
        if (number == SIGHUP && s->reporter) /* a daemon's word, not ours */
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

/* What the ranks hold; a rank that is gone holds nothing, and its peak is in the record. */
static void look_at_memory(struct supervisor *s)
{
    uint64_t rss = 0, peak = 0;

    if (now_ms() < s->memory_ms)
        return;
    s->memory_ms = now_ms() + MEMORY_MS;
    for (int i = 0; i < s->n_ranks; i++) {
        struct proc_memory m;
        if (s->ranks[i].over || !proc_memory(s->ranks[i].pid, &m))
            continue;
        rss += m.rss_kb;
        peak += m.peak_kb;
    }
    if (rss > 0)
        reporter_memory(s->reporter, rss, peak);
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
    supervise_watch_reap(s);
    supervise_watch_turn(s);
    show_rows(s);
    if (!s->reporter)
        return;
    look_at_memory(s);
    reporter_turn(s->reporter);
    patience(s);
    obey(s, reporter_orders(s->reporter));
    if (reporter_fenced(s->reporter))
        obey(s, MSG_ORDER_KILL);
}

/* ---- start and end ---- */

/* Tries again to write a record that did not fit on the disk. */
static void save_record(struct supervisor *s, const char *record, int64_t *due_ms)
{
    const struct span part = {record, strlen(record)};

    if (*due_ms == 0 || now_ms() < *due_ms)
        return;
    *due_ms = atomic_file_replace(s->dir_fd, "exit.json", &part, 1) < 0 ? now_ms() + 1000 : 0;
}

/* Until the daemon has everything. With the record on disk, whoever ends us now loses
 * nothing: the daemon starts another supervisor to send the rest. */
static void linger(struct supervisor *s, const char *record, bool saved)
{
    struct signalfd_siginfo info;
    int64_t due_ms = saved ? 0 : now_ms() + 1000;
    uint64_t count;

    reporter_finish(s->reporter, record);
    while (!reporter_done(s->reporter) && !reporter_fenced(s->reporter)) {
        struct pollfd v[2] = {{s->signal_fd, POLLIN, 0}, {s->wake_fd, POLLIN, 0}};
        reporter_turn(s->reporter);
        save_record(s, record, &due_ms);
        (void)poll(v, 2, TICK_MS);
        (void)!read(s->wake_fd, &count, sizeof count);
        while (read(s->signal_fd, &info, sizeof info) == sizeof info)
            if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT)
                return;
    }
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

/* Starts the ranks and stays until the last is reaped. A start that fails is an end
 * like any other, with its sentence. */
static void run_ranks(struct supervisor *s)
{
    struct err err = {""};
    int r = supervise_start_attempt(s, &err);

    if (r == 0)
        r = supervise_start_ranks(s, &err);
    if (r < 0) {
        log_error("start", "error=\"%s\"", err.text);
        snprintf(s->why, sizeof s->why, "%s", err.text);
        supervise_watch_kill(s);
    }
    while (s->n_alive > 0 && !supervise_watch_stuck(s))
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
        linger(s, record, true);
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
    s->oom_kills = host_oom_kills();
    r = supervise_start_lock(s, err);
    if (r == 0)
        r = gang_read(s->dir_fd, &s->gang, err);
    if (r == 0 && s->gang->umask >= 0)
        (void)umask((mode_t)s->gang->umask); /* the daemon's own is for its own files */
    if (r == 0)
        r = supervise_start_inputs(s, err);
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
    supervise_watch_record(s, ret);
    if (ret->code == 0 && ret->signal == 0 && ret->error[0] && !s->killed)
        ret->code = RUN_EXIT_ERROR; /* nothing ran */
    r = gang_write_exit(s->dir_fd, s->gang, ret, &record);
    log_info("gang_over", "job=%llu attempt=%u code=%d signal=%d rank=%d error=\"%s\"",
             (unsigned long long)s->gang->job, s->gang->attempt, ret->code, ret->signal,
             ret->first_rank, ret->error);
    if (r < 0)
        err_set(err, r, "%s/exit.json: %s", o->dir, strerror(-r));
    if (s->n_alive > 0) {
        /* The devices are not free: the daemon, which sees the lock free and the process
         * there, fences them, and takes the record from the disk when it is gone. */
        goto fail;
    }
    if (record && s->reporter) {
        linger(s, record, r == 0);
        r = 0;
    }

fail:
    free(record);
    supervisor_close(s);
    return r;
}
