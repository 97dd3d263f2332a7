/* launch_process.c - launch.h with plain processes: looking at them, ending them, their
 * folders. launch_start.c starts them. */
#include "daemon/launch_process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <jansson.h>

#include "proto/proc.h"

enum { FILE_MAX_BYTES = 4 << 20 };

void launch_process_path(const struct launch *l, uint64_t job, uint32_t attempt, char *path,
                         size_t size)
{
    snprintf(path, size, "%s/alignd-%s-%" PRIu64 "-%u", l->gangs_dir, l->store8, job, attempt);
}

int launch_process_open(const struct launch *l, uint64_t job, uint32_t attempt)
{
    char path[LIMIT_PATH + 64];
    int fd;

    launch_process_path(l, job, attempt, path, sizeof path);
    fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* A small file whole, NUL-terminated, malloc'ed. No links, no devices, no pipes. */
static int slurp(int dir, const char *name, char **ret, size_t *ret_bytes)
{
    struct stat st;
    char *p = NULL;
    size_t n = 0;
    ssize_t k;
    int r, fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0)
        return -errno;
    r = fstat(fd, &st) < 0 ? -errno : 0;
    if (r == 0 && (!S_ISREG(st.st_mode) || st.st_size > FILE_MAX_BYTES))
        r = -EBADMSG;
    if (r == 0 && !(p = malloc((size_t)st.st_size + 1)))
        r = -ENOMEM;
    while (r == 0 && n < (size_t)st.st_size) {
        k = read(fd, p + n, (size_t)st.st_size - n);
        if (k < 0)
            r = -errno;
        if (k <= 0)
            break;
        n += (size_t)k;
    }
    close(fd);
    if (r < 0) {
        free(p);
        return r;
    }
    p[n] = 0;
    *ret = p;
    *ret_bytes = n;
    return 0;
}

static json_t *slurp_json(int dir, const char *name)
{
    char *text;
    size_t bytes;
    json_t *o;

    if (slurp(dir, name, &text, &bytes) < 0)
        return NULL;
    o = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    free(text);
    if (!json_is_object(o)) {
        json_decref(o);
        return NULL;
    }
    return o;
}

/* ---- processes ---- */

/* A descriptor of the process `o` of pids.json describes, or -1 when it is not there
 * (any more). The start time is compared after the descriptor is held. */
static int pidfd_of(const json_t *o, pid_t *ret_pid)
{
    const json_int_t pid = json_integer_value(json_object_get(o, "pid"));
    const json_int_t start = json_integer_value(json_object_get(o, "start"));
    int fd;

    if (pid <= 1 || pid > INT32_MAX || start <= 0)
        return -1;
    fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
    if (fd < 0)
        return -1;
    if (proc_start((pid_t)pid) != (uint64_t)start) {
        close(fd);
        return -1;
    }
    *ret_pid = (pid_t)pid;
    return fd;
}

static int pidfd_signal(int pidfd, int sig)
{
    return syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0) < 0 ? -errno : 0;
}

/* pids.json of this boot, or NULL. */
static json_t *read_pids(int dir)
{
    char now[PROC_BOOT_TEXT];
    const char *was;
    json_t *o = slurp_json(dir, "pids.json");

    if (!o)
        return NULL;
    proc_boot_text(now);
    was = json_string_value(json_object_get(o, "boot_id"));
    if (!was || strcmp(was, now) != 0) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static unsigned kill_ranks(const json_t *pids)
{
    const json_t *ranks = json_object_get(pids, "ranks");
    unsigned left = 0;
    size_t i;
    json_t *o;

    json_array_foreach(ranks, i, o)
    {
        pid_t pid;
        const int fd = pidfd_of(o, &pid);
        if (fd < 0)
            continue;
        (void)pidfd_signal(fd, SIGKILL);
        left++;
        close(fd);
    }
    return left;
}

/* 1: held by a supervisor; 0: free; -ENOENT: there is no lock file. A shared lock: it
 * is not in the way of other lookers, only of a supervisor that starts just now,
 * which tries for a second. */
int launch_process_locked(int dir)
{
    const int fd = openat(dir, "lock", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    int held;

    if (fd < 0)
        return errno == ENOENT ? -ENOENT : 0;
    held = flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK;
    close(fd);
    return held;
}

/* ---- looking ---- */

static void look_devices(int dir, struct launch_look *ret)
{
    json_t *o = slurp_json(dir, "gang.json"), *v;
    size_t i;

    json_array_foreach(json_object_get(o, "devices"), i, v)
    {
        if (i < LIMIT_RANKS && json_is_string(v))
            snprintf(ret->devices[ret->n_devices++], sizeof ret->devices[0], "%s",
                     json_string_value(v));
    }
    json_decref(o);
}

static void last_words(int dir, char *to, size_t size)
{
    char *text;
    size_t n;

    to[0] = 0;
    if (slurp(dir, "supervisor.log", &text, &n) < 0)
        return;
    while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == ' '))
        text[--n] = 0;
    const char *line = strrchr(text, '\n');
    snprintf(to, size, "%s", line ? line + 1 : text);
    free(text);
}

