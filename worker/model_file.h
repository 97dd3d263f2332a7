/* model_file.h - opens the files of a model folder: configuration, tokenizer, weights,
 * every one of them.
 *
 * In a snapshot of the Hugging Face cache (.../models--ORG--NAME/snapshots/COMMIT) a file is
 * a file of that snapshot or a link into that repository's blobs/; any other link is
 * refused, wherever it leads: what was downloaded may not name other files of this machine.
 * A folder that is no snapshot is its owner's: links in it are followed. */
#ifndef WORKER_MODEL_FILE_H
#define WORKER_MODEL_FILE_H

#include <stddef.h>

#include "proto/err.h"

/* Opens dir/name, a regular file, for reading. Returns 0 and *ret_fd; -ENOENT: there is none;
 * -EINVAL: not a regular file, a link that leads nowhere or where it may not. */
int model_file_open(const char *dir, const char *name, int *ret_fd, struct err *err);

/* The whole file, malloc'ed, a NUL behind it that does not count. -EINVAL: more than `most`
 * bytes too. */
int model_file_read(const char *dir, const char *name, size_t most, char **ret, size_t *ret_bytes,
                    struct err *err);

#endif
