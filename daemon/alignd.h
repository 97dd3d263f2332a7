/* alignd.h - the daemon's shell around the core: one context, one loop thread.
 *
 *   server*.c  frames -> events; replies -> frames
 *   effects.c  batches: core_step, commit, then actions in order
 *   held.c     requests that wait for something
 *   feed.c     the newest rows of jobs that run, for watchers
 *   reads.c    answers that need the disk, in the thread pool
 *   tidy.c     when the store lets go of old rows and output
 *   recalls.c  requests about what only the store still knows
 *   gangs.c    launcher calls in the thread pool, one at a time per gang
 *   gpus.c     GPUs: what NVML says of them, told to the core
 *   loop.c     timers, signals, start and end
 *
 * Everything here belongs to the loop's thread unless it says otherwise. */
#ifndef DAEMON_ALIGND_H
#define DAEMON_ALIGND_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "daemon/committer.h"
#include "daemon/config.h"
#include "daemon/core.h"
#include "daemon/launch.h"
#include "daemon/store.h"
#include "proto/codec.h"
#include "proto/wire.h"

enum { ALIGND_PAST = 64 };
enum alignd_socket { SOCKET_CONTROL, SOCKET_WATCH, SOCKET_WORKER, SOCKETS };

struct batch;
struct feed;
struct gang;
struct gpus;
struct held;
struct request;

struct alignd {
    struct config *config;
    uv_loop_t *loop;
    struct core *core;
    struct store *store;
    struct committer *committer;
    struct launch launch;
    uint8_t boot_id[EVENT_BOOT_BYTES];
    int threads_per_device;

    /* effects.c */
    struct batch *open, *flying, *retrying;
    uint64_t batches, durable; /* numbers of the open batch and of the last one done     */
    uv_async_t committed;
    uv_prepare_t prepare;
    uv_timer_t retry;
    bool store_full;
    bool tidying; /* the store's thread does, and not a batch                            */

    /* tidy.c */
    uv_timer_t tidy;
    struct store_tidied tidied; /* since the last that was told                          */

    /* server.c */
    struct wire_server *servers[SOCKETS];
    char urls[SOCKETS][LIMIT_SOCKET_PATH + 16];
    uv_async_t arrived;
    struct request *requests;
    uint32_t n_requests, free_request;
    uint8_t *busy;
    size_t busy_bytes;

    struct held *held;  /* held.c: all of them, newest first */
    struct feed *feeds; /* feed.c */
    struct gang *gangs; /* gangs.c */
    struct {
        pid_t session;
        int64_t ns;
    } past[ALIGND_PAST]; /* of gangs that were forgotten a moment ago                  */
    unsigned n_past;
    struct gpus *gpus; /* gpus.c */

    /* loop.c */
    uv_timer_t tick;
    uv_signal_t sigterm, sigint, sighup;
    uv_timer_t goodbye;
    unsigned ticks;
    dev_t store_dev; /* of the database as it was opened */
    ino_t store_ino;
    bool device_foreign[CONFIG_SLOTS_MAX];
    bool ending;
    int exit_code;
};

int64_t alignd_boottime_ns(void);
int64_t alignd_wall_ms(void);

/* The token of an attempt: HMAC-SHA256(key of the store, job, attempt). */
void alignd_token(const struct alignd *a, uint64_t job, uint32_t attempt, struct msg_token *ret);

/* May uid see and change what `owner` has? */
bool alignd_may(const struct alignd *a, uint64_t uid, uint64_t owner);

/* Ends the process without another word: an outcome is unknown, or memory ran out.
 * A restart reads the truth from the store (service.md 9). */
void alignd_give_up(struct alignd *a, const char *why) __attribute__((noreturn));
/* All is durable: lets the last answers leave, then ends the loop. */
void alignd_stop(struct alignd *a);

