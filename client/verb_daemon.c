/* verb_daemon.c - up, down: this user's own alignd. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client/args.h"
#include "client/beside.h"
#include "client/conn.h"
#include "client/follow.h"
#include "client/format.h"

enum { UP_MS = 30000, DOWN_MS = 30000, LOOK_MS = 50, LOG_TAIL = 2000, DISK_LEAST = 32 << 20 };

extern char **environ;

static void nap(int ms)
{
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
    (void)nanosleep(&t, NULL);
}

static int make_folder(struct cli *cli, const char *path)
{
    char part[LIMIT_PATH];
    for (const char *p = path + 1; p; p = strchr(p, '/'), p = p ? p + 1 : NULL) {
        const char *end = strchr(p, '/');
        (void)snprintf(part, sizeof part, "%.*s", (int)(end ? end - path : (long)strlen(path)),
                       path);
        if (*p && mkdir(part, 0700) < 0 && errno != EEXIST)
            return err_set(&cli->err, CLI_ERROR, "%.400s: %s", part, strerror(errno));
    }
    return CLI_OK;
}

/* The daemon in a session of its own, its output in the log. */
static int start(struct cli *cli, const char **argv, const char *log, pid_t *ret)
{
    posix_spawn_file_actions_t act;
    posix_spawnattr_t attr;
    sigset_t none;
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(&cli->err, CLI_ERROR, "%.400s: %s", log, strerror(errno));
    (void)sigemptyset(&none);
    (void)posix_spawn_file_actions_init(&act);
    (void)posix_spawn_file_actions_addopen(&act, 0, "/dev/null", O_RDONLY, 0);
    (void)posix_spawn_file_actions_adddup2(&act, fd, 1);
    (void)posix_spawn_file_actions_adddup2(&act, fd, 2);
    (void)posix_spawn_file_actions_addchdir_np(&act, "/");
    (void)posix_spawnattr_init(&attr);
    (void)posix_spawnattr_setsigmask(&attr, &none);
    (void)posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
    int r = posix_spawn(ret, argv[0], &act, &attr, (char *const *)argv, environ);
    (void)posix_spawnattr_destroy(&attr);
    (void)posix_spawn_file_actions_destroy(&act);
    (void)close(fd);
    return r ? err_set(&cli->err, CLI_ERROR, "cannot start %.300s: %s", argv[0], strerror(r))
             : CLI_OK;
}

