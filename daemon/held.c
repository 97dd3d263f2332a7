/* held.c - requests that wait: for an order, a value, rows, a new state, output. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/alignd.h"
#include "daemon/gpus.h"
#include "daemon/views.h"

enum {
    HOLD_MS = LIMIT_HOLD_MS - 2000, /* looked at once a second */
    QUEUE_BYTES = LIMIT_MSG_BYTES - 8192,
    QUEUE_ROOM = 32768, /* more than one job's JSON can have */
};

int held_add(struct alignd *a, const struct held *what)
{
    struct held *h = malloc(sizeof *h);

    if (!h)
        return -ENOMEM;
    *h = *what;
    if (what->key) {
        h->key = strdup(what->key);
        if (!h->key) {
            free(h);
            return -ENOMEM;
        }
    }
    h->until_ns = alignd_boottime_ns() + (int64_t)HOLD_MS * 1000000;
    h->next = a->held;
    a->held = h;
    return 0;
}

static void held_free(struct held *h)
{
    free(h->key);
    free(h);
}

/* ---- for workers ---- */

void held_value(struct alignd *a, const struct fx_rdv *v)
{
    struct held **at = &a->held;

    while (*at) {
        struct held *h = *at;
        if (h->kind != HELD_RDV || h->job != v->job || h->attempt != v->attempt ||
            strcmp(h->key, v->key) != 0) {
            at = &h->next;
            continue;
        }
        struct msg m = {.type = MSG_T_w_value};
        m.w_value.found = true;
        m.w_value.value = (struct msg_bin){v->value, v->bytes};
        *at = h->next;
        server_send(a, h->request, &m);
        held_free(h);
    }
}

bool held_order(struct alignd *a, uint64_t job, uint32_t attempt, unsigned flags)
{
    struct held **at = &a->held;
    bool told = false;

    while (*at) {
        struct held *h = *at;
        if (h->kind != HELD_POLL || h->job != job || h->attempt != attempt) {
            at = &h->next;
            continue;
        }
        struct msg m = {.type = MSG_T_w_order};
        m.w_order.serial = m.w_order.flags = flags;
        m.w_order.text = "";
        *at = h->next;
        told = told || server_request(a, h->request);
        server_send(a, h->request, &m);
        held_free(h);
    }
    return told;
}

/* ---- for watchers ---- */

static struct buf *job_head(struct alignd *a, const struct job *j)
{
    struct buf *b = calloc(1, sizeof *b);

    if (!b)
        return NULL;
    b->max = LIMIT_SPEC_BYTES;
    views_job(b, a->core, j, true);
    views_progress(b, j);
    views_gpus(b, a, j);
    views_host_memory(b, a, j);
    return b;
}

/* Rows and a state at once, all of it from memory. */
static void send_news(struct alignd *a, const struct held *h, const struct job *j,
                      const struct row_page *page, uint64_t last, const char *attempts)
{
    struct buf *b = job_head(a, j);
    struct msg m = {.type = MSG_T_job_news};

    if (b) {
        views_attempts(b, attempts, j->step);
        buf_str(b, "}");
    }
    if (!b || b->r < 0) {
        server_error(a, h->request, MSG_RETRY, "out of memory");
    } else {
        m.job_news.job = h->job;
        m.job_news.rev = j->rev;
        m.job_news.state = b->data;
        m.job_news.rows = (struct msg_rows){page->v, page->n};
        m.job_news.last = last;
        m.job_news.over = job_is_over((enum job_state)j->state) && last >= j->seq;
        effects_reply_later(a, h->request, &m);
    }
    if (b)
        buf_free(b);
    free(b);
}

static void send_rows(struct alignd *a, const struct held *h, const struct row_page *page,
                      uint64_t last, bool over)
{
    struct msg m = {.type = MSG_T_job_news};

    m.job_news.job = h->job;
    m.job_news.rev = h->rev;
    m.job_news.state = "";
    m.job_news.rows = (struct msg_rows){page->v, page->n};
    m.job_news.last = last;
    m.job_news.over = over;
    server_send(a, h->request, &m);
}

/* Answers a watcher of a job if there is news. Rows are shown as soon as they are
 * durable; a state is the core's, and leaves when that is (reads_news sees to it). */
static bool news_of_job(struct alignd *a, const struct held *h)
{
    const struct job *j = core_job(a->core, h->job);
    const uint64_t durable = feed_last(a, h->job);
    const bool over = j && job_is_over((enum job_state)j->state);
    struct row_page page = {0};
    struct reads_news n = {.job = h->job, .since = h->since, .rev = h->rev};
    bool rows, fed = true, state;
    uint64_t last = h->since, version;
    const char *attempts;

    if (!j) {
        server_error(a, h->request, MSG_NOT_FOUND, "the job is gone");
        return true;
    }
    state = j->rev > h->rev || gpus_news(a, j->id, j->attempt, h->sample);
    rows = durable ? durable > h->since : j->seq > h->since && effects_clean(a);
    if (rows)
        fed = feed_rows(a, h->job, h->since, &page, &last);
    if (rows && fed && !(state && effects_clean(a))) {
        send_rows(a, h, &page, last, false);
        row_page_fini(&page);
        return true;
    }
    if (!rows && !state) {
        if (over && h->since >= j->seq)
            send_rows(a, h, &page, last, true);
        return over && h->since >= j->seq;
    }
    attempts = feed_attempts(a, h->job, &version);
    if (fed && attempts && state) {
        send_news(a, h, j, &page, last, attempts);
        row_page_fini(&page);
        return true;
    }
    n.job_over = over;
    n.seq = j->seq;
    n.last = last;
    n.rows = fed ? &page : NULL;
    if (!fed)
        row_page_fini(&page);
    if (state) {
        n.rev = j->rev;
        n.head = job_head(a, j);
    }
    reads_news(a, h->request, &n);
    return true;
}

