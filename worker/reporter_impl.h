/* reporter_impl.h - the reporter's state, shared by reporter.c (the line, and what is due),
 * reporter_rows.c, reporter_send.c and reporter_take.c. */
#ifndef WORKER_REPORTER_IMPL_H
#define WORKER_REPORTER_IMPL_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/msg.h"
#include "proto/wire.h"
#include "worker/reporter.h"
#include "worker/spool.h"

enum { REPORTER_ROWS = 64 /* in one message: a quarter of a megabyte of room here */ };

enum slot_kind { HELLO, REPORT, LOG, DIRECTIVE, PUT, GET_A, GET_B, EXIT, SLOTS };

struct slot {
    struct wire_call *call;
    bool busy;
    int64_t since;      /* clock; busy                                             */
    int64_t not_before; /* clock; after a refusal                                   */
    int64_t wait_ms;    /* the wait that led there, doubles                         */
    uint32_t rank;      /* LOG, PUT, GET: whose                                     */
    char key[LINK_KEY_BYTES];
};

struct rank_log {
    int fd;
    uint64_t acked; /* bytes the daemon has                                        */
};

struct reporter {
    struct reporter_opts o;
    struct wire_client *client;
    struct slot slots[SLOTS];
    bool greeted, fenced, done;
    unsigned connections; /* of the client, when it last began to greet                  */
    int64_t alone_since;  /* clock; when the connection was seen last, or tried again */
    int64_t redial_ms;
    uint32_t version;

    struct spool_tail *tail; /* of rows_of                                     */
    uint32_t rows_of;        /* whose rows are sent: first what earlier attempts left unsent */
    bool rows_asked;         /* an earlier attempt's: the daemon has said from where on */
    struct spool_row rows[REPORTER_ROWS]; /* read and not yet acknowledged                  */
    int n_rows;
    bool rows_end; /* the spool has no more now                                   */
    bool rows_bad; /* the spool holds something else: no more rows are sent       */
    const char *names[REPORTER_ROWS * LIMIT_METRICS];
    double values[REPORTER_ROWS * LIMIT_METRICS];

    enum link_phase phase;
    int64_t step, steps, told_ms; /* clock of the last report                       */
    bool moved;                   /* phase changed since                            */
    uint64_t rss_kb, peak_kb;     /* of the ranks                                   */

    struct rank_log logs[LIMIT_RANKS];
    uint32_t next_log, next_get;
    uint64_t serial; /* of the newest order                                         */
    unsigned orders;
    const char *record;
    char *chunk; /* LIMIT_LOG_CHUNK                                                 */
};

int64_t reporter_now(void); /* clock, ms */

/* reporter_rows.c */
/* The rows of an attempt, from the first. */
int reporter_rows_open(struct reporter *r, uint32_t attempt);
void reporter_rows_seek(struct reporter *r, uint64_t n);
void reporter_rows_fill(struct reporter *r);
void reporter_rows_acked(struct reporter *r, uint64_t next_n); /* those below are the daemon's */
/* They are an earlier attempt's, of which the daemon may lack some. */
bool reporter_rows_past(const struct reporter *r);
void reporter_rows_next(struct reporter *r); /* on from an earlier attempt that is all there */

/* reporter_send.c: what is due of each kind */
bool reporter_send_free(const struct slot *s);
void reporter_send_wait(struct slot *s, int64_t least_ms); /* after a refusal */
void reporter_send_hello(struct reporter *r);
void reporter_send_report(struct reporter *r);
void reporter_send_log(struct reporter *r);
void reporter_send_directive(struct reporter *r);
void reporter_send_put(struct reporter *r);
void reporter_send_get(struct reporter *r, enum slot_kind kind);
void reporter_send_exit(struct reporter *r);

/* reporter_take.c: the answer, if it is there */
void reporter_take(struct reporter *r, enum slot_kind kind);

#endif
