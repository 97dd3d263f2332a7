/* launch_start.c - starts a gang: `align-worker supervise GANGDIR` in a session of its own,
 * which inherits the token and the locks of its devices. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <jansson.h>

#include "daemon/launch_process.h"
#include "proto/atomic_file.h"
#include "proto/buf.h"
#include "proto/device_lock.h"

extern char **environ;

enum {
    FILE_MAX_BYTES = 4 << 20,
    FD_BASE = 200, /* sources of inherited descriptors, out of the way of their targets */
    FD_TOKEN = 3,
    FD_LOCKS = 5, /* and up; 4 is given to the ranks for something else (worker/child.h) */
};

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

    launch_process_path(l, g->job, g->attempt, path, sizeof path);
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    dir = launch_process_open(l, g->job, g->attempt);
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
    launch_process_path(l, g->job, g->attempt, path, sizeof path);
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
    if (launch_process_locked(dir) == 1) {
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
