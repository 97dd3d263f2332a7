/* rundir.h - a run's folder: attempts, the fence between them, links and copies.
 * Layout: docs/PROCESSES.md, "A run folder"; service.md 15. */
#ifndef WORKER_RUNDIR_H
#define WORKER_RUNDIR_H

#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

struct rundir {
    const char *path; /* output_dir, absolute; borrowed                              */
    uint32_t attempt;
    int fd;         /* output_dir                                                    */
    int attempt_fd; /* output_dir/attempts/<attempt>                                 */
};

/* Both folders exist already. -ENOENT and others name them. */
int rundir_open(struct rundir *d, const char *path, uint32_t attempt, struct err *err);
void rundir_close(struct rundir *d);

/* The attempts there are, ascending; malloc'ed. An output_dir without any: 0 of them. */
int rundir_attempts(const char *path, uint32_t **ret, size_t *ret_n);

/* Before anything is published: -ESTALE when a later attempt has begun. */
int rundir_fence(const struct rundir *d, struct err *err);

/* Makes `name` in dir_fd a symbolic link to target, in place of a link of before.
 * 0 or -errno; -EEXIST: something else than a link has the name. */
int rundir_link(int dir_fd, const char *target, const char *name);

/* Removes a file or a folder with all that is in it; a name that is not there is fine. */
int rundir_remove(int dir_fd, const char *name);

/* Makes the bytes written so far to a file of dir_fd durable; 0 when it is not there. */
int rundir_sync(int dir_fd, const char *name);

/* A whole file in memory, with a NUL behind it; -EFBIG above `most` bytes. */
int rundir_read(int dir_fd, const char *name, size_t most, char **ret, size_t *ret_bytes);

#endif
