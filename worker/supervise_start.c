/* supervise_start.c - the lock, the inputs, the attempt's folder and the ranks. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "proto/proc.h"
#include "worker/folder.h"
#include "worker/host.h"
#include "worker/supervise_impl.h"

enum { LOCK_TRIES = 20, LOCK_WAIT_MS = 50 };

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* 0; 1: another one has it. */
int supervise_start_lock(struct supervisor *s, struct err *err)
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

int supervise_start_inputs(struct supervisor *s, struct err *err)
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

int supervise_start_attempt(struct supervisor *s, struct err *err)
{
    const struct gang *g = s->gang;
    int r = 0;

    if (g->overwrite && g->attempt == 1 && folder_newest_attempt(g->output_dir) > 0)
        r = folder_clear(g->output_dir, s->o.token_fd < 0, err);
    return r < 0 ? r : folder_make_attempt(g->output_dir, g->attempt, false, err);
}

int supervise_start_ranks(struct supervisor *s, struct err *err)
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
        pids[i] = (struct gang_process){s->ranks[i].pid, proc_start(s->ranks[i].pid)};
    }
    r = gang_write_pids(s->dir_fd, s->gang, pids, s->n_ranks);
    return r < 0 ? err_set(err, r, "%s/pids.json: %s", s->o.dir, strerror(-r)) : 0;
}
