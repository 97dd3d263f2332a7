/* model_file.c - see model_file.h. Layout of the cache: huggingface_hub's "Understand
 * caching". What counts is the file that was opened, by its name in /proc/self/fd: no link
 * can change between a look and the opening. */
#include "worker/model_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ".../models--ORG--NAME/snapshots/COMMIT": bytes up to the end of models--ORG--NAME; 0: no
 * snapshot. */
static size_t snapshot_repo(const char *dir)
{
    const char *commit = strrchr(dir, '/');
    static const char above[] = "/snapshots";
    size_t n = commit ? (size_t)(commit - dir) : 0;

    if (n < sizeof above || !commit[1] || strncmp(dir + n - strlen(above), above, strlen(above)))
        return 0;
    n -= strlen(above);
    size_t from = n;
    while (from > 0 && dir[from - 1] != '/')
        from--;
    return strncmp(dir + from, "models--", 8) == 0 ? n : 0;
}

/* The real names of the snapshot `dir` and of its repository. 1; 0: it is no snapshot. A
 * snapshot may be named by a link (~/my-model), so the name and what it stands for count. */
static int find_snapshot(const char *dir, char *snapshot, char *repo)
{
    char name[PATH_MAX], real[PATH_MAX];
    size_t n = strlen(dir);

    while (n > 1 && dir[n - 1] == '/')
        n--;
    if (n >= sizeof name)
        return -ENAMETOOLONG;
    memcpy(name, dir, n);
    name[n] = '\0';
    n = snapshot_repo(name);
    if (n == 0) {
        if (!realpath(name, real))
            return errno == ENOENT ? 0 : -errno;
        memcpy(name, real, sizeof real);
        n = snapshot_repo(name);
        if (n == 0)
            return 0;
    }
    const char *below = name + n;
    (void)snprintf(real, sizeof real, "%.*s", (int)n, name);
    if (!realpath(real, repo))
        return errno == ENOENT ? 0 : -errno;
    return snprintf(snapshot, PATH_MAX, "%s%s", repo, below) < PATH_MAX ? 1 : -ENAMETOOLONG;
}

/* What the link says, for people; "" where `path` is none. */
static const char *link_text(const char *path, char *buf, size_t room)
{
    const ssize_t n = readlink(path, buf, room - 1);

    buf[n > 0 ? n : 0] = '\0';
    return buf;
}

static bool below(const char *path, const char *repo, const char *folder)
{
    const size_t n = strlen(repo), m = strlen(folder);

    return strncmp(path, repo, n) == 0 && strncmp(path + n, folder, m) == 0 && path[n + m] != '\0';
}

static bool is_in(const char *path, const char *folder, const char *name)
{
    const size_t n = strlen(folder);

    return strncmp(path, folder, n) == 0 && path[n] == '/' && strcmp(path + n + 1, name) == 0;
}

static int check_place(int fd, const char *dir, const char *path, const char *name, struct err *err)
{
    char snapshot[PATH_MAX], repo[PATH_MAX], real[PATH_MAX], self[64];
    int r = find_snapshot(dir, snapshot, repo);

    if (r == 0)
        return 0;
    if (r < 0)
        return err_set(err, r, "%s: %s", dir, strerror(-r));
    (void)snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    if (!*link_text(self, real, sizeof real))
        return err_set(err, -EIO, "%s: where it lies cannot be told: is /proc there?", path);
    if (below(real, repo, "/blobs/") || is_in(real, snapshot, name))
        return 0;
    return err_set(
        err, -EINVAL,
        "%.300s: in the Hugging Face cache a file may only be a link into %.200s/blobs/, "
        "and this one leads to %.200s: remove the link and download the file again (hf "
        "download), or copy the model into a folder of your own",
        path, repo, real);
}

int model_file_open(const char *dir, const char *name, int *ret_fd, struct err *err)
{
    char path[PATH_MAX], target[PATH_MAX];
    struct stat st;
    int r = 0;

    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return err_set(err, -ENAMETOOLONG, "%.200s...: the path is too long", dir);
    /* Not to hang on a fifo that has the name of a model. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT && *link_text(path, target, sizeof target))
        return err_set(err, -EINVAL,
                       "%.300s: a link to %.300s, which is not there (an unfinished download?)",
                       path, target);
    if (fd < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) < 0)
        r = err_set(err, -errno, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        r = err_set(err, -EINVAL, "%s: not a regular file", path);
    else
        r = check_place(fd, dir, path, name, err);
    if (r < 0) {
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

/* Up to room bytes of fd. */
static int read_all(int fd, char *buf, size_t room, size_t *ret)
{
    size_t n = 0;

    while (n < room) {
        const ssize_t got = read(fd, buf + n, room - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        n += (size_t)got;
    }
    *ret = n;
    return 0;
}

int model_file_read(const char *dir, const char *name, size_t most, char **ret, size_t *ret_bytes,
                    struct err *err)
{
    struct stat st;
    char *text = NULL;
    size_t n = 0;
    int fd, r = model_file_open(dir, name, &fd, err);

    if (r < 0)
        return r;
    if (fstat(fd, &st) < 0)
        r = err_set(err, -errno, "%s/%s: %s", dir, name, strerror(errno));
    else if ((uint64_t)st.st_size > most)
        r = err_set(err, -EINVAL, "%s/%s: %lld bytes, more than %zu", dir, name,
                    (long long)st.st_size, most);
    else if (!(text = malloc((size_t)st.st_size + 2)))
        r = err_set(err, -ENOMEM, "%s/%s: out of memory", dir, name);
    else if ((r = read_all(fd, text, (size_t)st.st_size + 1, &n)) < 0)
        r = err_set(err, r, "%s/%s: %s", dir, name, strerror(-r));
    else if (n > (size_t)st.st_size)
        r = err_set(err, -EINVAL, "%s/%s: grew while it was read", dir, name);
    close(fd);
    if (r < 0) {
        free(text);
        return r;
    }
    text[n] = '\0';
    *ret = text;
    *ret_bytes = n;
    return 0;
}
