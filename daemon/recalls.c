/* recalls.c - requests about what only the store knows: it is read first, in the thread
 * pool, then the request is looked at again (event.h). */
#include <stdlib.h>
#include <string.h>

#include "daemon/alignd.h"

enum { LIST_ROWS = 4096 };

enum recall_kind { RECALL_JOB, RECALL_NEWEST, RECALL_LIST };

struct recall {
    uv_work_t work;
    struct alignd *a;
    enum recall_kind kind;
    uint64_t request, job, forgets;
    uint32_t uid, max;
    int64_t list_uid, ended_ms;
    bool want_answer;
    uint8_t id[EVENT_ID_BYTES];
    char path[LIMIT_PATH];
    struct store_recall got;
    struct store_jobs page;
    int r;
};

/* ---- in the pool ---- */

static int look(struct recall *r, struct store_reader *db)
{
    int e = 0;

    if (r->kind == RECALL_LIST)
        return store_read_jobs(db, r->job, r->list_uid, r->ended_ms, r->max, &r->page);
    if (r->kind == RECALL_NEWEST)
        e = store_read_newest(db, r->uid, &r->job);
    return e < 0 ? e
                 : store_read_recall(db, r->job, r->uid, r->want_answer ? r->id : NULL, &r->got);
}

static void on_work(uv_work_t *w)
{
    struct recall *r = w->data;
    struct store_reader *db;

    r->r = reads_reader_get(r->path, &db);
    if (r->r < 0)
        return;
    r->r = look(r, db);
    reads_reader_put(db);
}

/* ---- in the loop ---- */

static void recall_free(struct recall *r)
{
    store_recall_fini(&r->got);
    store_jobs_fini(&r->page);
    free(r);
}

static void on_after(uv_work_t *w, int status)
{
    struct recall *r = w->data;
    struct alignd *a = r->a;
    struct request *q = server_request(a, r->request);
    struct event ev = {.kind = EV_RECALL};

    if (status < 0 || r->r < 0) {
        server_error(a, r->request, MSG_RETRY, "reading failed: %s",
                     strerror(status < 0 ? -status : -r->r));
        recall_free(r);
        return;
    }
    /* If more has left the memory meanwhile, it may be what was read here: again. */
    if (q && r->forgets == core_forgets(a->core)) {
        ev.recall = (struct event_recall){.job = r->got.has_job ? &r->got.job : NULL,
                                          .attempts = r->got.attempts,
                                          .n_attempts = r->got.n_attempts,
                                          .request = r->got.has_request ? &r->got.request : NULL};
        if (ev.recall.job || ev.recall.request)
            effects_step(a, &ev);
        q->recalled = true;
        q->page = &r->page;
    }
    server_again(a, r->request);
    q = server_request(a, r->request);
    if (q)
        q->page = NULL;
    recall_free(r);
}

static struct recall *recall_new(struct alignd *a, enum recall_kind kind, uint64_t request)
{
    struct recall *r = calloc(1, sizeof *r);

    if (!r) {
        server_error(a, request, MSG_RETRY, "out of memory");
        return NULL;
    }
    *r = (struct recall){
        .work.data = r, .a = a, .kind = kind, .request = request, .forgets = core_forgets(a->core)};
    strncpy(r->path, store_path(a->store), sizeof r->path - 1);
    return r;
}

static void start(struct recall *r)
{
    if (uv_queue_work(r->a->loop, &r->work, on_work, on_after) < 0) {
        server_error(r->a, r->request, MSG_RETRY, "no thread is free");
        recall_free(r);
    }
}

void recalls_job(struct alignd *a, uint64_t request, uint64_t job,
                 const struct event_request *answer)
{
    struct recall *r = recall_new(a, RECALL_JOB, request);

    if (!r)
        return;
    r->job = job;
    if (answer) {
        r->want_answer = true;
        r->uid = answer->uid;
        memcpy(r->id, answer->id, sizeof r->id);
    }
    start(r);
}

void recalls_newest(struct alignd *a, uint64_t request, uint32_t uid)
{
    struct recall *r = recall_new(a, RECALL_NEWEST, request);

    if (!r)
        return;
    r->uid = uid;
    start(r);
}

void recalls_list(struct alignd *a, uint64_t request, const struct msg_list *l, int64_t uid)
{
    struct recall *r = recall_new(a, RECALL_LIST, request);

    if (!r)
        return;
    r->job = l->after;
    r->list_uid = uid;
    r->ended_ms = l->ended_after_ms < INT64_MAX ? (int64_t)l->ended_after_ms : INT64_MAX;
    r->max = l->max > 0 && l->max < LIST_ROWS ? (uint32_t)l->max : LIST_ROWS;
    start(r);
}