static void look_at_end(int dir, uint64_t job, uint32_t attempt, struct launch_look *ret)
{
    struct err err = {""};
    char *text;
    size_t bytes;
    int r = slurp(dir, "exit.json", &text, &bytes);

    ret->state = LAUNCH_LOST;
    if (r == -ENOENT)
        return;
    if (r < 0) {
        snprintf(ret->why, sizeof ret->why, "exit.json: %s", strerror(-r));
        return;
    }
    r = exit_record_parse(text, bytes, job, attempt, &ret->record, &err);
    free(text);
    if (r < 0)
        snprintf(ret->why, sizeof ret->why, "%s", err.text);
    else
        ret->state = LAUNCH_EXITED;
}

void launch_look(const struct launch *l, uint64_t job, uint32_t attempt, struct launch_look *ret)
{
    const int dir = launch_process_open(l, job, attempt);
    json_t *pids;
    int held;

    memset(ret, 0, sizeof *ret);
    ret->pidfd = -1;
    if (dir < 0)
        return; /* ABSENT */
    look_devices(dir, ret);
    held = launch_process_locked(dir);
    if (held == -ENOENT) {
        last_words(dir, ret->why, sizeof ret->why);
        close(dir);
        return;
    }
    pids = read_pids(dir);
    if (held == 1) {
        ret->state = LAUNCH_ALIVE;
        ret->pidfd = pidfd_of(json_object_get(pids, "supervisor"), &ret->supervisor);
    } else {
        ret->ranks_left = kill_ranks(pids);
        if (ret->ranks_left > 0)
            ret->state = LAUNCH_ALIVE;
        else
            look_at_end(dir, job, attempt, ret);
    }
    json_decref(pids);
    close(dir);
}

static int signal_gang(const struct launch *l, uint64_t job, uint32_t attempt, int sig)
{
    const int dir = launch_process_open(l, job, attempt);
    json_t *pids;
    pid_t pid;
    int fd, r = -ESRCH;

    if (dir < 0)
        return -ESRCH;
    pids = read_pids(dir);
    fd = pidfd_of(json_object_get(pids, "supervisor"), &pid);
    if (fd >= 0) {
        r = pidfd_signal(fd, sig);
        close(fd);
    }
    if (sig == SIGKILL && kill_ranks(pids) > 0)
        r = 0;
    json_decref(pids);
    close(dir);
    return r;
}

int launch_stop(const struct launch *l, uint64_t job, uint32_t attempt)
{
    return signal_gang(l, job, attempt, SIGTERM);
}

int launch_kill(const struct launch *l, uint64_t job, uint32_t attempt)
{
    return signal_gang(l, job, attempt, SIGKILL);
}

/* ---- the folder of gangs ---- */

int launch_scan(const struct launch *l, void (*fn)(void *arg, uint64_t job, uint32_t attempt),
                void *arg)
{
    DIR *d = opendir(l->gangs_dir);
    struct dirent *e;

    if (!d)
        return errno == ENOENT ? 0 : -errno;
    while ((e = readdir(d))) {
        char store[9], end;
        uint64_t job;
        uint32_t attempt;
        if (sscanf(e->d_name, "alignd-%8[0-9a-f]-%" SCNu64 "-%" SCNu32 "%c", store, &job, &attempt,
                   &end) == 3 &&
            !strcmp(store, l->store8))
            fn(arg, job, attempt);
    }
    closedir(d);
    return 0;
}

void launch_forget(const struct launch *l, uint64_t job, uint32_t attempt)
{
    char path[LIMIT_PATH + 64];
    const int dir = launch_process_open(l, job, attempt);
    struct dirent *e;
    DIR *d;

    if (dir < 0)
        return;
    launch_process_path(l, job, attempt, path, sizeof path);
    d = fdopendir(dir);
    if (!d) {
        close(dir);
        return;
    }
    while ((e = readdir(d)))
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            (void)unlinkat(dir, e->d_name, 0);
    closedir(d);
    (void)rmdir(path);
}
