/* request.h - which requests were answered, and how: what makes it safe to ask
 * again (service.md 2). In memory; the store has the same rows. */
#ifndef DAEMON_REQUEST_H
#define DAEMON_REQUEST_H

#include <stddef.h>
#include <stdint.h>

#include "daemon/event.h"

struct request_table { /* zeroed = empty */
    struct request_entry **bucket;
    size_t n, cap;
};

/* The row, with a text of its own, or NULL. */
const struct fx_request *request_find(const struct request_table *t, uint32_t uid,
                                      const uint8_t id[EVENT_ID_BYTES]);
/* Copies row (and its text). Replaces one with the same (uid, id). 0 or -ENOMEM. */
int request_put(struct request_table *t, const struct fx_request *row);

/* Calls drop(arg, row) for every row for which it is due and forgets those for
 * which it returns true. */
void request_sweep(struct request_table *t, bool (*drop)(void *arg, const struct fx_request *row),
                   void *arg);
void request_fini(struct request_table *t);

#endif
