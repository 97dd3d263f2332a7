/* reporter_take.c - what the daemon answers. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/codec.h"
#include "proto/log.h"
#include "worker/reporter_impl.h"

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
        reporter_rows_seek(r, e->expect);
        return;
    }
    if (e->code == MSG_INVALID && kind == REPORT && reporter_rows_past(r)) {
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
    reporter_send_wait(s, (int64_t)(e->retry_ms < 60000 ? e->retry_ms : 60000));
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
        if (!reporter_rows_past(r))
            reporter_rows_seek(r, m->w_welcome.next_n);
        break;
    case MSG_T_w_ack:
        if (reporter_rows_past(r) && !r->rows_asked) {
            r->rows_asked = true;
            reporter_rows_seek(r, m->w_ack.next_n);
        } else {
            reporter_rows_acked(r, m->w_ack.next_n);
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
        reporter_send_wait(s, 1000);
    }
}

void reporter_take(struct reporter *r, enum slot_kind kind)
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
        reporter_send_wait(s, 1000);
        return;
    }
    if (m->type == MSG_T_error)
        take_error(r, kind, &m->error);
    else
        take_reply(r, kind, m);
    codec_free(m);
}
