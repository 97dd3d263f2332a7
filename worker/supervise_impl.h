/* supervise_impl.h - the supervisor's state, shared by supervise.c (the loop), supervise_start.c
 * and supervise_watch.c. */
#ifndef WORKER_SUPERVISE_IMPL_H
#define WORKER_SUPERVISE_IMPL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>

#include "proto/err.h"
#include "worker/child.h"
#include "worker/gang.h"
#include "worker/link.h"
#include "worker/meeting.h"
#include "worker/reporter.h"
#include "worker/spool.h"
#include "worker/supervise.h"

struct supervisor {
    struct supervise_opts o;
    struct gang *gang;
    int dir_fd, lock_fd, signal_fd, wake_fd;
    char attempt_dir[LIMIT_PATH];
    struct child ranks[LIMIT_RANKS];
    int n_ranks, n_alive;
    struct reporter_ask asks[LIMIT_RANKS];
    struct meeting *meeting;   /* without a daemon                                   */
    struct reporter *reporter; /* with one                                           */
    struct spool_tail *tail;   /* for o.row                                          */
    struct link_packet *packet;
    int64_t started_ms, ending_ms; /* clock; ending: the first failure               */
    int64_t patience_ms;           /* clock of the last tick without a daemon        */
    bool stopped, killed;          /* told to stop; to end at once                   */
    int interrupts;
    long oom_kills; /* of our control group, at the start                            */
    bool oom;       /* the first failure was one                                     */
    int first_rank; /* that failed; -1                                               */
    char why[1024]; /* our own reason for ending the gang                            */
    struct rusage used;
    int64_t peak_kb;
    int64_t memory_ms;     /* clock: when the ranks' memory is looked at again           */
    enum link_phase phase; /* of rank 0                                              */
    int64_t step, steps;
};

/* supervise_start.c: in this order. lock: 1: another supervisor has the gang. */
int supervise_start_lock(struct supervisor *s, struct err *err);
int supervise_start_inputs(struct supervisor *s, struct err *err);
/* The folder of the attempt: from here on no earlier one publishes. */
int supervise_start_attempt(struct supervisor *s, struct err *err);
int supervise_start_ranks(struct supervisor *s, struct err *err);

/* supervise_watch.c */
void supervise_watch_tell(struct supervisor *s, unsigned flags); /* LINK_*, all ranks */
void supervise_watch_kill(struct supervisor *s);                 /* all ranks         */
void supervise_watch_reap(struct supervisor *s);
void supervise_watch_turn(struct supervisor *s); /* silence, steps, grace, logs */
/* Nothing can be done for those who are left: SIGKILL did not end them, they hang in the
 * kernel. */
bool supervise_watch_stuck(const struct supervisor *s);
/* How it ended; all ranks are reaped, or stuck. */
void supervise_watch_record(struct supervisor *s, struct gang_exit *e);

#endif