static bool news_of_queue(struct alignd *a, const struct held *h)
{
    const uint64_t newest = core_rev(a->core);
    struct msg m = {.type = MSG_T_queue_news};
    struct buf b = {.max = QUEUE_BYTES};
    const struct job **changed, *j;
    size_t n = 0, cap = core_n_jobs(a->core), sent = 0;
    uint64_t rev = newest;
    bool more = false;

    if (newest <= h->rev)
        return false;
    changed = calloc(cap + 1, sizeof(const struct job *));
    if (!changed) {
        server_error(a, h->request, MSG_RETRY, "out of memory");
        return true;
    }
    for (j = core_newest(a->core); j && j->rev > h->rev && n < cap; j = core_older(a->core, j))
        if (alignd_may(a, h->uid, j->uid))
            changed[n++] = j;
    buf_str(&b, "[");
    while (n-- > 0) { /* oldest first, so that `rev` is where the next page begins */
        if (b.bytes > QUEUE_BYTES - QUEUE_ROOM) {
            more = true;
            break;
        }
        buf_str(&b, sent++ ? "," : "");
        views_job(&b, a->core, changed[n], false);
        rev = changed[n]->rev;
    }
    free(changed);
    buf_str(&b, "]");
    if (sent == 0 && h->rev > 0) { /* others' jobs, or a change that concerns no job */
        buf_free(&b);
        return false;
    }
    m.queue_news.rev = more ? rev : newest;
    m.queue_news.text = b.data;
    m.queue_news.more = more;
    if (b.r < 0)
        server_error(a, h->request, MSG_RETRY, "%s", strerror(-b.r));
    else
        effects_reply_later(a, h->request, &m);
    buf_free(&b);
    return true;
}

static bool news_of_log(struct alignd *a, struct held *h)
{
    const struct job *j = core_job(a->core, h->job);
    const struct gangs_log *log;
    bool over;

    if (!j) {
        server_error(a, h->request, MSG_NOT_FOUND, "the job is gone");
        return true;
    }
    if (h->ask_newest)
        h->attempt = j->attempt;
    log = h->attempt ? gangs_log(a, h->job, h->attempt, h->rank) : NULL;
    over = h->attempt ? !log : job_is_over((enum job_state)j->state);
    if (!over && (!log || log->durable <= h->offset))
        return false;
    reads_log(a, h->request, h->job, h->attempt, h->rank, (int64_t)h->offset, LIMIT_LOG_CHUNK,
              over);
    return true;
}

static bool news(struct alignd *a, struct held *h)
{
    switch (h->kind) {
    case HELD_JOB:
        return news_of_job(a, h);
    case HELD_QUEUE:
        return news_of_queue(a, h);
    case HELD_LOG:
        return news_of_log(a, h);
    case HELD_POLL:
    case HELD_RDV:
        break;
    }
    return false;
}

void held_watch(struct alignd *a, const struct held *what)
{
    struct held h = *what;

    if (!news(a, &h) && held_add(a, &h) < 0)
        server_error(a, h.request, MSG_RETRY, "out of memory");
}

void held_look(struct alignd *a)
{
    struct held **at = &a->held;

    while (*at) {
        struct held *h = *at;
        if (news(a, h)) {
            *at = h->next;
            held_free(h);
        } else {
            at = &h->next;
        }
    }
}

void held_sweep(struct alignd *a)
{
    struct held **at = &a->held;

    while (*at) {
        struct held *h = *at;
        const struct request *q = server_request(a, h->request);
        if (q && !wire_gone(q->wire)) {
            at = &h->next;
            continue;
        }
        *at = h->next;
        server_drop(a, h->request);
        held_free(h);
    }
}

/* "Nothing new." */
static void nothing(struct alignd *a, const struct held *h)
{
    struct msg m = {.type = MSG_T_error};

    switch (h->kind) {
    case HELD_POLL:
        m.type = MSG_T_w_order;
        m.w_order.serial = h->since;
        m.w_order.text = "";
        break;
    case HELD_RDV:
        m.type = MSG_T_w_value;
        break;
    case HELD_JOB:
        send_rows(a, h, &(struct row_page){0}, h->since, false);
        return;
    case HELD_QUEUE:
        m.type = MSG_T_queue_news;
        m.queue_news.rev = h->rev;
        m.queue_news.text = "[]";
        break;
    case HELD_LOG:
        m.type = MSG_T_chunk;
        m.chunk.attempt = h->attempt;
        m.chunk.offset = m.chunk.size = h->offset;
        break;
    }
    server_send(a, h->request, &m);
}

void held_expire(struct alignd *a)
{
    struct held **at = &a->held;
    const int64_t now = alignd_boottime_ns();

    while (*at) {
        struct held *h = *at;
        if (h->until_ns > now) {
            at = &h->next;
            continue;
        }
        *at = h->next;
        nothing(a, h);
        held_free(h);
    }
}

void held_close(struct alignd *a)
{
    while (a->held) {
        struct held *next = a->held->next;
        held_free(a->held);
        a->held = next;
    }
}
