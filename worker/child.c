/* child.c - see child.h. */
#include "worker/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Above the numbers that the child's descriptors get, so that no dup2 covers another. */
static int lift(int fd)
{
    const int high = fcntl(fd, F_DUPFD_CLOEXEC, 16);
    const int r = high < 0 ? -errno : high;

    close(fd);
    return r;
}

static int spawn_attr(posix_spawnattr_t *attr)
{
    sigset_t none, all;
    int r = posix_spawnattr_init(attr);

    if (r != 0)
        return -r;
    sigemptyset(&none);
    sigfillset(&all);
    sigdelset(&all, SIGKILL);
    sigdelset(&all, SIGSTOP);
    posix_spawnattr_setsigmask(attr, &none);
    posix_spawnattr_setsigdefault(attr, &all);
    posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    return 0;
}

static int spawn_process(struct child *c, const char *program, int rank, int link, int log,
                         int dir_fd)
{
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t attr;
    char number[16], parent[16];
    char *argv[] = {(char *)"align-worker", (char *)"rank", number, parent, NULL};
    int r = spawn_attr(&attr);

    if (r < 0)
        return r;
    snprintf(number, sizeof number, "%d", rank);
    snprintf(parent, sizeof parent, "%d", (int)getpid());
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&fa, log, 1);
    posix_spawn_file_actions_adddup2(&fa, log, 2);
    posix_spawn_file_actions_adddup2(&fa, link, CHILD_LINK_FD);
    posix_spawn_file_actions_adddup2(&fa, dir_fd, CHILD_GANG_FD);
    r = -posix_spawn(&c->pid, program, &fa, &attr, argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    posix_spawnattr_destroy(&attr);
    return r;
}

int child_spawn(struct child *c, const struct gang *g, int rank, int dir_fd,
                const char *attempt_dir, struct err *err)
{
    const char *program = g->worker ? g->worker : "/proc/self/exe";
    char path[LIMIT_PATH];
    int pair[2] = {-1, -1}, out = -1, dir = -1, r;

    memset(c, 0, sizeof *c);
    c->pidfd = c->link = c->log = -1;
    snprintf(path, sizeof path, "%s/rank-%d.log", attempt_dir, rank);
    out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    c->log = open(path, O_WRONLY | O_CLOEXEC); /* ours is not appending: it cuts */
    if (out < 0 || c->log < 0) {
        r = err_set(err, -errno, "%s: %s", path, strerror(errno));
        goto done;
    }
    r = link_pair(pair);
    if (r == 0 && (r = pair[1] = lift(pair[1])) >= 0 && (r = out = lift(out)) >= 0)
        r = dir = fcntl(dir_fd, F_DUPFD_CLOEXEC, 16);
    if (r >= 0)
        r = spawn_process(c, program, rank, pair[1], out, dir);
    if (r < 0) {
        err_set(err, r, "cannot start rank %d (%s): %s", rank, program, strerror(-r));
        goto done;
    }
    c->pidfd = pidfd_open(c->pid, 0);
    c->link = pair[0];
    pair[0] = -1;
    r = 0;

done:
    if (out >= 0)
        close(out);
    if (dir >= 0)
        close(dir);
    for (int i = 0; i < 2; i++)
        if (pair[i] >= 0)
            close(pair[i]);
    if (r < 0)
        child_close(c);
    return r;
}

void child_close(struct child *c)
{
    int *const fds[] = {&c->pidfd, &c->link, &c->log};

    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
}

int child_poll(const struct child *c, struct pollfd v[2])
{
    int n = 0;

    if (c->link >= 0)
        v[n++] = (struct pollfd){c->link, POLLIN, 0};
    if (!c->over && c->pidfd >= 0)
        v[n++] = (struct pollfd){c->pidfd, POLLIN, 0};
    return n;
}

static void note(struct child *c, const struct link_packet *p)
{
    c->heard_ms = now_ms();
    if (p->kind == LINK_ERROR)
        snprintf(c->error, sizeof c->error, "%s", p->data);
    if (p->kind != LINK_BEAT)
        return;
    if (p->phase != c->phase || p->step != c->step)
        c->moved_ms = c->heard_ms;
    c->phase = p->phase;
    c->step = p->step;
    c->steps = p->steps;
    c->step_ms = p->step_ms;
}

int child_hear(struct child *c, struct link_packet *packet)
{
    while (c->link >= 0) {
        const int r = link_recv(c->link, packet);
        if (r == 1) {
            note(c, packet);
            return 1;
        }
        if (r == 0)
            return 0;
        if (r == -EBADMSG)
            continue;
        close(c->link); /* its end is closed: the process is about to end, or mad */
        c->link = -1;
    }
    return 0;
}

void child_tell(struct child *c, unsigned flags)
{
    c->flags |= flags;
    c->told &= ~flags; /* a second checkpoint is another one */
    child_tell_again(c);
}

void child_tell_again(struct child *c)
{
    const unsigned due = c->flags & ~c->told;

    if (due && c->link >= 0 && !c->over && link_send_flags(c->link, due) == 0)
        c->told |= due;
}

void child_kill(struct child *c)
{
    if (c->over || c->killed)
        return;
    c->killed = true;
    c->killed_ms = now_ms();
    if (c->pidfd < 0 || pidfd_send_signal(c->pidfd, SIGKILL, NULL, 0) < 0)
        (void)kill(c->pid, SIGKILL); /* not reaped yet: the number is still its own */
}

bool child_reap(struct child *c, struct rusage *ret)
{
    int status;
    pid_t got;

    do
        got = wait4(c->pid, &status, WNOHANG, ret);
    while (got < 0 && errno == EINTR);
    if (got != c->pid)
        return false;
    c->over = true;
    if (WIFSIGNALED(status))
        c->signal = WTERMSIG(status);
    else
        c->code = WEXITSTATUS(status);
    return true;
}

int child_begin(pid_t supervisor)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return -errno;
    return getppid() == supervisor ? 0 : -ECHILD;
}

void child_cap_log(struct child *c)
{
    static const char line[] = "\n[alignd: this log is full; nothing after this line was kept]\n";
    const off_t end = GANG_LOG_CUT + (off_t)sizeof line - 1;
    struct stat st;

    if (c->log < 0 || fstat(c->log, &st) < 0 || st.st_size <= (c->capped ? end : GANG_LOG_CUT))
        return;
    if (ftruncate(c->log, end) == 0 && pwrite(c->log, line, sizeof line - 1, GANG_LOG_CUT) > 0)
        c->capped = true;
}
