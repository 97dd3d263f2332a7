/* tokenizer_files.c - see tokenizer_files.h. */
#include "worker/tokenizer_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/atomic_file.h"
#include "worker/model_file.h"

enum { FILE_MOST = 256 << 20 };

#define FOLDER "tokenizer"

static const char *const names[] = {
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
};
enum { N_NAMES = sizeof names / sizeof names[0] };

int tokenizer_files_copy(const char *model_dir, int dir_fd, const char *to, struct err *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < N_NAMES; i++) {
        char *text = NULL;
        size_t bytes = 0;

        r = model_file_read(model_dir, names[i], FILE_MOST, &text, &bytes, err);
        if (r == -ENOENT) {
            r = 0;
            continue;
        }
        if (r == 0) {
            r = atomic_file_replace(dir_fd, names[i], &(struct span){text, bytes}, 1);
            if (r < 0)
                err_set(err, r, "%s/%s: %s", to, names[i], strerror(-r));
        }
        free(text);
    }
    return r;
}

static int open_folder(const struct rundir *d)
{
    const int fd = openat(d->attempt_fd, FOLDER, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

int tokenizer_files_keep(const char *model_dir, const struct rundir *d, struct err *err)
{
    char to[64];
    int fd, r;

    if (mkdirat(d->attempt_fd, FOLDER, 0777) < 0 && errno != EEXIST)
        return err_set(err, -errno, "attempts/%u/" FOLDER ": %s", d->attempt, strerror(errno));
    fd = open_folder(d);
    if (fd < 0)
        return err_set(err, fd, "attempts/%u/" FOLDER ": %s", d->attempt, strerror(-fd));
    snprintf(to, sizeof to, "attempts/%u/" FOLDER, d->attempt);
    r = tokenizer_files_copy(model_dir, fd, to, err);
    close(fd);
    return r;
}

static int copy_one(int from, const char *name, int to)
{
    char *text = NULL;
    size_t bytes = 0;
    int r = rundir_read(from, name, FILE_MOST, &text, &bytes);

    if (r == 0)
        r = atomic_file_replace(to, name, &(struct span){text, bytes}, 1);
    free(text);
    return r;
}

int tokenizer_files_link(const struct rundir *d, int dir_fd)
{
    const int fd = open_folder(d);
    int r = 0;

    if (fd < 0)
        return fd == -ENOENT ? 0 : fd;
    for (size_t i = 0; r == 0 && i < N_NAMES; i++) {
        if (linkat(fd, names[i], dir_fd, names[i], 0) == 0 || errno == ENOENT)
            continue;
        r = copy_one(fd, names[i], dir_fd);
    }
    close(fd);
    return r;
}
