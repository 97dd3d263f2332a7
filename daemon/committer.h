/* committer.h - the store's thread: one batch in flight, its end told to the loop. */
#ifndef DAEMON_COMMITTER_H
#define DAEMON_COMMITTER_H

#include <stdbool.h>
#include <stddef.h>

#include "daemon/store.h"

struct committer;

/* done() runs on the store's thread and may only signal. The store belongs to the
 * thread until committer_close(). */
int committer_open(struct store *s, void (*done)(void *arg), void *arg, struct committer **ret);
/* Waits for the batch in flight. NULL is a no-op. */
void committer_close(struct committer *c);

/* Hands over a batch, borrowed until its end was taken. -EBUSY: one is in flight. */
int committer_start(struct committer *c, const struct effects *fx, const struct store_log *logs,
                    size_t n_logs);
bool committer_busy(const struct committer *c);
/* -EAGAIN: not yet; 1: there is none; else *ret_r is what store_commit() returned. */
int committer_take(struct committer *c, int *ret_r, struct err *err);

#endif
