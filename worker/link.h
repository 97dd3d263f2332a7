/* link.h - a rank's line to its supervisor: beats and progress up, directives
 * and rendezvous values down. One SOCK_SEQPACKET pair per rank, inherited as a
 * descriptor; the supervisor is the gang's only voice towards the daemon. */
#ifndef WORKER_LINK_H
#define WORKER_LINK_H

#include <stddef.h>
#include <stdint.h>

#include "worker/coll.h"

struct link;

enum link_phase { LINK_LOADING, LINK_TRAINING, LINK_EVALUATING, LINK_SAVING, LINK_DONE };

enum { /* what a rank has been told so far, by directive or by signal */
    LINK_CHECKPOINT = 1, /* save at the next step boundary and go on               */
    LINK_STOP = 2,       /* save at the next step boundary and exit RUN_EXIT_STOPPED */
};

/* Starts the thread that beats every 5 s and listens. fd < 0: a link to nobody
 * (tests): everything succeeds, no flags. Takes the descriptor. SIGTERM, SIGUSR1
 * and SIGUSR2 become LINK_STOP once link_signals() was called. */
int link_open(int fd, struct link **ret);
void link_close(struct link *l);
void link_signals(struct link *l);

/* What was asked for and not yet taken. Cheap; any thread. */
unsigned link_flags(const struct link *l);
void link_clear(struct link *l, unsigned flags);

/* Where the rank is; sent with the next beat, or at once when phase changes. */
void link_progress(struct link *l, enum link_phase phase, int64_t step, int64_t steps);

/* The sentence with which this rank will fail; goes into exit.json. */
void link_error(struct link *l, const char *sentence);

/* A coll_store that asks the supervisor. Valid as long as the link. */
struct coll_store link_store(struct link *l);

#endif
