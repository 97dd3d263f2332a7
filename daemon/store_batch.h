/* store_batch.h - the one transaction of a batch: what each effect is as rows. */
#ifndef DAEMON_STORE_BATCH_H
#define DAEMON_STORE_BATCH_H

#include <sqlite3.h>

#include "daemon/store.h"

struct store_batch;

/* The statements, made once. To be closed before db. */
int store_batch_open(sqlite3 *db, struct store_batch **ret, struct err *err);
void store_batch_close(struct store_batch *b); /* NULL is a no-op */

/* All rows and logs, or none: -ENOSPC, and others before the commit. -EIO: nobody knows. */
int store_batch_write(struct store_batch *b, const struct effects *fx, const struct store_log *logs,
                      size_t n, struct err *err);

#endif
