/* reporter_send.c - the requests, one function a kind. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/codec.h"
#include "proto/log.h"
#include "worker/reporter_impl.h"

enum {
    BEAT_MS = 10000,    /* a report without rows at least so often                    */
    RETRY_MIN_MS = 200, /* after an answer that says "not now"                        */
    RETRY_MAX_MS = 10000,
};

bool reporter_send_free(const struct slot *s)
{
    return !s->busy && reporter_now() >= s->not_before;
}

void reporter_send_wait(struct slot *s, int64_t least_ms)
{
    s->wait_ms = s->wait_ms ? s->wait_ms * 2 : RETRY_MIN_MS;
    if (s->wait_ms > RETRY_MAX_MS)
        s->wait_ms = RETRY_MAX_MS;
    if (s->wait_ms < least_ms)
        s->wait_ms = least_ms < 60000 ? least_ms : 60000;
    s->not_before = reporter_now() + s->wait_ms;
}

static void send(struct reporter *r, enum slot_kind kind, struct msg *m)
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
        reporter_send_wait(s, 1000);
        return;
    }
    s->busy = true;
    s->since = reporter_now();
}

#define WHO(r, field)                       \
    (field).job = (r)->o.gang->job;         \
    (field).attempt = (r)->o.gang->attempt; \
    memcpy((field).token.b, (r)->o.token, sizeof(field).token.b)

void reporter_send_report(struct reporter *r)
{
    struct msg_row rows[REPORTER_ROWS];
    struct msg m = {.type = MSG_T_w_report};
    bool past;

    reporter_rows_next(r);
    past = reporter_rows_past(r);
    if (!past || r->rows_asked)
        reporter_rows_fill(r);
    if (!past && r->n_rows == 0 && !r->moved && reporter_now() - r->told_ms < BEAT_MS)
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
        r->told_ms = reporter_now();
    }
    send(r, REPORT, &m);
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

void reporter_send_log(struct reporter *r)
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
    send(r, LOG, &m);
}

/* ---- what else is sent ---- */

void reporter_send_hello(struct reporter *r)
{
    struct msg m = {.type = MSG_T_w_hello};

    r->version = MSG_WORKER_V_MIN; /* until the daemon has said which it speaks */
    WHO(r, m.w_hello);
    m.w_hello.v_min = MSG_WORKER_V_MIN;
    m.w_hello.v_max = MSG_WORKER_V_MAX;
    m.w_hello.pid = (uint64_t)getpid();
    m.w_hello.build = ALIGND_VERSION;
    send(r, HELLO, &m);
}

void reporter_send_directive(struct reporter *r)
{
    struct msg m = {.type = MSG_T_w_directive};

    WHO(r, m.w_directive);
    m.w_directive.seen = r->serial;
    send(r, DIRECTIVE, &m);
}

static bool get_in_progress(const struct reporter *r, uint32_t rank)
{
    return (r->slots[GET_A].busy && r->slots[GET_A].rank == rank) ||
           (r->slots[GET_B].busy && r->slots[GET_B].rank == rank);
}

void reporter_send_put(struct reporter *r)
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
        send(r, PUT, &m);
        return;
    }
}

void reporter_send_get(struct reporter *r, enum slot_kind kind)
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
        send(r, kind, &m);
        return;
    }
}

void reporter_send_exit(struct reporter *r)
{
    struct msg m = {.type = MSG_T_w_exit};
    uint32_t rank;

    if (!r->record || r->slots[REPORT].busy || r->slots[LOG].busy || reporter_rows_past(r))
        return;
    reporter_rows_fill(r);
    if (r->n_rows > 0 || !r->rows_end || log_due(r, &rank))
        return;
    WHO(r, m.w_exit);
    m.w_exit.record = r->record;
    send(r, EXIT, &m);
}
