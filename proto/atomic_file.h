/* atomic_file.h - replace a file so that a crash leaves the old or the new one,
 * whole, never a mixture. Used for checkpoints and manifests. */
#ifndef PROTO_ATOMIC_FILE_H
#define PROTO_ATOMIC_FILE_H

#include <stddef.h>

struct span {
    const void *data; /* borrowed for the duration of the call */
    size_t bytes;
};

/* Writes parts[0..n) one after the other to `name` in directory `dir_fd`.
 *
 * On success the bytes and the name are on stable storage. On failure `name` is
 * what it was and no temporary is left behind. The name with ".part" appended
 * is reserved for the temporary; one writer at a time per name.
 *
 * Returns 0; -ENAMETOOLONG; or the negative errno of the call that failed
 * (-ENOSPC, -EIO, ...). Blocks on the disk: not for the daemon's loop. */
int atomic_file_replace(int dir_fd, const char *name, const struct span *parts, size_t n);

#endif