/* ---- effects.c ---- */
int effects_open(struct alignd *a);
void effects_close(struct alignd *a);
/* Lets the core decide about one event. */
void effects_step(struct alignd *a, const struct event *ev);
/* The newest FX_SUBMITTED of the open batch, or NULL. */
struct effect *effects_submitted(struct alignd *a);
/* Nothing of the core's state waits for the disk. */
bool effects_clean(const struct alignd *a);
/* What was decided before this core_age() is durable. */
int64_t effects_durable_s(const struct alignd *a);
/* Has the store tidy up a little; false: it has something else to do. Ends in tidy_done(). */
bool effects_tidy(struct alignd *a, const struct store_keep *keep);

/* ---- tidy.c ---- */
void tidy_open(struct alignd *a);
void tidy_done(struct alignd *a, int r, const struct store_tidied *what, const char *why);
/* Sends m to the request once what the core holds now is durable. */
void effects_reply_later(struct alignd *a, uint64_t request, const struct msg *m);
/* The same for an answer that takes a while to make: a mark now, the frame (taken
 * over) later. */
uint64_t effects_mark(const struct alignd *a);
void effects_frame_later(struct alignd *a, uint64_t mark, uint64_t request, uint8_t *frame,
                         size_t bytes);
/* Adds a chunk of output (copied) to the open batch. */
int effects_log(struct alignd *a, uint64_t job, uint32_t attempt, uint32_t rank, uint64_t at,
                const void *data, size_t bytes);

