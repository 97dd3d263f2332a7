/* folder.h - a run folder from outside: whose it is, which attempts and checkpoints it
 * holds (docs/PROCESSES.md). What is in them is the trainer's business. */
#ifndef WORKER_FOLDER_H
#define WORKER_FOLDER_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"

enum folder_kind {
    FOLDER_FREE,  /* not there yet, or empty                                          */
    FOLDER_RUN,   /* holds a run of alignd                                            */
    FOLDER_OTHER, /* holds something else                                             */
};

/* Also checks that it could be made and written: -ENOTDIR, -EACCES, -EROFS... */
int folder_look(const char *dir, enum folder_kind *ret, struct err *err);

/* The highest attempts/N; 0: none. */
uint32_t folder_newest_attempt(const char *dir);
/* The highest checkpoint-S in dir; -1: none. */
int64_t folder_newest_checkpoint(const char *dir);

/* Creates dir and dir/attempts/N: the fence against earlier attempts. `again`: it may
 * exist already (a supervisor that died before it started anything). -EEXIST: it
 * does; -ESTALE: a higher one does. The names are on stable storage. */
int folder_make_attempt(const char *dir, uint32_t attempt, bool again, struct err *err);

/* Removes an earlier run of alignd, and nothing that alignd did not write.
 * keep_gang: dir/.gang is in use by the caller. */
int folder_clear(const char *dir, bool keep_gang, struct err *err);

#endif
