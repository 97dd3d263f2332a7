/* launch_process.c - launch.h with plain processes: `align-worker supervise GANGDIR` in a
 * session of its own. */
#include "daemon/launch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <jansson.h>

#include "proto/atomic_file.h"
#include "proto/buf.h"
#include "proto/device_lock.h"
#include "proto/proc.h"

extern char **environ;

enum {
    FILE_MAX_BYTES = 4 << 20,
    FD_BASE = 200, /* sources of inherited descriptors, out of the way of their targets */
    FD_TOKEN = 3,
    FD_LOCKS = 5, /* and up; 4 is given to the ranks for something else (worker/child.h) */
};

static void gang_path(const struct launch *l, uint64_t job, uint32_t attempt, char *path,
                      size_t size)
{
    snprintf(path, size, "%s/alignd-%s-%" PRIu64 "-%u", l->gangs_dir, l->store8, job, attempt);
}

static int gang_open(const struct launch *l, uint64_t job, uint32_t attempt)
{
    char path[LIMIT_PATH + 64];
    int fd;

    gang_path(l, job, attempt, path, sizeof path);
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
static int lock_held(int dir)
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
    const int dir = gang_open(l, job, attempt);
    json_t *pids;
    int held;

    memset(ret, 0, sizeof *ret);
    ret->pidfd = -1;
    if (dir < 0)
        return; /* ABSENT */
    look_devices(dir, ret);
    held = lock_held(dir);
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
    const int dir = gang_open(l, job, attempt);
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

/* ---- starting ---- */

/* A spec's text as one JSON object, so that it cannot end the file it is put into. */
static int add_json(struct buf *b, const char *key, const char *text, struct err *err)
{
    json_error_t je;
    json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, &je);
    char *clean;

    if (!json_is_object(o)) {
        json_decref(o);
        return err_set(err, -EINVAL, "the job's %s is not a JSON object: %s", key,
                       o ? "another value" : je.text);
    }
    clean = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    if (!clean)
        return -ENOMEM;
    buf_printf(b, ",\"%s\":", key);
    buf_str(b, clean);
    free(clean);
    return b->r;
}

static int write_gang(const struct launch *l, const struct launch_gang *g, int dir, struct err *err)
{
    struct buf b = {.max = FILE_MAX_BYTES};
    int r;

    buf_printf(&b, "{\"v\":1,\"job\":%" PRIu64 ",\"attempt\":%u,\"output_dir\":", g->job,
               g->attempt);
    buf_json(&b, g->output_dir);
    buf_str(&b, ",\"devices\":[");
    for (uint32_t i = 0; i < g->n_devices; i++) {
        buf_str(&b, i ? "," : "");
        buf_json(&b, g->devices[i]);
    }
    buf_str(&b, "],\"device_type\":");
    buf_json(&b, g->device_type);
    buf_printf(&b, ",\"threads_per_device\":%d,\"umask\":%u,\"overwrite\":%s,\"worker_url\":",
               g->threads_per_device, (unsigned)l->umask, g->overwrite ? "true" : "false");
    buf_json(&b, l->worker_url);
    r = add_json(&b, "spec", g->resolved_spec, err);
    if (r == 0)
        r = add_json(&b, "user_spec", g->user_spec, err);
    buf_str(&b, "}\n");
    if (r == 0)
        r = b.r;
    if (r == 0)
        r = atomic_file_replace(dir, "gang.json", &(struct span){b.data, b.bytes}, 1);
    if (r < 0 && r != -EINVAL)
        err_set(err, r, "cannot write gang.json: %s", strerror(-r));
    buf_free(&b);
    return r;
}

static int make_folder(const struct launch *l, const struct launch_gang *g, struct err *err)
{
    char path[LIMIT_PATH + 64];
    int dir;

    gang_path(l, g->job, g->attempt, path, sizeof path);
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    dir = gang_open(l, g->job, g->attempt);
    return dir < 0 ? err_set(err, dir, "%s: %s", path, strerror(-dir)) : dir;
}

/* What a supervisor inherits: the token's pipe and the devices' locks, which stay held
 * as long as any process of the gang has them. */
struct inherited {
    int token, log;
    int locks[LIMIT_RANKS];
    uint32_t n_locks;
};

static void inherited_close(struct inherited *h)
{
    if (h->token >= 0)
        close(h->token);
    if (h->log >= 0)
        close(h->log);
    for (uint32_t i = 0; i < h->n_locks; i++)
        close(h->locks[i]);
}

static int raised(int fd)
{
    const int up = fcntl(fd, F_DUPFD_CLOEXEC, FD_BASE);
    const int e = errno;

    close(fd);
    return up < 0 ? -e : up;
}

