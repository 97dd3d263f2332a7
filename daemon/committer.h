/* committer.h - the store's thread: one batch in flight, its end told to the loop. */
#ifndef DAEMON_COMMITTER_H
#define DAEMON_COMMITTER_H

#include <stdbool.h>
#include <stddef.h>

#include "daemon/store.h"
#include "daemon/store_tidy.h"

struct committer;

/* done() runs on the store's thread and may only signal. The store belongs to the
 * thread until committer_close(). */
int committer_open(struct store *s, void (*done)(void *arg), void *arg, struct committer **ret);
/* Waits for the batch in flight. NULL is a no-op. */
void committer_close(struct committer *c);

/* Hands over a batch, borrowed until its end was taken. -EBUSY: one is in flight. */
int committer_start(struct committer *c, const struct effects *fx, const struct store_log *logs,
                    size_t n_logs);
/* Has the thread tidy up a little (store_tidy.h) instead; *keep is copied. */
int committer_start_tidy(struct committer *c, const struct store_keep *keep);
bool committer_busy(const struct committer *c);
/* -EAGAIN: not yet; 1: there is none; else *ret_r is what store_commit() or store_tidy()
 * returned. */
int committer_take(struct committer *c, int *ret_r, struct err *err);
/* What was done by the tidying that was taken last. */
const struct store_tidied *committer_tidied(const struct committer *c);

#endif
