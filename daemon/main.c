/* main.c - alignd: arguments, folders, the loop, an exit code. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/alignd.h"
#include "proto/log.h"

enum { EXIT_USAGE = 2 };

/* The log goes to <state>/alignd.log unless standard error is wanted. */
static int redirect_log(const struct config *c, struct err *err)
{
    char path[LIMIT_PATH + 16];
    int fd;

    if (c->foreground || getenv("JOURNAL_STREAM"))
        return 0;
    snprintf(path, sizeof path, "%s/alignd.log", c->state);
    fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    if (dup2(fd, STDERR_FILENO) < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    close(fd);
    return 0;
}

static int fail(const struct err *err, int code)
{
    fprintf(stderr, "alignd: %s\n", err->text[0] ? err->text : "out of memory");
    return code;
}

static void no_closed_stdio(void)
{
    int fd = open("/dev/null", O_RDWR);

    while (fd >= 0 && fd <= STDERR_FILENO)
        fd = dup(fd);
    if (fd > STDERR_FILENO)
        close(fd);
}

int main(int argc, char **argv)
{
    struct config *config;
    struct err err = {""};
    int r, terminal;

    no_closed_stdio();
    if (config_read(argc, argv, &config, &err) < 0)
        return fail(&err, EXIT_USAGE);
    if (config->help || config->version) {
        printf("%s", config->help ? config_usage : "alignd " ALIGND_VERSION "\n");
        config_free(config);
        return 0;
    }
    if (!config->user) {
        fprintf(stderr, "alignd: only `alignd --user` is there yet; the system service is not\n");
        return EXIT_USAGE;
    }
    log_set_level(config->log_level);
    config->umask = umask(077); /* ours is for our own files; theirs follow the user's */
    if (config_prepare(config, config->note, sizeof config->note, &err) < 0)
        return fail(&err, 1);
    terminal = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 10);
    if (redirect_log(config, &err) < 0)
        return fail(&err, 1);
    if (config->note[0])
        log_warn("state", "%s", config->note);
    r = loop_run(config, &err);
    if (r < 0) {
        log_error("start", "%s", err.text);
        if (terminal >= 0 && !config->foreground)
            dprintf(terminal, "alignd: %s\n", err.text);
        r = 1;
    }
    config_free(config);
    return r;
}
