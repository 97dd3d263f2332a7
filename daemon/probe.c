/* probe.c - see probe.h. */
#include "daemon/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

extern char **environ;

enum { ANSWER_BYTES = 65536 };

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int start(const char *worker, int out, pid_t *ret)
{
    char program[4096];
    char *argv[] = {program, "devices", NULL};
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t at;
    sigset_t none;
    int r;

    (void)snprintf(program, sizeof program, "%s", worker);
    if (posix_spawn_file_actions_init(&fa) != 0)
        return -ENOMEM;
    if (posix_spawnattr_init(&at) != 0) {
        posix_spawn_file_actions_destroy(&fa);
        return -ENOMEM;
    }
    sigemptyset(&none);
    r = posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(&fa, out, 1);
    if (r == 0)
        r = posix_spawn_file_actions_addopen(&fa, 2, "/dev/null", O_WRONLY, 0);
    if (r == 0)
        r = posix_spawn_file_actions_addclosefrom_np(&fa, 3);
    if (r == 0)
        r = posix_spawnattr_setsigmask(&at, &none);
    if (r == 0)
        r = posix_spawnattr_setflags(&at, POSIX_SPAWN_SETSIGMASK);
    if (r == 0)
        r = posix_spawn(ret, program, &fa, &at, argv, environ);
    posix_spawnattr_destroy(&at);
    posix_spawn_file_actions_destroy(&fa);
    return -r;
}

/* Until its end or `until`; what it wrote. -ETIMEDOUT. */
static int listen_to(int fd, int64_t until, char *text, size_t size)
{
    size_t n = 0;

    for (;;) {
        const int64_t left = until - now_ms();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (left <= 0 || poll(&p, 1, (int)left) == 0)
            return -ETIMEDOUT;
        const ssize_t k = read(fd, text + n, size - 1 - n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0 || n + (size_t)k >= size - 1) {
            text[n] = 0;
            return k < 0 ? -errno : k == 0 ? 0 : -EMSGSIZE;
        }
        n += (size_t)k;
    }
}

static int understand(const char *text, char *why, size_t size)
{
    json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    const json_t *gpus = json_object_get(o, "gpus");
    const char *said = json_string_value(json_object_get(o, "why"));
    int r = -EBADMSG;

    if (json_is_array(gpus))
        r = json_array_size(gpus) > 0;
    (void)snprintf(why, size, "%s", r == 0 && said ? said : "");
    json_decref(o);
    return r;
}

/* One that hangs in the driver cannot be waited for: it is left to whoever reaps it. */
static int end_of(pid_t pid, bool killed)
{
    int status = -1;

    if (killed)
        (void)kill(pid, SIGKILL);
    for (int i = 0; i < 100; i++) {
        if (waitpid(pid, &status, WNOHANG) == pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
        usleep(10000);
    }
    return -1;
}

int probe_gpus(const char *worker, int timeout_ms, char *why, size_t size)
{
    char text[ANSWER_BYTES];
    int p[2], r, code;
    pid_t pid;

    why[0] = 0;
    if (pipe2(p, O_CLOEXEC) < 0)
        return -errno;
    r = start(worker, p[1], &pid);
    close(p[1]);
    if (r == 0) {
        r = listen_to(p[0], now_ms() + timeout_ms, text, sizeof text);
        code = end_of(pid, r < 0);
        if (r == 0)
            r = code == 0 ? understand(text, why, size) : -EBADMSG;
    }
    close(p[0]);
    return r;
}
