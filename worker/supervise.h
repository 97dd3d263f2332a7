/* supervise.h - runs one gang: spawns the ranks, hears them, ends them, reaps them and
 * leaves exit.json (service.md 16).
 *
 * Called from a program's main thread: the ranks die when the thread that spawned
 * them ends. Blocks SIGTERM, SIGINT, SIGUSR1, SIGUSR2 and SIGHUP and takes them from
 * a signalfd: the first means "stop after a checkpoint" (SIGHUP only without a daemon), a
 * second SIGINT kills. */
#ifndef WORKER_SUPERVISE_H
#define WORKER_SUPERVISE_H

#include "proto/err.h"
#include "worker/gang.h"
#include "worker/spool.h"

struct supervise_opts {
    const char *dir; /* the gang folder                                             */
    int token_fd;    /* where the attempt's token is read; -1: no daemon             */
    int lock_fd;     /* the gang's lock, already held and ours to close; -1: taken here */
    /* Each new row, and the steps there are (0: not known yet); may be NULL. */
    void (*row)(void *arg, const struct spool_row *row, int64_t steps);
    void *arg;
};

/* Returns when the gang is over and, with a daemon, the daemon has everything.
 * 0: *ret says how it ended; 1: another supervisor has this gang; -errno: nothing
 * was started and there is no exit record. */
int supervise_gang(const struct supervise_opts *o, struct gang_exit *ret, struct err *err);

#endif