/* ---- server.c ---- */
struct request {
    struct wire_req *wire; /* NULL: slot is free                                      */
    uint32_t generation, next_free;
    enum alignd_socket socket;
    enum msg_type type;
    uint64_t uid;
    uint64_t seen; /* w_directive                                                     */
    bool recalled; /* the store has been asked (recalls.c)                            */
    const struct store_jobs *page; /* list, recalled: ended jobs in the store; borrowed       */
};
int server_open(struct alignd *a, struct err *err);
void server_close(struct alignd *a);
/* NULL: answered or given up already. */
struct request *server_request(struct alignd *a, uint64_t handle);
void server_send(struct alignd *a, uint64_t handle, const struct msg *m);
void server_send_frame(struct alignd *a, uint64_t handle, const void *data, size_t bytes);
void server_error(struct alignd *a, uint64_t handle, enum msg_code code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void server_drop(struct alignd *a, uint64_t handle);
/* Looks at the request once more, from its frame. */
void server_again(struct alignd *a, uint64_t handle);
/* The core's answer. */
void server_reply(struct alignd *a, const struct fx_reply *r);

/* ---- held.c ---- */
enum held_kind { HELD_POLL, HELD_RDV, HELD_JOB, HELD_QUEUE, HELD_LOG };
struct held {
    struct held *next;
    enum held_kind kind;
    uint64_t request, uid;
    uint64_t job;
    uint32_t attempt, rank;
    uint64_t since, rev, offset; /* offset: LOG                                       */
    uint64_t sample;             /* JOB: of its GPUs, the newest known                */
    int64_t until_ns;
    bool ask_newest; /* LOG: attempt 0 was asked for                                  */
    char *key;       /* RDV                                                           */
};
int held_add(struct alignd *a, const struct held *what);    /* copies, key too            */
void held_watch(struct alignd *a, const struct held *what); /* answers now, or holds    */
void held_value(struct alignd *a, const struct fx_rdv *v);
/* true: a held poll of this gang was answered with these bits. */
bool held_order(struct alignd *a, uint64_t job, uint32_t attempt, unsigned flags);
void held_look(struct alignd *a);  /* something was committed: who has news?            */
void held_sweep(struct alignd *a); /* peers that went                                   */
void held_expire(struct alignd *a);
void held_close(struct alignd *a);

/* ---- feed.c ---- */
void feed_report(struct alignd *a, const struct fx_report *r);
void feed_rewind(struct alignd *a, const struct fx_rewind *r);
/* Copies rows with seq > since; false: they are (in part) older than what is kept
 * here. *ret_last as store_read_rows. */
bool feed_rows(struct alignd *a, uint64_t job, uint64_t since, struct row_page *ret,
               uint64_t *ret_last);
/* The newest committed seq known here; 0: none. */
uint64_t feed_last(const struct alignd *a, uint64_t job);
/* The attempts' JSON as store_read_attempts() makes it, kept between their changes so that a
 * watcher's state needs no look at the disk; NULL: to be read, and then kept unless `version` has
 * passed. */
void feed_attempt(struct alignd *a, uint64_t job); /* a row of them was committed      */
const char *feed_attempts(const struct alignd *a, uint64_t job, uint64_t *ret_version);
void feed_keep_attempts(struct alignd *a, uint64_t job, uint64_t version, const char *json,
                        size_t bytes);
void feed_expire(struct alignd *a); /* jobs that are over */
void feed_close(struct alignd *a);

/* ---- reads.c ---- */
void reads_rows(struct alignd *a, uint64_t request, const struct msg_metrics *m);
void reads_log(struct alignd *a, uint64_t request, uint64_t job, uint32_t attempt, uint32_t rank,
               int64_t offset, uint64_t max, bool over);
void reads_spec(struct alignd *a, uint64_t request, uint64_t job);
/* `head`: the JSON of the job without its last brace; the attempts are added, that of
 * a gang with the step that the core knows. */
void reads_show(struct alignd *a, uint64_t request, uint64_t job, struct buf *head);
/* The same for a watcher. */
struct reads_news {
    uint64_t job, rev;
    struct buf *head; /* NULL: no state; taken over                              */
    bool job_over;
    uint64_t seq; /* the job's newest row                                    */
    uint64_t since;
    struct row_page *rows; /* taken over; NULL: read those after `since`              */
    uint64_t last;         /* of rows                                                 */
};
void reads_news(struct alignd *a, uint64_t request, const struct reads_news *n);
void reads_close(void);
int reads_reader_get(const char *path, struct store_reader **ret); /* any thread            */
void reads_reader_put(struct store_reader *r);

/* ---- recalls.c: each ends in server_again() with request.recalled set ---- */
/* job: 0: that of the answer; answer: whose answer is looked for, or NULL */
void recalls_job(struct alignd *a, uint64_t request, uint64_t job,
                 const struct event_request *answer);
void recalls_newest(struct alignd *a, uint64_t request, uint32_t uid);
/* uid < 0: of all users */
void recalls_list(struct alignd *a, uint64_t request, const struct msg_list *l, int64_t uid);

/* ---- gangs.c ---- */
int gangs_find(struct alignd *a, struct err *err);      /* at start: who lives; may block      */
int gangs_reconcile(struct alignd *a, struct err *err); /* then: the core hears of it; may block */
void gangs_launch(struct alignd *a, const struct fx_launch *l);
void gangs_stop(struct alignd *a, uint64_t job, uint32_t attempt);
void gangs_kill(struct alignd *a, uint64_t job, uint32_t attempt);
void gangs_gone(struct alignd *a, uint64_t job, uint32_t attempt);
void gangs_tick(struct alignd *a);
/* Where a rank's output ends, and how much of it is durable; NULL: no such gang here. */
struct gangs_log {
    uint64_t end, durable;
};
struct gangs_log *gangs_log(struct alignd *a, uint64_t job, uint32_t attempt, uint32_t rank);
/* The ranks' memory on this host, as the newest report had it; zeros: not known. */
struct gangs_memory {
    uint64_t rss_kb, peak_kb;
};
void gangs_memory_set(struct alignd *a, uint64_t job, uint32_t attempt, struct gangs_memory m);
struct gangs_memory gangs_memory(const struct alignd *a, uint64_t job, uint32_t attempt);
bool gangs_use_device(const struct alignd *a, const char *name);
/* It is the session of a gang's processes. */
bool gangs_session(const struct alignd *a, pid_t session);
/* A process on the device cannot be killed. */
bool gangs_fence(const struct alignd *a, const char *name);
bool gangs_busy(const struct alignd *a);
void gangs_close(struct alignd *a); /* gangs stay; not while busy */

/* ---- loop.c ---- */
int loop_run(struct config *config, struct err *err); /* exit code, or negative errno   */
/* Seen by somebody else than loop.c's own looks. */
void loop_device_is_foreign(struct alignd *a, const char *name);

#endif
