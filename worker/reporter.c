/* reporter.c - see reporter.h. One call object per kind of request, each with at most one
 * request in progress. */
#include "worker/reporter.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "proto/codec.h"
#include "proto/log.h"
#include "proto/wire.h"
#include "worker/spool.h"

enum {
    ROWS = 64,          /* in one message: a quarter of a megabyte of room here       */
    BEAT_MS = 10000,    /* a report without rows at least so often                    */
    RETRY_MIN_MS = 200, /* after an answer that says "not now"                        */
    RETRY_MAX_MS = 10000,
    REDIAL_MS = 15000, /* without a connection, twice as long each time, or ... */
    REDIAL_MAX_MS = 300000,
    SILENT_MS = 90000, /* without an answer: longer than a held request and wire.h's resend */
};

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

    struct spool_tail *tail;     /* of rows_of                                     */
    uint32_t rows_of;            /* whose rows are sent: first what earlier attempts left unsent */
    bool rows_asked;             /* an earlier attempt's: the daemon has said from where on */
    struct spool_row rows[ROWS]; /* read and not yet acknowledged                  */
    int n_rows;
    bool rows_end; /* the spool has no more now                                   */
    bool rows_bad; /* the spool holds something else: no more rows are sent       */
    const char *names[ROWS * LIMIT_METRICS];
    double values[ROWS * LIMIT_METRICS];

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

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void on_done(void *arg) /* nng's thread */
{
    const struct reporter *r = arg;
    const uint64_t one = 1;

    (void)!write(r->o.wake_fd, &one, sizeof one);
}

static bool slot_free(const struct slot *s)
{
    return !s->busy && now_ms() >= s->not_before;
}

static void slot_wait(struct slot *s, int64_t least_ms)
{
    s->wait_ms = s->wait_ms ? s->wait_ms * 2 : RETRY_MIN_MS;
    if (s->wait_ms > RETRY_MAX_MS)
        s->wait_ms = RETRY_MAX_MS;
    if (s->wait_ms < least_ms)
        s->wait_ms = least_ms < 60000 ? least_ms : 60000;
    s->not_before = now_ms() + s->wait_ms;
}

static void slot_start(struct reporter *r, enum slot_kind kind, struct msg *m)
{
    struct slot *s = &r->slots[kind];
    struct err err = {""};
    uint8_t *frame = NULL;
    size_t bytes = 0;
    int e;

    m->version = r->version;
    e = codec_encode(m, &frame, &bytes, &err);
    if (e == 0)
        e = wire_call_start(s->call, frame, bytes, -1);
    free(frame);
    if (e < 0) {
        log_warn("report", "message=%s error=\"%s\"", codec_name(m->type),
                 err.text[0] ? err.text : strerror(-e));
        slot_wait(s, 1000);
        return;
    }
    s->busy = true;
    s->since = now_ms();
}

#define WHO(r, field)                       \
    (field).job = (r)->o.gang->job;         \
    (field).attempt = (r)->o.gang->attempt; \
    memcpy((field).token.b, (r)->o.token, sizeof(field).token.b)

/* ---- rows ---- */

static void rows_seek(struct reporter *r, uint64_t n)
{
    r->n_rows = 0;
    r->rows_end = false;
    spool_tail_seek(r->tail, n);
}

static void rows_fill(struct reporter *r)
{
    while (!r->rows_bad && r->n_rows < ROWS) {
        const int k = spool_tail_next(r->tail, &r->rows[r->n_rows]);
        if (k == 1) {
            r->n_rows++;
            continue;
        }
        r->rows_end = k == 0;
        if (k == -EBADMSG) {
            r->rows_bad = true;
            log_error("spool", "error=\"a line of metrics.jsonl is no row: no more are sent\"");
        }
        return;
    }
    r->rows_end = r->rows_bad;
}

/* Rows below n are the daemon's. */
static void rows_acked(struct reporter *r, uint64_t next_n)
{
    int k = 0;

    while (k < r->n_rows && r->rows[k].n < next_n)
        k++;
    if (k < r->n_rows && r->rows[k].n != next_n) { /* it wants what we no longer hold */
        rows_seek(r, next_n);
        return;
    }
    if (k == r->n_rows && k > 0 && r->rows[k - 1].n + 1 != next_n) {
        rows_seek(r, next_n);
        return;
    }
    memmove(r->rows, r->rows + k, (size_t)(r->n_rows - k) * sizeof r->rows[0]);
    r->n_rows -= k;
}

