/* server_worker.c - what supervisors say: each message is one event. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/alignd.h"
#include "daemon/server_handlers.h"
#include "proto/log.h"

/* Every w_ message begins with job, attempt, token (MSG_WHO). */
static void speaker(const struct alignd *a, const struct msg *m, struct event_worker *ret)
{
    const struct msg_w_rdv_get *who = &m->w_rdv_get;
    struct msg_token want;
    uint8_t differs = 0;

    alignd_token(a, who->job, (uint32_t)who->attempt, &want);
    for (size_t i = 0; i < sizeof want.b; i++) /* in constant time */
        differs |= want.b[i] ^ who->token.b[i];
    *ret = (struct event_worker){.job = who->job,
                                 .attempt = (uint32_t)who->attempt,
                                 .token_ok = differs == 0 && who->attempt <= UINT32_MAX};
}

void server_worker_hello(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_HELLO, .client = handle};

    if (m->w_hello.v_min > MSG_WORKER_V_MAX || m->w_hello.v_max < MSG_WORKER_V_MIN) {
        struct msg e = {.type = MSG_T_error};
        e.error.code = MSG_VERSION;
        e.error.text = "alignd does not speak this worker's version";
        e.error.v_min = MSG_WORKER_V_MIN;
        e.error.v_max = MSG_WORKER_V_MAX;
        server_send_error(a, handle, &e);
        return;
    }
    speaker(a, m, &ev.worker);
    ev.hello.build = m->w_hello.build;
    log_info("gang_hello", "job=%" PRIu64 " attempt=%" PRIu64 " pid=%" PRIu64 " build=%s",
             m->w_hello.job, m->w_hello.attempt, m->w_hello.pid, m->w_hello.build);
    effects_step(a, &ev);
}

static double loss_of(const struct msg_row *r)
{
    if (r->kind == MSG_ROW_TRAIN)
        for (uint32_t i = 0; i < r->n_values; i++)
            if (!strcmp(r->names[i], "loss"))
                return r->values[i];
    return __builtin_nan("");
}

void server_worker_report(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct msg_w_report *w = &m->w_report;
    struct event ev = {.kind = EV_REPORT, .client = handle};
    struct event_row *rows = calloc(w->rows.n + 1, sizeof *rows);
    char *packed = NULL, *p;
    size_t bytes = 0;

    for (size_t i = 0; i < w->rows.n; i++)
        bytes += row_packed_bytes(&w->rows.v[i]);
    p = packed = malloc(bytes + 1);
    if (!rows || !packed) {
        server_error(a, handle, MSG_RETRY, "out of memory");
    } else {
        for (size_t i = 0; i < w->rows.n; i++) {
            const struct msg_row *r = &w->rows.v[i];
            row_pack(r, p);
            rows[i] = (struct event_row){.kind = (uint8_t)r->kind,
                                         .step = r->step,
                                         .wall_ms = r->wall_ms,
                                         .loss = loss_of(r),
                                         .vals = p,
                                         .bytes = row_packed_bytes(r)};
            p += rows[i].bytes;
        }
        speaker(a, m, &ev.worker);
        if (ev.worker.token_ok)
            gangs_memory_set(a, ev.worker.job, ev.worker.attempt,
                             (struct gangs_memory){w->rss_kb, w->rss_peak_kb});
        ev.report = (struct event_report){.rows_attempt = (uint32_t)w->rows_attempt,
                                          .first_n = w->first_n,
                                          .n = (uint32_t)w->rows.n,
                                          .rows = rows,
                                          .phase = (uint8_t)w->phase,
                                          .step = w->step,
                                          .steps = w->steps};
        effects_step(a, &ev);
    }
    free(rows);
    free(packed);
}

void server_worker_log(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct msg_w_log *w = &m->w_log;
    struct msg ack = {.type = MSG_T_w_log_ack};
    struct event_worker who;
    struct gangs_log *end;

    speaker(a, m, &who);
    end = who.token_ok && w->rank < LIMIT_RANKS &&
                  core_gang(a->core, who.job, who.attempt, &(struct core_gang){0})
              ? gangs_log(a, who.job, who.attempt, (uint32_t)w->rank)
              : NULL;
    if (!end) {
        server_error(a, handle, MSG_FENCED, "this attempt is over, or the token is wrong");
        return;
    }
    if (a->store_full) {
        server_error(a, handle, MSG_RETRY, "alignd cannot store anything now (disk full)");
        return;
    }
    if (w->offset <= end->end && w->offset + w->bytes.bytes > end->end) {
        const size_t skip = (size_t)(end->end - w->offset);
        if (effects_log(a, who.job, who.attempt, (uint32_t)w->rank, end->end,
                        (const char *)w->bytes.data + skip, w->bytes.bytes - skip) < 0) {
            server_error(a, handle, MSG_RETRY, "out of memory");
            return;
        }
        end->end = w->offset + w->bytes.bytes;
    }
    ack.w_log_ack.offset = end->end;
    effects_reply_later(a, handle, &ack);
}

void server_worker_directive(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_POLL, .client = handle};

    speaker(a, m, &ev.worker);
    ev.poll.seen = (unsigned)m->w_directive.seen;
    server_request(a, handle)->seen = m->w_directive.seen;
    effects_step(a, &ev);
}

void server_worker_rdv_put(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_RDV_PUT, .client = handle};

    speaker(a, m, &ev.worker);
    ev.rdv.key = m->w_rdv_put.name;
    ev.rdv.value = m->w_rdv_put.value.data;
    ev.rdv.bytes = m->w_rdv_put.value.bytes;
    effects_step(a, &ev);
}

void server_worker_rdv_get(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_RDV_GET, .client = handle};

    speaker(a, m, &ev.worker);
    ev.rdv.key = m->w_rdv_get.name;
    effects_step(a, &ev);
}

void server_worker_exit(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct msg_w_exit *w = &m->w_exit;
    struct event ev = {.kind = EV_EXIT_RECORD, .client = handle};
    struct exit_record x;
    struct err err = {""};

    speaker(a, m, &ev.worker);
    if (exit_record_parse(w->record, strlen(w->record), w->job, (uint32_t)w->attempt, &x, &err) <
        0) {
        server_error(a, handle, MSG_INVALID, "%s", err.text);
        return;
    }
    ev.exit_record = x.exit;
    effects_step(a, &ev);
}
