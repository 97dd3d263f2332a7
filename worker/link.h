/* link.h - a rank's line to its supervisor: beats and progress up, directives
 * and rendezvous values down. One SOCK_SEQPACKET pair per rank, inherited as a
 * descriptor; the supervisor is the gang's only voice towards the daemon. */
#ifndef WORKER_LINK_H
#define WORKER_LINK_H

#include <stddef.h>
#include <stdint.h>

#include "proto/limit.h"
#include "worker/coll.h"

struct link;

enum link_phase { LINK_LOADING, LINK_TRAINING, LINK_EVALUATING, LINK_SAVING, LINK_DONE };

enum {                      /* what a rank has been told so far, by directive or by signal */
       LINK_CHECKPOINT = 1, /* save at the next step boundary and go on               */
       LINK_STOP = 2,       /* save at the next step boundary and exit RUN_EXIT_STOPPED */
       LINK_PEER = 4,       /* another rank has ended: what waits for it need not      */
};

/* Starts the thread that beats every 5 s (at once when something changed that
 * matters) and listens. fd < 0: a link to nobody
 * (tests): everything succeeds, no flags. Takes the descriptor. SIGTERM, SIGUSR1
 * and SIGUSR2 become LINK_STOP once link_signals() was called. */
int link_open(int fd, struct link **ret);
void link_close(struct link *l);
void link_beat_every(struct link *l, int64_t ms); /* instead of 5 s (tests) */
void link_signals(struct link *l);

/* What was asked for and not yet taken. Cheap; any thread. */
unsigned link_flags(const struct link *l);
void link_clear(struct link *l, unsigned flags);

/* Where the rank is; sent at once when phase or step changes, but for steps that
 * follow each other within 20 ms, or with the next beat. */
void link_progress(struct link *l, enum link_phase phase, int64_t step, int64_t steps);

/* The sentence with which this rank will fail; goes into exit.json. */
void link_error(struct link *l, const char *sentence);

/* A coll_store that asks the supervisor. Valid as long as the link. The time a
 * daemon is away does not count towards get's timeout. -ECANCELED: no supervisor. */
struct coll_store link_store(struct link *l);

/* ---- the supervisor's side: packets on its end of the pair ---- */

enum { LINK_KEY_BYTES = 128, LINK_BEAT_MS = 5000 };

enum link_kind { LINK_BEAT = 1, LINK_ERROR, LINK_PUT, LINK_GET };

struct link_packet {
    enum link_kind kind;
    /* BEAT */
    enum link_phase phase;
    int64_t step, steps;
    int64_t step_ms; /* median time of the latest steps, 0: not known            */
    /* ERROR: text, NUL-terminated, at bytes; PUT: the value; GET: nothing          */
    char key[LINK_KEY_BYTES];
    size_t bytes;
    char data[LIMIT_RDV_BYTES + 1];
};

/* Two connected ends; both close-on-exec. */
int link_pair(int ret_fds[2]);

/* Takes one packet without waiting. Returns 1; 0: none; -EPIPE: the rank is gone;
 * -EBADMSG: no packet of ours (hostile or broken; taken from the queue); -errno. */
int link_recv(int fd, struct link_packet *ret);

/* Never wait: -EAGAIN when the rank does not read (it is stopped). */
int link_send_flags(int fd, unsigned flags);
/* result 0: the value of `key`; -ETIMEDOUT...: there is none. Also the answer to a PUT. */
int link_send_value(int fd, const char *key, int result, const void *value, size_t bytes);
/* Rendezvous clocks stand still for this long: no daemon. */
int link_send_patience(int fd, int64_t ms);

#endif
