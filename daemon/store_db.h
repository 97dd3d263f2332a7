/* store_db.h - what store.c and store_read.c share: binding, stepping, errors. */
#ifndef DAEMON_STORE_DB_H
#define DAEMON_STORE_DB_H

#include <sqlite3.h>

#include "proto/err.h"

struct store;
sqlite3 *store_db(struct store *s); /* the writer's connection */

/* 0 for OK, ROW and DONE; -ENOSPC for a full disk, by whatever name it comes;
 * -ENOMEM, -EIO; the sentence says what SQLite said. */
int store_db_err(sqlite3 *db, int rc, struct err *err);

/* Binds from 1 on. i: int64_t, d: double (NaN becomes NULL), s: const char * or NULL,
 * b: const void *, size_t. */
int store_db_bind(sqlite3_stmt *q, const char *types, ...);

/* Runs a statement to its end and makes it ready for the next. */
int store_db_run(sqlite3 *db, sqlite3_stmt *q, struct err *err);

#endif