static void tell_log(struct cli *cli, const char *log)
{
    char text[LOG_TAIL + 1], line[LOG_TAIL + 1];
    int fd = open(log, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    off_t size = lseek(fd, 0, SEEK_END);
    ssize_t n = pread(fd, text, LOG_TAIL, size > LOG_TAIL ? size - LOG_TAIL : 0);
    (void)close(fd);
    text[n > 0 ? n : 0] = '\0';
    for (char *save = NULL, *p = strtok_r(text, "\n", &save); p; p = strtok_r(NULL, "\n", &save))
        (void)fprintf(cli->notes, "  %s\n", format_plain(line, sizeof line, p, sizeof line));
}

/* With a full disk alignd cannot write why it ended. */
static void tell_disk(struct cli *cli, const char *log)
{
    struct statvfs v;
    format_buf left;

    if (statvfs(log, &v) == 0 && (uint64_t)v.f_bavail * v.f_frsize < (uint64_t)DISK_LEAST)
        (void)fprintf(cli->notes, "the disk that %s is on has %s left\n", log,
                      format_bytes(left, (double)v.f_bavail * (double)v.f_frsize));
}

/* Until hello answers, or the daemon has ended. */
static int await(struct cli *cli, pid_t pid, const char *log, struct conn *c)
{
    const int64_t until = follow_now_ms() + UP_MS;
    while (follow_now_ms() < until) {
        int status;
        int r = conn_open(cli, c);
        if (r != CLI_UNREACHABLE)
            return r;
        cli->err.text[0] = '\0';
        if (waitpid(pid, &status, WNOHANG) == pid) {
            (void)fprintf(cli->notes, "the end of %s:\n", log);
            tell_log(cli, log);
            tell_disk(cli, log);
            return WIFEXITED(status)
                       ? err_set(&cli->err, CLI_ERROR, "alignd ended at once with code %d",
                                 WEXITSTATUS(status))
                       : err_set(&cli->err, CLI_ERROR, "alignd was ended at once by signal %d",
                                 WTERMSIG(status));
        }
        nap(LOOK_MS);
    }
    tell_log(cli, log);
    return err_set(&cli->err, CLI_ERROR,
                   "alignd (process %ld) did not answer in %d s; its log: %.300s", (long)pid,
                   UP_MS / 1000, log);
}

static void print_up(struct cli *cli, const struct conn *c, const char *log, bool already)
{
    const char *socket = strncmp(c->host, "ipc://", 6) == 0 ? c->host + 6 : c->host;
    if (cli->json) {
        (void)fprintf(cli->out,
                      "{\"host\": \"%s\", \"socket\": \"%s\", \"log\": \"%s\", \"pid\": %llu, "
                      "\"started\": %s}\n",
                      c->host, socket, log, (unsigned long long)c->pid, already ? "false" : "true");
        return;
    }
    (void)fprintf(cli->out, "alignd %s%s, process %llu\n", c->build,
                  already ? " runs already" : " is up", (unsigned long long)c->pid);
    (void)fprintf(cli->out, "host   %s\nsocket %s\nlog    %s\n", c->host, socket, log);
    if (c->note[0])
        (void)fprintf(cli->notes, "%s\n", c->note);
}

static int verb_up(struct cli *cli, int argc, char **argv)
{
    const char *state = NULL, *slots = NULL, *level = NULL;
    const struct args_option options[] = {{"state", 0, ARGS_TEXT, &state},
                                          {"cpu-slots", 0, ARGS_TEXT, &slots},
                                          {"log-level", 0, ARGS_TEXT, &level},
                                          {NULL, 0, ARGS_FLAG, NULL}};
    char folder[LIMIT_PATH], log[LIMIT_PATH + 16], program[LIMIT_PATH];
    const char *args[12] = {NULL, "--user"};
    size_t n = 2;
    struct conn c = {0};
    pid_t pid = -1;

    int r = args_parse(cli, argc, argv, options, NULL, 0, 0, NULL);
    if (r != CLI_OK)
        return r;
    if (state && setenv("ALIGND_STATE", state, 1) < 0)
        return err_set(&cli->err, CLI_ERROR, "out of memory");
    if (!conn_state_folder(folder, sizeof folder))
        return err_set(&cli->err, CLI_USAGE,
                       "no state folder is known: HOME is not set; give --state DIR");
    if (folder[0] != '/')
        return err_set(&cli->err, CLI_USAGE, "%s%.200s: must be an absolute path",
                       state ? "--state " : "the state folder ", folder);
    (void)snprintf(log, sizeof log, "%s/alignd.log", folder);
    r = conn_open(cli, &c);
    if (r == CLI_OK)
        print_up(cli, &c, log, true);
    conn_close(&c);
    if (r != CLI_UNREACHABLE)
        return r;
    cli->err.text[0] = '\0';
    r = beside_find(cli, "alignd", "daemon", "ALIGND_DAEMON", program, sizeof program);
    if (r == CLI_OK)
        r = make_folder(cli, folder);
    if (r != CLI_OK)
        return r;
    args[0] = program;
    args[n++] = "--state";
    args[n++] = folder;
    if (slots) {
        args[n++] = "--cpu-slots";
        args[n++] = slots;
    }
    if (level) {
        args[n++] = "--log-level";
        args[n++] = level;
    }
    r = start(cli, args, log, &pid);
    if (r == CLI_OK)
        r = await(cli, pid, log, &c);
    if (r == CLI_OK)
        print_up(cli, &c, log, false);
    conn_close(&c);
    return r;
}

/* The daemon's process has ended, as far as can be known. */
static bool await_end(uint64_t pid)
{
    int fd = pid ? (int)syscall(SYS_pidfd_open, (pid_t)pid, 0) : -1;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (fd < 0)
        return errno == ESRCH;
    int n = poll(&p, 1, DOWN_MS);
    (void)close(fd);
    return n > 0;
}

static int verb_down(struct cli *cli, int argc, char **argv)
{
    const char *state = NULL;
    const struct args_option options[] = {{"state", 0, ARGS_TEXT, &state},
                                          {NULL, 0, ARGS_FLAG, NULL}};
    struct msg req = {.type = MSG_T_stop_daemon}, *reply = NULL;
    struct conn c = {0};
    int r = args_parse(cli, argc, argv, options, NULL, 0, 0, NULL);
    if (r == CLI_OK && state && setenv("ALIGND_STATE", state, 1) < 0)
        r = err_set(&cli->err, CLI_ERROR, "out of memory");
    if (r == CLI_OK)
        r = conn_key(cli, NULL, &req.stop_daemon.key);
    if (r == CLI_OK)
        r = conn_open(cli, &c);
    if (r == CLI_OK)
        r = conn_call(cli, &c, &req, &reply);
    uint64_t pid = c.pid;
    codec_free(reply);
    conn_close(&c);
    if (r != CLI_OK)
        return r;
    if (!await_end(pid))
        return err_set(&cli->err, CLI_ERROR,
                       "alignd (process %llu) was told to stop and has not ended yet",
                       (unsigned long long)pid);
    (void)fprintf(cli->out, cli->json ? "{\"stopped\": true}\n"
                                      : "alignd has stopped; jobs that run train on\n");
    return CLI_OK;
}

const struct cli_verb verb_daemon[] = {
    {"up", "[--state DIR] [--cpu-slots N] [--log-level LEVEL]", "starts an alignd of your own",
     verb_up},
    {"down", "[--state DIR]", "stops it; jobs that run train on", verb_down},
    {NULL, NULL, NULL, NULL}};
