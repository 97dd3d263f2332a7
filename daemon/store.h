/* store.h - SQLite: what alignd knows and must not forget.
 *
 * WAL, synchronous=FULL, one writer. The writing half belongs to the thread of
 * committer.c (before that, to main); readers are connections of their own and
 * belong to whoever opened them. The loop never calls in here. */
#ifndef DAEMON_STORE_H
#define DAEMON_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/core.h"
#include "daemon/event.h"
#include "daemon/row.h"
#include "proto/buf.h"
#include "proto/err.h"

struct store;
struct store_reader;

enum { STORE_UUID = 37, STORE_KEY = 32 };

/* Opens or makes <dir>/alignd.db. -EINVAL: it is not ours, or newer than this
 * build, with a sentence; -EIO and others from the system. */
int store_open(const char *dir, struct store **ret, struct err *err);
void store_close(struct store *s); /* NULL is a no-op */

const char *store_uuid(const struct store *s);         /* of this database, for ever */
const uint8_t *store_token_key(const struct store *s); /* STORE_KEY bytes            */
const char *store_path(const struct store *s);

/* Hands what the core needs to core_restore_*(), in their order. */
int store_restore(struct store *s, struct core *core, struct err *err);

struct store_log { /* a chunk of a rank's output */
    uint64_t job;
    uint32_t attempt, rank;
    uint64_t at;
    const void *data;
    size_t bytes;
};

/* Writes the rows of fx and the chunks in one transaction. Returns 0: durable;
 * -ENOSPC: nothing was written, the disk is full, the same again later; anything
 * else: unknown, give up this process (service.md 9). The ballast goes first and
 * comes back when there is room. */
int store_commit(struct store *s, const struct effects *fx, const struct store_log *logs, size_t n,
                 struct err *err);

/* ---- readers: any thread, one at a time per reader ---- */

int store_reader_open(const char *path, struct store_reader **ret, struct err *err);
void store_reader_close(struct store_reader *r);

struct store_span {
    uint64_t last;    /* highest seq looked at, >= since                                  */
    uint64_t oldest;  /* the lowest there is; 0: none                                     */
    uint64_t thinned; /* of rows up to this only some are there; 0: all are               */
    bool more;        /* there are more after `last`                                      */
};
/* Rows of a job with seq > since, oldest first, at most max; without `all` only
 * those that count, and rewinds. */
int store_read_rows(struct store_reader *r, uint64_t job, uint64_t since, bool all, uint32_t max,
                    struct row_page *ret, struct store_span *ret_span);

/* Up to cap bytes of output from `offset` (negative: from the end) on. *ret_at is
 * where they begin, *ret_size how much there is. */
int store_read_log(struct store_reader *r, uint64_t job, uint32_t attempt, uint32_t rank,
                   int64_t offset, void *to, size_t cap, size_t *ret_bytes, uint64_t *ret_at,
                   uint64_t *ret_size);

/* The texts that hold for an attempt (0: the newest), malloc'ed, NUL-terminated.
 * -ENOENT. */
int store_read_spec(struct store_reader *r, uint64_t job, uint32_t attempt, char **ret_user,
                    char **ret_resolved, bool *ret_overwrite);

/* All attempts of a job as a JSON array (docs/PROTOCOL.md), appended to b. The step of
 * attempt `newest` (0: none) changes without its row, and its last row may be on the way:
 * the job's own step belongs there. In its place stands STORE_STEP, a byte that JSON
 * cannot hold. */
enum { STORE_STEP = '\x01' };
int store_read_attempts(struct store_reader *r, uint64_t job, uint32_t newest, struct buf *b);

struct store_recall { /* what the core has let go of; all of it owned */
    bool has_job, has_request;
    struct job job;
    struct attempt *attempts; /* by number; strings unused */
    uint32_t n_attempts;
    struct fx_request request;
};
/* The answer to uid's request `id` (NULL: none is looked for), and a job (0: the one
 * that answer names) with its attempts. What is not there is not an error. */
int store_read_recall(struct store_reader *r, uint64_t job, uint32_t uid, const uint8_t *id,
                      struct store_recall *ret);
void store_recall_fini(struct store_recall *r); /* zeroed is fine */

/* The newest job of a user; 0: none. */
int store_read_newest(struct store_reader *r, uint32_t uid, uint64_t *ret_job);

struct store_jobs {
    struct job *v;
    size_t n;
    bool more;       /* there are others after them */
    uint64_t hidden; /* that ended before ended_ms, whatever their ids; after == 0 only */
};
/* Ended jobs with id > after that ended at ended_ms or later, at most max, by id;
 * uid < 0: of all users. */
int store_read_jobs(struct store_reader *r, uint64_t after, int64_t uid, int64_t ended_ms,
                    uint32_t max, struct store_jobs *ret);
void store_jobs_fini(struct store_jobs *p); /* zeroed is fine */

/* Where the output of each rank of an attempt ends: calls fn for those with any. */
int store_read_log_ends(struct store_reader *r, uint64_t job, uint32_t attempt,
                        void (*fn)(void *arg, uint32_t rank, uint64_t end), void *arg);

#endif