static bool catching_up(const struct reporter *r)
{
    return r->rows_of < r->o.gang->attempt;
}

/* The rows of an attempt, from the first. */
static int rows_open(struct reporter *r, uint32_t attempt)
{
    char dir[LIMIT_PATH];

    snprintf(dir, sizeof dir, "%s/attempts/%u", r->o.gang->output_dir, attempt);
    spool_tail_close(r->tail);
    r->tail = NULL;
    r->rows_of = attempt;
    r->n_rows = 0;
    r->rows_end = r->rows_bad = r->rows_asked = false;
    return spool_tail_open(attempt == r->o.gang->attempt ? r->o.attempt_dir : dir, &r->tail);
}

/* An earlier attempt's supervisor may have died before it had sent everything: the
 * daemon is asked what it lacks of each, and gets it, before our own first row. */
static void rows_next_attempt(struct reporter *r)
{
    while (catching_up(r) && r->rows_asked) {
        rows_fill(r);
        if (r->n_rows > 0)
            return;
        if (rows_open(r, r->rows_of + 1) < 0)
            r->rows_bad = r->rows_end = r->rows_asked = true;
    }
}

static void report_start(struct reporter *r)
{
    struct msg_row rows[ROWS];
    struct msg m = {.type = MSG_T_w_report};
    bool past;

    rows_next_attempt(r);
    past = catching_up(r);
    if (!past || r->rows_asked)
        rows_fill(r);
    if (!past && r->n_rows == 0 && !r->moved && now_ms() - r->told_ms < BEAT_MS)
        return;
    for (int i = 0; i < r->n_rows; i++) {
        const struct spool_row *from = &r->rows[i];
        const char **names = r->names + i * LIMIT_METRICS;
        double *values = r->values + i * LIMIT_METRICS;
        for (int k = 0; k < from->n_values; k++) {
            names[k] = from->values[k].name;
            values[k] = from->values[k].value;
        }
        rows[i] = (struct msg_row){.attempt = from->attempt,
                                   .n = from->n,
                                   .step = from->global_step,
                                   .wall_ms = from->wall_ms,
                                   .kind = (enum msg_kind)from->kind,
                                   .n_values = (uint32_t)from->n_values,
                                   .names = names,
                                   .values = values};
    }
    WHO(r, m.w_report);
    m.w_report.rows_attempt = past ? r->rows_of : 0;
    m.w_report.first_n = r->n_rows > 0 ? r->rows[0].n : 0;
    m.w_report.rows = (struct msg_rows){rows, (size_t)r->n_rows};
    m.w_report.phase = r->phase;
    m.w_report.step = r->step;
    m.w_report.steps = r->steps;
    m.w_report.rss_kb = r->rss_kb;
    m.w_report.rss_peak_kb = r->peak_kb;
    if (!past) {
        r->moved = false;
        r->told_ms = now_ms();
    }
    slot_start(r, REPORT, &m);
}

/* ---- logs ---- */

