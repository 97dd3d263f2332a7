/* temp_dir.h - a folder under /tmp for one test, removed whole afterwards. */
#ifndef TESTS_SUPPORT_TEMP_DIR_H
#define TESTS_SUPPORT_TEMP_DIR_H

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct temp_dir {
    char path[64];
};

static inline void temp_dir_make(struct temp_dir *d)
{
    (void)snprintf(d->path, sizeof d->path, "/tmp/alignd-test-XXXXXX");
    if (!mkdtemp(d->path))
        d->path[0] = '\0';
}

static inline void temp_dir_empty(int dir_fd)
{
    const struct dirent *e;

    DIR *d = fdopendir(dir_fd); /* takes dir_fd over */
    while (d && (e = readdir(d))) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        const int sub = openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
        if (sub >= 0)
            temp_dir_empty(sub);
        (void)unlinkat(dirfd(d), e->d_name, sub >= 0 ? AT_REMOVEDIR : 0);
    }
    if (d)
        closedir(d);
}

static inline void temp_dir_remove(struct temp_dir *d)
{
    const int fd = d->path[0] ? open(d->path, O_RDONLY | O_DIRECTORY) : -1;

    if (fd >= 0)
        temp_dir_empty(fd);
    (void)rmdir(d->path);
}

/* "<dir>/<name>" in one of a few buffers. */
static inline const char *temp_dir_path(const struct temp_dir *d, const char *name)
{
    static char buf[4][320];
    static int at;

    at = (at + 1) % 4;
    (void)snprintf(buf[at], sizeof buf[at], "%s/%s", d->path, name);
    return buf[at];
}

#endif
