/* reporter.h - a gang's only voice: everything the daemon learns of an attempt, and
 * what it says back. Driven by the supervisor's loop; never waits.
 *
 * Rows are sent from the spool and log bytes from the rank logs, each until the
 * daemon has acknowledged them; a daemon that is away costs nothing but time. */
#ifndef WORKER_REPORTER_H
#define WORKER_REPORTER_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "worker/gang.h"
#include "worker/link.h"

enum { REPORTER_TOKEN_BYTES = 32 };

/* A rank's question at the rendezvous; at most one a rank. */
struct reporter_ask {
    bool open, put;
    char key[LINK_KEY_BYTES];
    void *value; /* of a put, malloc'ed */
    size_t bytes;
};

struct reporter_opts {
    const struct gang *gang;
    const char *attempt_dir;
    uint8_t token[REPORTER_TOKEN_BYTES];
    int wake_fd;               /* an eventfd: written when an answer came              */
    struct reporter_ask *asks; /* [n_devices], the supervisor's; closed when answered  */
    /* An answer to asks[rank]; called in reporter_turn. */
    void (*answer)(void *arg, uint32_t rank, const char *key, int result, const void *value,
                   size_t bytes);
    void *arg;
};

struct reporter;

int reporter_open(const struct reporter_opts *o, struct reporter **ret, struct err *err);
void reporter_close(struct reporter *r);

/* Takes answers, sends what is due. Call when wake_fd is readable and at least ten
 * times a second. */
void reporter_turn(struct reporter *r);

void reporter_progress(struct reporter *r, enum link_phase phase, int64_t step, int64_t steps);
/* Of the ranks together; goes with the next report. */
void reporter_memory(struct reporter *r, uint64_t rss_kb, uint64_t peak_kb);

/* MSG_ORDER_* that came and were not yet taken. */
unsigned reporter_orders(struct reporter *r);
/* The attempt is over for the daemon: nobody wants its results. */
bool reporter_fenced(const struct reporter *r);
bool reporter_away(const struct reporter *r); /* no connection now */

/* The ranks are gone and this is their exit record; it goes out after the last
 * row and log byte. Borrowed until reporter_close. */
void reporter_finish(struct reporter *r, const char *record);
bool reporter_done(const struct reporter *r); /* the daemon has it */

#endif
