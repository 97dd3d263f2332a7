/* atomic_file.c - see atomic_file.h. Write aside, sync, rename, sync the name. */
#include "proto/atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

static int write_all(int fd, const void *data, size_t bytes)
{
    const uint8_t *p = data;

    while (bytes > 0) {
        ssize_t n = write(fd, p, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        p += n;
        bytes -= (size_t)n;
    }
    return 0;
}

int atomic_file_replace(int dir_fd, const char *name, const struct span *parts, size_t n)
{
    char part[NAME_MAX + 1];
    int fd = -1, r;

    if (snprintf(part, sizeof part, "%s.part", name) >= (int)sizeof part)
        return -ENAMETOOLONG;

    fd = openat(dir_fd, part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return -errno;

    for (size_t i = 0; i < n; i++) {
        r = write_all(fd, parts[i].data, parts[i].bytes);
        if (r < 0)
            goto fail;
    }
    if (fsync(fd) < 0) {
        r = -errno;
        goto fail;
    }
    r = close(fd) < 0 ? -errno : 0; /* some file systems report ENOSPC here */
    fd = -1;
    if (r < 0)
        goto fail;
    if (renameat(dir_fd, part, dir_fd, name) < 0) {
        r = -errno;
        goto fail;
    }
    /* The new content is in place; if its name cannot be synced, say so, but
     * there is nothing left to undo. */
    return fsync(dir_fd) < 0 ? -errno : 0;

fail:
    if (fd >= 0)
        close(fd);
    (void)unlinkat(dir_fd, part, 0);
    return r;
}
