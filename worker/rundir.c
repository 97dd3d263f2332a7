/* rundir.c - see rundir.h. */
#include "worker/rundir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/text_out.h"

static int compare(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

/* "17" -> 17; 0 for anything that is not a plain number from 1 on. */
static uint32_t attempt_number(const char *s)
{
    char *end;
    unsigned long v;

    if (*s < '1' || *s > '9')
        return 0;
    errno = 0;
    v = strtoul(s, &end, 10);
    return *end == 0 && errno == 0 && v <= UINT32_MAX ? (uint32_t)v : 0;
}

int rundir_attempts(const char *path, uint32_t **ret, size_t *ret_n)
{
    char attempts[PATH_MAX];
    uint32_t *v = NULL;
    size_t n = 0;
    DIR *dir;

    if (snprintf(attempts, sizeof attempts, "%s/attempts", path) >= (int)sizeof attempts)
        return -ENAMETOOLONG;
    dir = opendir(attempts);
    if (dir == NULL && errno != ENOENT)
        return -errno;
    for (const struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL;) {
        const uint32_t a = attempt_number(e->d_name);
        uint32_t *more = a > 0 ? realloc(v, (n + 1) * sizeof *v) : v;
        if (a == 0)
            continue;
        if (more == NULL) {
            free(v);
            closedir(dir);
            return -ENOMEM;
        }
        v = more;
        v[n++] = a;
    }
    if (dir != NULL)
        closedir(dir);
    if (n > 0)
        qsort(v, n, sizeof *v, compare);
    *ret = v;
    *ret_n = n;
    return 0;
}

int rundir_open(struct rundir *d, const char *path, uint32_t attempt, struct err *err)
{
    char name[32];

    *d = (struct rundir){.path = path, .attempt = attempt, .fd = -1, .attempt_fd = -1};
    snprintf(name, sizeof name, "attempts/%u", attempt);
    d->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d->fd < 0)
        return err_set(err, -errno, "output_dir %s: %s", path, strerror(errno));
    d->attempt_fd = openat(d->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d->attempt_fd < 0)
        return err_set(err, -errno, "%s/%s: %s", path, name, strerror(errno));
    return 0;
}

void rundir_close(struct rundir *d)
{
    if (d->fd >= 0)
        close(d->fd);
    if (d->attempt_fd >= 0)
        close(d->attempt_fd);
    d->fd = d->attempt_fd = -1;
}

int rundir_fence(const struct rundir *d, struct err *err)
{
    uint32_t *v = NULL, last;
    size_t n = 0;
    int r = rundir_attempts(d->path, &v, &n);

    last = n > 0 ? v[n - 1] : 0;
    free(v);
    if (r < 0)
        return err_set(err, r, "%s/attempts: %s", d->path, strerror(-r));
    if (last > d->attempt)
        return err_set(err, -ESTALE,
                       "attempt %u of %s has begun; attempt %u publishes nothing more", last,
                       d->path, d->attempt);
    return 0;
}

int rundir_link(int dir_fd, const char *target, const char *name)
{
    char part[NAME_MAX + 1];
    struct stat st;

    if (snprintf(part, sizeof part, ".%s.link", name) >= (int)sizeof part)
        return -ENAMETOOLONG;
    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISLNK(st.st_mode))
        return -EEXIST;
    if (unlinkat(dir_fd, part, 0) < 0 && errno != ENOENT)
        return -errno;
    if (symlinkat(target, dir_fd, part) < 0)
        return -errno;
    if (renameat(dir_fd, part, dir_fd, name) < 0) {
        const int r = -errno;
        (void)unlinkat(dir_fd, part, 0);
        return r;
    }
    return fsync(dir_fd) < 0 ? -errno : 0;
}

int rundir_remove(int dir_fd, const char *name)
{
    DIR *dir;
    int fd, r = 0;

    if (unlinkat(dir_fd, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return -errno;
    fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    dir = fdopendir(fd);
    if (dir == NULL) {
        r = -errno;
        close(fd);
        return r;
    }
    for (const struct dirent *e; r == 0 && (e = readdir(dir)) != NULL;)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            r = rundir_remove(fd, e->d_name);
    closedir(dir);
    if (r == 0 && unlinkat(dir_fd, name, AT_REMOVEDIR) < 0)
        r = -errno;
    return r;
}

int rundir_sync(int dir_fd, const char *name)
{
    const int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
    int r;

    if (fd < 0)
        return errno == ENOENT ? 0 : -errno;
    r = fdatasync(fd) < 0 ? -errno : 0;
    close(fd);
    return r;
}

int rundir_read(int dir_fd, const char *name, size_t most, char **ret, size_t *ret_bytes)
{
    const int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct text_out t = {0};
    char chunk[65536];
    ssize_t n;
    int r = 0;

    if (fd < 0)
        return -errno;
    while (r == 0 && (n = read(fd, chunk, sizeof chunk)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            r = -errno;
        else if (t.bytes + (size_t)n > most)
            r = -EFBIG;
        else
            text_out_bytes(&t, chunk, (size_t)n);
    }
    close(fd);
    text_out_bytes(&t, "", 1);
    r = r < 0 ? r : t.error;
    if (r < 0) {
        text_out_free(&t);
        return r;
    }
    *ret = t.p;
    *ret_bytes = t.bytes - 1;
    return 0;
}
