/* reporter.c - see reporter.h. One call object per kind of request, each with at most one
 * request in progress. */
#include "worker/reporter.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "proto/log.h"
#include "worker/reporter_impl.h"

enum {
    REDIAL_MS = 15000, /* without a connection, twice as long each time, or ... */
    REDIAL_MAX_MS = 300000,
    SILENT_MS = 90000, /* without an answer: longer than a held request and wire.h's resend */
};

int64_t reporter_now(void)
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
    r->alone_since = reporter_now();
    return e;
}

/* The line mends itself, by contract. Should it once not (the library's dialer is not
 * ours), all is begun again: what is asked twice is answered alike. */
static void line_watch(struct reporter *r)
{
    const int64_t now = reporter_now();
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
    if (!r->chunk || reporter_rows_open(r, 1) < 0) {
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
        reporter_take(r, (enum slot_kind)i);
    connections = wire_connections(r->client);
    if (connections != r->connections) /* a daemon that may be new: adoption */
        r->greeted = false;
    r->connections = connections;
    if (r->fenced || r->done)
        return;
    if (!r->greeted) {
        if (reporter_send_free(&r->slots[HELLO]) && !r->slots[REPORT].busy)
            reporter_send_hello(r);
        return;
    }
    if (reporter_send_free(&r->slots[REPORT]))
        reporter_send_report(r);
    if (reporter_send_free(&r->slots[LOG]))
        reporter_send_log(r);
    if (reporter_send_free(&r->slots[EXIT]))
        reporter_send_exit(r);
    if (r->record)
        return;
    if (reporter_send_free(&r->slots[DIRECTIVE]))
        reporter_send_directive(r);
    if (reporter_send_free(&r->slots[PUT]))
        reporter_send_put(r);
    if (reporter_send_free(&r->slots[GET_A]))
        reporter_send_get(r, GET_A);
    if (reporter_send_free(&r->slots[GET_B]))
        reporter_send_get(r, GET_B);
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
