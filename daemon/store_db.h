/* store_db.h - what store.c and store_read.c share: binding, stepping, errors. */
#ifndef DAEMON_STORE_DB_H
#define DAEMON_STORE_DB_H

#include <sqlite3.h>

#include "proto/err.h"

struct job;
struct store;

enum store_read_stmt {
    R_ROWS,
    R_BOUNDS,
    R_NAMES,
    R_LOG,
    R_LOG_SIZE,
    R_LOG_ENDS,
    R_SPEC,
    R_ATTEMPTS,
    R_JOB,
    R_JOBS,
    R_HIDDEN,
    R_NEWEST,
    R_PAST,
    R_REQUEST,
    READ_STMTS
};

struct store_reader {
    sqlite3 *db;
    sqlite3_stmt *q[READ_STMTS];
};

/* In the order in which store_restore.c takes them. */
#define STORE_DB_JOB                                                                          \
    "SELECT id, rev, ord, seq, uid, attempt, devices, type, state, reason, want, lost,"       \
    " launch_failures, held, published, phase, priority, limit_s, steps, step, loss,"         \
    " submitted_ms, started_ms, ended_ms, ended_s, exit_code, exit_signal, first_rank, name," \
    " method, output_dir, error, adapter FROM job"
#define STORE_DB_ATTEMPT                                                                        \
    "SELECT job, attempt, state, phase, published, exit_known, last_report, resume_step, step," \
    " started_ms, ended_ms, exit_code, exit_signal, first_rank, peak_rss_kb, build, error,"     \
    " adapter FROM attempt"
#define STORE_DB_REQUEST "SELECT uid, id, digest, code, job, age_s, text FROM request"

sqlite3 *store_db(struct store *s); /* the writer's connection */

/* store_tidy.c's, made when first needed and closed with the store. */
struct store_tidier;
struct store_tidier **store_tidier(struct store *s);
void store_tidy_close(struct store_tidier *t); /* NULL is a no-op */

/* 0 for OK, ROW and DONE; -ENOSPC for a full disk, by whatever name it comes;
 * -ENOMEM, -EIO; the sentence says what SQLite said. */
int store_db_err(sqlite3 *db, int rc, struct err *err);

/* Binds from 1 on. i: int64_t, n: int64_t (negative becomes NULL), d: double (NaN becomes NULL), s:
 * const char * or NULL, b: const void *, size_t. */
int store_db_bind(sqlite3_stmt *q, const char *types, ...);

/* Runs a statement to its end and makes it ready for the next. */
int store_db_run(sqlite3 *db, sqlite3_stmt *q, struct err *err);

#endif
