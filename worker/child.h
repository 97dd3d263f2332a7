/* child.h - one rank as its supervisor sees it: process, line, log, last news. */
#ifndef WORKER_CHILD_H
#define WORKER_CHILD_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "proto/err.h"
#include "worker/gang.h"
#include "worker/link.h"

enum { /* descriptors a rank begins with, besides standard output and error */
       CHILD_LINK_FD = 3,
       CHILD_GANG_FD = 4, /* the gang folder */
};

struct child {
    pid_t pid;
    int pidfd, link, log;
    bool over, killed; /* reaped; killed by us                                       */
    int64_t killed_ms; /* clock                                                      */
    int code, signal;
    unsigned flags, told; /* LINK_*: to be told, and what was                         */
    bool capped;
    enum link_phase phase;
    int64_t step, steps, step_ms;
    int64_t heard_ms, moved_ms; /* clock of the last word, of the last step or phase   */
    char error[1024];
};

/* Starts `align-worker rank RANK SUPERVISOR` with its output in rank-R.log of
 * attempt_dir. Spawn only from the thread that lives longest. */
int child_spawn(struct child *c, const struct gang *g, int rank, int dir_fd,
                const char *attempt_dir, struct err *err);
void child_close(struct child *c);

/* Adds what to poll; returns how many. */
int child_poll(const struct child *c, struct pollfd v[2]);

/* Takes one packet and notes the news in it. 1; 0: none. */
int child_hear(struct child *c, struct link_packet *packet);

/* LINK_*: once, and again in child_tell_again while the rank does not read. */
void child_tell(struct child *c, unsigned flags);
void child_tell_again(struct child *c);
void child_kill(struct child *c); /* SIGKILL; by pidfd                              */

/* True when it has ended now: code and signal are set, *ret is what it used. */
bool child_reap(struct child *c, struct rusage *ret);

/* In the rank, first of all: it dies when its supervisor does. -ECHILD: that has happened
 * already. */
int child_begin(pid_t supervisor);

/* Cuts the log at GANG_LOG_CUT and closes it with a line. */
void child_cap_log(struct child *c);

#endif