static int inherited_make(const struct launch *l, const struct launch_gang *g, int dir,
                          struct inherited *h, struct err *err)
{
    int p[2], fd;

    *h = (struct inherited){.token = -1, .log = -1};
    if (pipe2(p, O_CLOEXEC) < 0)
        return err_set(err, -errno, "pipe: %s", strerror(errno));
    if (write(p[1], g->token.b, sizeof g->token.b) != sizeof g->token.b) {
        close(p[0]);
        close(p[1]);
        return err_set(err, -EIO, "the token's pipe is full");
    }
    close(p[1]);
    h->token = raised(p[0]);
    fd =
        openat(dir, "supervisor.log", O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (h->token < 0 || fd < 0)
        return err_set(err, -EIO, "supervisor.log: %s", strerror(errno));
    h->log = raised(fd);
    for (uint32_t i = 0; i < g->n_devices && !g->drain; i++) {
        fd = device_lock_take(l->devices_dir, g->devices[i], err);
        if (fd >= 0)
            fd = raised(fd);
        if (fd < 0)
            return fd;
        h->locks[h->n_locks++] = fd;
    }
    return h->log < 0 ? err_set(err, h->log, "supervisor.log: %s", strerror(-h->log)) : 0;
}

static int spawn_actions(posix_spawn_file_actions_t *fa, const struct inherited *h,
                         const char *path)
{
    int r = posix_spawn_file_actions_addopen(fa, 0, "/dev/null", O_RDONLY, 0);

    if (r == 0)
        r = posix_spawn_file_actions_adddup2(fa, h->log, 1);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(fa, h->log, 2);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(fa, h->token, FD_TOKEN);
    if (r == 0)
        r = posix_spawn_file_actions_addopen(fa, FD_TOKEN + 1, "/dev/null", O_RDONLY, 0);
    for (uint32_t i = 0; i < h->n_locks && r == 0; i++)
        r = posix_spawn_file_actions_adddup2(fa, h->locks[i], FD_LOCKS + (int)i);
    if (r == 0)
        r = posix_spawn_file_actions_addclosefrom_np(fa, FD_LOCKS + (int)h->n_locks);
    if (r == 0)
        r = posix_spawn_file_actions_addchdir_np(fa, path);
    return -r;
}

/* Signals as at a login: nothing blocked, nothing ignored. */
static int spawn_attributes(posix_spawnattr_t *at)
{
    sigset_t none, all;

    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(at, &none);
    posix_spawnattr_setsigdefault(at, &all);
    return -posix_spawnattr_setflags(at, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                             POSIX_SPAWN_SETSID);
}

static int spawn(const struct launch *l, const struct launch_gang *g, const struct inherited *h,
                 pid_t *ret_pid, struct err *err)
{
    char path[LIMIT_PATH + 64], worker[LIMIT_PATH];
    char *argv[] = {worker, "supervise", path, NULL};
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t at;
    int r;

    snprintf(worker, sizeof worker, "%s", l->worker);
    gang_path(l, g->job, g->attempt, path, sizeof path);
    if (posix_spawn_file_actions_init(&fa) != 0)
        return -ENOMEM;
    if (posix_spawnattr_init(&at) != 0) {
        posix_spawn_file_actions_destroy(&fa);
        return -ENOMEM;
    }
    r = spawn_actions(&fa, h, path);
    if (r == 0)
        r = spawn_attributes(&at);
    if (r == 0)
        r = -posix_spawn(ret_pid, worker, &fa, &at, argv, environ);
    if (r < 0)
        err_set(err, r, "cannot start %s: %s", worker, strerror(-r));
    posix_spawnattr_destroy(&at);
    posix_spawn_file_actions_destroy(&fa);
    return r;
}

int launch_start(const struct launch *l, const struct launch_gang *g, pid_t *ret_pid,
                 int *ret_pidfd, struct err *err)
{
    struct inherited h = {.token = -1, .log = -1};
    const int dir = make_folder(l, g, err);
    int r;

    if (dir < 0)
        return dir;
    if (lock_held(dir) == 1) {
        close(dir);
        return 1;
    }
    r = write_gang(l, g, dir, err);
    if (r == 0)
        r = inherited_make(l, g, dir, &h, err);
    if (r == 0)
        r = spawn(l, g, &h, ret_pid, err);
    inherited_close(&h);
    close(dir);
    if (r < 0)
        return r;
    *ret_pidfd = (int)syscall(SYS_pidfd_open, *ret_pid, 0);
    return 0;
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
    const int dir = gang_open(l, job, attempt);
    struct dirent *e;
    DIR *d;

    if (dir < 0)
        return;
    gang_path(l, job, attempt, path, sizeof path);
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
