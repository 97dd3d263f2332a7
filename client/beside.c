/* beside.c - see beside.h. */
#include "client/beside.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/buf.h"
#include "proto/limit.h"

enum { OUTPUT_MAX = 256 << 20 };

extern char **environ;

int beside_find(struct cli *cli, const char *name, const char *folder, const char *variable,
                char *buf, size_t room)
{
    char self[LIMIT_PATH];
    const char *given = getenv(variable);
    if (given && *given) {
        if (snprintf(buf, room, "%s", given) < (int)room && access(buf, X_OK) == 0)
            return CLI_OK;
        return err_set(&cli->err, CLI_ERROR, "%s: %.300s is no program", variable, given);
    }
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) {
        *slash = '\0';
        if (snprintf(buf, room, "%s/%s", self, name) < (int)room && access(buf, X_OK) == 0)
            return CLI_OK;
        if (snprintf(buf, room, "%s/../%s/%s", self, folder, name) < (int)room &&
            access(buf, X_OK) == 0)
            return CLI_OK;
    }
    return err_set(&cli->err, CLI_ERROR, "there is no %s beside alignctl in %.300s (nor a %s)",
                   name, self, variable);
}

/* A descriptor that reads `text`; -1 with errno. */
static int text_fd(const char *text)
{
    int fd = memfd_create("job", MFD_CLOEXEC);
    size_t n = strlen(text), done = 0;
    if (fd < 0)
        return -1;
    while (done < n) {
        ssize_t w = write(fd, text + done, n - done);
        if (w < 0) {
            (void)close(fd);
            return -1;
        }
        done += (size_t)w;
    }
    (void)lseek(fd, 0, SEEK_SET);
    return fd;
}

static int spawn(const char *path, const char **argv, int in, int out, pid_t *ret)
{
    posix_spawn_file_actions_t act;
    int r = posix_spawn_file_actions_init(&act);
    if (r)
        return r;
    if (in >= 0)
        r = posix_spawn_file_actions_adddup2(&act, in, 0);
    if (!r && out >= 0)
        r = posix_spawn_file_actions_adddup2(&act, out, 1);
    if (!r)
        r = posix_spawn(ret, path, &act, NULL, (char *const *)argv, environ);
    (void)posix_spawn_file_actions_destroy(&act);
    return r;
}

static int read_all(int fd, struct buf *b)
{
    char chunk[65536];
    for (;;) {
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return b->r;
        (void)buf_add(b, chunk, (size_t)n);
    }
}

static int reap(pid_t pid)
{
    int status = 0;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return 127;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int beside_worker(struct cli *cli, const char **argv, const char *input, char **ret,
                  int *ret_status)
{
    char path[LIMIT_PATH];
    struct buf b = {.max = OUTPUT_MAX};
    int in = -1, pipes[2] = {-1, -1}, code = CLI_ERROR;
    pid_t pid = -1;

    int r = beside_find(cli, "align-worker", "worker", "ALIGND_WORKER", path, sizeof path);
    if (r != CLI_OK)
        return r;
    argv[0] = path;
    (void)fflush(NULL);
    if ((input && (in = text_fd(input)) < 0) || (ret && pipe2(pipes, O_CLOEXEC) < 0)) {
        (void)err_set(&cli->err, 0, "cannot start align-worker: %s", strerror(errno));
        goto done;
    }
    r = spawn(path, argv, in, pipes[1], &pid);
    if (r) {
        (void)err_set(&cli->err, 0, "cannot start %.300s: %s", path, strerror(r));
        goto done;
    }
    if (ret) {
        (void)close(pipes[1]);
        pipes[1] = -1;
        r = read_all(pipes[0], &b);
    }
    *ret_status = reap(pid);
    if (r < 0) {
        (void)err_set(&cli->err, 0, "cannot read what align-worker prints: %s", strerror(-r));
        goto done;
    }
    code = CLI_OK;
    if (ret) {
        (void)buf_add(&b, "", 0);
        *ret = b.data ? b.data : strdup("");
        b.data = NULL;
    }
done:
    if (in >= 0)
        (void)close(in);
    for (int i = 0; i < 2; i++)
        if (pipes[i] >= 0)
            (void)close(pipes[i]);
    buf_free(&b);
    return code;
}
