/* follow.h - one job's news as they come: held requests on the watch socket, that
 * outlive a restart of the daemon. */
#ifndef CLIENT_FOLLOW_H
#define CLIENT_FOLLOW_H

#include <jansson.h>

#include "client/conn.h"

struct follow {
    struct wire_client *watch;
    struct wire_call *call;
    int fd; /* becomes readable when an answer is there */
    uint64_t job, since, rev;
    uint64_t thinned; /* of rows up to this the daemon has only some */
    json_t *state;    /* the newest: as `show` gives it; NULL before the first news */
    bool waiting;     /* a request is held */
    int64_t again_ms; /* monotonic: not before, after BUSY or RETRY; 0: at once */
    bool over;        /* the job is over and every row was seen */
};

/* job 0: the asker's newest. A CLI_ code. */
int follow_open(struct cli *cli, struct conn *c, uint64_t job, struct follow *f);
void follow_close(struct follow *f); /* a zeroed one is fine */
bool follow_connected(const struct follow *f);

/* Waits at most timeout_ms (and until a signal comes) for news. CLI_OK: *ret is a
 * job_news to codec_free, or NULL: nothing yet. Else a refusal. */
int follow_next(struct cli *cli, struct follow *f, int timeout_ms, struct msg **ret);

/* Until the job is over, telling waits on cli->notes. CLI_OK; f->state is final. */
int follow_until_over(struct cli *cli, struct follow *f);

/* Why a job that did not complete ended: cause, rank, its last lines, on cli->notes. */
void follow_tell_failure(struct cli *cli, struct conn *c, const json_t *state);

int64_t follow_now_ms(void); /* monotonic */

#endif