static int log_size(struct reporter *r, uint32_t rank, uint64_t *ret)
{
    struct rank_log *l = &r->logs[rank];
    char path[LIMIT_PATH];
    struct stat st;
    /* While ranks write, the end may still be replaced by the closing line. */
    const uint64_t limit = r->record ? LIMIT_LOG_BYTES : GANG_LOG_CUT;

    if (l->fd < 0) {
        snprintf(path, sizeof path, "%s/rank-%u.log", r->o.attempt_dir, rank);
        l->fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (l->fd < 0 || fstat(l->fd, &st) < 0)
        return -errno;
    *ret = (uint64_t)st.st_size < limit ? (uint64_t)st.st_size : limit;
    return 0;
}

/* Whether any log has bytes the daemon has not; *ret_rank: the next such rank. */
static bool log_due(struct reporter *r, uint32_t *ret_rank)
{
    for (int i = 0; i < r->o.gang->n_devices; i++) {
        const uint32_t rank = (r->next_log + (uint32_t)i) % (uint32_t)r->o.gang->n_devices;
        uint64_t size;
        if (log_size(r, rank, &size) == 0 && size > r->logs[rank].acked) {
            *ret_rank = rank;
            return true;
        }
    }
    return false;
}

static size_t log_chunk(struct reporter *r, uint32_t rank)
{
    uint64_t size = 0;

    if (log_size(r, rank, &size) < 0 || size <= r->logs[rank].acked)
        return 0;
    size -= r->logs[rank].acked;
    return size < LIMIT_LOG_CHUNK ? (size_t)size : LIMIT_LOG_CHUNK;
}

static void log_start(struct reporter *r)
{
    struct msg m = {.type = MSG_T_w_log};
    uint32_t rank;
    ssize_t n;

    if (!log_due(r, &rank))
        return;
    r->next_log = rank + 1;
    n = pread(r->logs[rank].fd, r->chunk, log_chunk(r, rank), (off_t)r->logs[rank].acked);
    if (n <= 0)
        return;
    r->slots[LOG].rank = rank;
    WHO(r, m.w_log);
    m.w_log.rank = rank;
    m.w_log.offset = r->logs[rank].acked;
    m.w_log.bytes = (struct msg_bin){r->chunk, (size_t)n};
    slot_start(r, LOG, &m);
}

/* ---- what else is sent ---- */

static void hello_start(struct reporter *r)
{
    struct msg m = {.type = MSG_T_w_hello};

    r->version = MSG_WORKER_V_MIN; /* until the daemon has said which it speaks */
    WHO(r, m.w_hello);
    m.w_hello.v_min = MSG_WORKER_V_MIN;
    m.w_hello.v_max = MSG_WORKER_V_MAX;
    m.w_hello.pid = (uint64_t)getpid();
    m.w_hello.build = ALIGND_VERSION;
    slot_start(r, HELLO, &m);
}

static void directive_start(struct reporter *r)
{
    struct msg m = {.type = MSG_T_w_directive};

    WHO(r, m.w_directive);
    m.w_directive.seen = r->serial;
    slot_start(r, DIRECTIVE, &m);
}

static bool get_in_progress(const struct reporter *r, uint32_t rank)
{
    return (r->slots[GET_A].busy && r->slots[GET_A].rank == rank) ||
           (r->slots[GET_B].busy && r->slots[GET_B].rank == rank);
}

static void put_start(struct reporter *r)
{
    struct msg m = {.type = MSG_T_w_rdv_put};

    for (int i = 0; i < r->o.gang->n_devices; i++) {
        const struct reporter_ask *a = &r->o.asks[i];
        if (!a->open || !a->put)
            continue;
        struct slot *s = &r->slots[PUT];
        s->rank = (uint32_t)i;
        memcpy(s->key, a->key, sizeof s->key);
        WHO(r, m.w_rdv_put);
        m.w_rdv_put.name = a->key;
        m.w_rdv_put.value = (struct msg_bin){a->value, a->bytes};
        slot_start(r, PUT, &m);
        return;
    }
}

static void get_start(struct reporter *r, enum slot_kind kind)
{
    struct msg m = {.type = MSG_T_w_rdv_get};
    const uint32_t n = (uint32_t)r->o.gang->n_devices;

    for (uint32_t i = 0; i < n; i++) {
        const uint32_t rank = (r->next_get + i) % n;
        const struct reporter_ask *a = &r->o.asks[rank];
        if (!a->open || a->put || get_in_progress(r, rank))
            continue;
        struct slot *s = &r->slots[kind];
        r->next_get = rank + 1;
        s->rank = rank;
        memcpy(s->key, a->key, sizeof s->key);
        WHO(r, m.w_rdv_get);
        m.w_rdv_get.name = a->key;
        slot_start(r, kind, &m);
        return;
    }
}

static void exit_start(struct reporter *r)
{
    struct msg m = {.type = MSG_T_w_exit};
    uint32_t rank;

    if (!r->record || r->slots[REPORT].busy || r->slots[LOG].busy || catching_up(r))
        return;
    rows_fill(r);
    if (r->n_rows > 0 || !r->rows_end || log_due(r, &rank))
        return;
    WHO(r, m.w_exit);
    m.w_exit.record = r->record;
    slot_start(r, EXIT, &m);
}

/* ---- answers ---- */

static void answer(struct reporter *r, const struct slot *s, int result, struct msg_bin value)
{
    const struct reporter_ask *a = &r->o.asks[s->rank];

    if (a->open && strcmp(a->key, s->key) == 0)
        r->o.answer(r->o.arg, s->rank, s->key, result, value.data, value.bytes);
}

static void take_error(struct reporter *r, enum slot_kind kind, const struct msg_error *e)
{
    struct slot *s = &r->slots[kind];

    if (e->code == MSG_GAP && kind == REPORT) {
        rows_seek(r, e->expect);
        return;
    }
    if (e->code == MSG_INVALID && kind == REPORT && catching_up(r)) {
        log_warn("report", "attempt=%u refused=\"%s\"; ignoring its rows", r->rows_of, e->text);
        r->n_rows = 0;
        r->rows_bad = r->rows_end = r->rows_asked = true;
        return;
    }
    if (e->code == MSG_FENCED) {
        if (!r->fenced)
            log_warn("fenced", "text=\"%s\"", e->text);
        r->fenced = true;
        return;
    }
    if (e->code == MSG_NOT_FOUND && kind == LOG) { /* it keeps no logs of ours: done */
        r->logs[s->rank].acked = UINT64_MAX;
        return;
    }
    if ((kind == PUT || kind == GET_A || kind == GET_B) &&
        (e->code == MSG_INVALID || e->code == MSG_CONFLICT || e->code == MSG_REFUSED)) {
        answer(r, s, -EIO, (struct msg_bin){NULL, 0});
        return;
    }
    if (e->code != MSG_RETRY && e->code != MSG_BUSY)
        log_warn("report", "refused=%u text=\"%s\"", (unsigned)e->code, e->text);
    slot_wait(s, (int64_t)(e->retry_ms < 60000 ? e->retry_ms : 60000));
}

static void take_reply(struct reporter *r, enum slot_kind kind, const struct msg *m)
{
    struct slot *s = &r->slots[kind];

    s->wait_ms = 0;
    switch ((int)m->type) {
    case MSG_T_w_welcome:
        r->greeted = true;
        if (m->w_welcome.version >= MSG_WORKER_V_MIN && m->w_welcome.version <= MSG_WORKER_V_MAX)
            r->version = (uint32_t)m->w_welcome.version;
        r->n_rows = 0;
        r->rows_asked = false;
        if (!catching_up(r))
            rows_seek(r, m->w_welcome.next_n);
        break;
    case MSG_T_w_ack:
        if (catching_up(r) && !r->rows_asked) {
            r->rows_asked = true;
            rows_seek(r, m->w_ack.next_n);
        } else {
            rows_acked(r, m->w_ack.next_n);
        }
        break;
    case MSG_T_w_log_ack:
        r->logs[s->rank].acked = m->w_log_ack.offset;
        break;
    case MSG_T_w_order:
        if (m->w_order.serial != r->serial && m->w_order.flags)
            log_info("order", "flags=%u why=\"%s\"", (unsigned)m->w_order.flags, m->w_order.text);
        r->serial = m->w_order.serial;
        r->orders |= (unsigned)m->w_order.flags;
        break;
    case MSG_T_w_value:
        if (m->w_value.found)
            answer(r, s, 0, m->w_value.value);
        break;
    case MSG_T_w_ok:
        if (kind == PUT)
            answer(r, s, 0, (struct msg_bin){NULL, 0});
        else if (kind == EXIT)
            r->done = true;
        break;
    default:
        log_warn("report", "unexpected=%s", codec_name(m->type) ? codec_name(m->type) : "?");
        slot_wait(s, 1000);
    }
}

static void take(struct reporter *r, enum slot_kind kind)
{
    struct slot *s = &r->slots[kind];
    struct err err = {""};
    struct msg *m = NULL;
    uint8_t *frame = NULL;
    size_t bytes = 0;
    int e;

    if (!s->busy)
        return;
    e = wire_call_take(s->call, &frame, &bytes);
    if (e == -EAGAIN)
        return;
    s->busy = false;
    if (e == 0)
        e = codec_decode(frame, bytes, &m, &err);
    free(frame);
    if (e < 0) {
        log_warn("report", "error=\"%s\"", err.text[0] ? err.text : strerror(-e));
        slot_wait(s, 1000);
        return;
    }
    if (m->type == MSG_T_error)
        take_error(r, kind, &m->error);
    else
        take_reply(r, kind, m);
    codec_free(m);
}

/* ---- public ---- */

static void line_close(struct reporter *r)
{
    for (int i = 0; i < SLOTS; i++) {
        if (r->slots[i].call)
            wire_call_free(r->slots[i].call);
        r->slots[i] = (struct slot){0};
    }
    wire_hangup(r->client);
    r->client = NULL;
}

static int line_open(struct reporter *r, struct err *err)
{
    int e = wire_dial(r->o.gang->worker_url, WIRE_WAIT, &r->client, err);

    for (int i = 0; i < SLOTS && e == 0; i++)
        e = wire_call_new(r->client, on_done, r, &r->slots[i].call);
    r->greeted = false;
    r->connections = 0;
    r->alone_since = now_ms();
    return e;
}

/* The line mends itself, by contract. Should it once not (the library's dialer is not
 * ours), all is begun again: what is asked twice is answered alike. */
static void line_watch(struct reporter *r)
{
    const int64_t now = now_ms();
    struct err err = {""};
    bool dead;

    if (r->client && wire_connected(r->client)) {
        r->alone_since = now;
        r->redial_ms = REDIAL_MS;
    }
    dead = now - r->alone_since > r->redial_ms;
    for (int i = 0; i < SLOTS; i++)
        dead = dead || (r->slots[i].busy && now - r->slots[i].since > SILENT_MS);
    if (!dead)
        return;
    log_info("redial", "url=%s", r->o.gang->worker_url);
    r->redial_ms = 2 * r->redial_ms < REDIAL_MAX_MS ? 2 * r->redial_ms : REDIAL_MAX_MS;
    line_close(r);
    if (line_open(r, &err) < 0) {
        log_warn("redial", "error=\"%s\"; trying again", err.text);
        line_close(r);
    }
}

int reporter_open(const struct reporter_opts *o, struct reporter **ret, struct err *err)
{
    struct reporter *r = calloc(1, sizeof *r);
    int e = -ENOMEM;

    if (!r)
        return err_set(err, -ENOMEM, "no memory to report to the daemon");
    r->o = *o;
    r->redial_ms = REDIAL_MS;
    for (int i = 0; i < LIMIT_RANKS; i++)
        r->logs[i].fd = -1;
    r->chunk = malloc(LIMIT_LOG_CHUNK);
    if (!r->chunk || rows_open(r, 1) < 0) {
        err_set(err, e, "no memory to report to the daemon");
        goto fail;
    }
    e = line_open(r, err);
    if (e < 0) {
        err_prefix(err, e, "%s", o->gang->worker_url);
        goto fail;
    }
    *ret = r;
    return 0;

fail:
    reporter_close(r);
    return e;
}

void reporter_close(struct reporter *r)
{
    if (!r)
        return;
    line_close(r);
    spool_tail_close(r->tail);
    for (int i = 0; i < LIMIT_RANKS; i++)
        if (r->logs[i].fd >= 0)
            close(r->logs[i].fd);
    free(r->chunk);
    free(r);
}

void reporter_turn(struct reporter *r)
{
    unsigned connections;

    line_watch(r);
    if (!r->client)
        return;
    for (int i = 0; i < SLOTS; i++)
        take(r, (enum slot_kind)i);
    connections = wire_connections(r->client);
    if (connections != r->connections) /* a daemon that may be new: adoption */
        r->greeted = false;
    r->connections = connections;
    if (r->fenced || r->done)
        return;
    if (!r->greeted) {
        if (slot_free(&r->slots[HELLO]) && !r->slots[REPORT].busy)
            hello_start(r);
        return;
    }
    if (slot_free(&r->slots[REPORT]))
        report_start(r);
    if (slot_free(&r->slots[LOG]))
        log_start(r);
    if (slot_free(&r->slots[EXIT]))
        exit_start(r);
    if (r->record)
        return;
    if (slot_free(&r->slots[DIRECTIVE]))
        directive_start(r);
    if (slot_free(&r->slots[PUT]))
        put_start(r);
    if (slot_free(&r->slots[GET_A]))
        get_start(r, GET_A);
    if (slot_free(&r->slots[GET_B]))
        get_start(r, GET_B);
}

void reporter_progress(struct reporter *r, enum link_phase phase, int64_t step, int64_t steps)
{
    r->moved |= phase != r->phase || steps != r->steps;
    r->phase = phase;
    r->step = step;
    r->steps = steps;
}

void reporter_memory(struct reporter *r, uint64_t rss_kb, uint64_t peak_kb)
{
    r->rss_kb = rss_kb;
    r->peak_kb = peak_kb;
}

unsigned reporter_orders(struct reporter *r)
{
    const unsigned orders = r->orders;

    r->orders = 0;
    return orders;
}

bool reporter_fenced(const struct reporter *r)
{
    return r->fenced;
}

bool reporter_away(const struct reporter *r)
{
    return !r->client || !wire_connected(r->client);
}

void reporter_finish(struct reporter *r, const char *record)
{
    r->record = record;
}

bool reporter_done(const struct reporter *r)
{
    return r->done;
}
