/* store_tidy.h - what the store lets go of: rows and output of jobs that ended long ago,
 * and then the space.
 *
 * Time is mark.age_s, seconds served. In pieces, each a transaction of a few
 * milliseconds, so that no commit waits longer than that, and each complete in itself:
 * a kill between two of them loses nothing. On the store's thread, between commits. */
#ifndef DAEMON_STORE_TIDY_H
#define DAEMON_STORE_TIDY_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/store.h"

enum { STORE_TIDY_LOG = 64 << 10 }; /* of each rank's output at least its end stays        */

struct store_keep {
    int64_t age_s; /* now */
    int64_t metrics_s, logs_s;
};

struct store_tidied {
    uint64_t rows, log_bytes, pages; /* gone; pages: of the file                           */
    bool more;                       /* there may be more to do                            */
};

/* One piece. Returns 0; -ENOSPC: nothing was done, no space; other errors: nothing was
 * done, or all of it. */
int store_tidy(struct store *s, const struct store_keep *keep, struct store_tidied *ret,
               struct err *err);

#endif
