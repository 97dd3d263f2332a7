/* reads.c - answers that need the disk: a page each, in the thread pool, on connections
 * of their own, never held open. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/alignd.h"
#include "daemon/views.h"

enum { SPARE_READERS = 4 };

enum read_kind { READ_ROWS, READ_LOG, READ_SPEC, READ_SHOW, READ_NEWS };

struct read {
    uv_work_t work;
    struct alignd *a;
    enum read_kind kind;
    uint64_t request, mark;
    char path[LIMIT_PATH];
    uint64_t job;
    uint32_t attempt, rank;
    int64_t offset;
    uint64_t since, max;
    bool all, over;
    struct buf *head;
    struct buf attempts; /* as store_read_attempts() makes it */
    uint64_t attempts_version;
    uint32_t newest; /* attempt, and its step as the head has it; 0: not in memory */
    int64_t step;
    struct reads_news news;
    struct row_page rows;
    uint8_t *frame; /* the answer; NULL: r says why not */
    size_t bytes;
    int r;
};

/* ---- spare connections ---- */

static pthread_mutex_t spare_lock = PTHREAD_MUTEX_INITIALIZER;
static struct store_reader *spare[SPARE_READERS];

int reads_reader_get(const char *path, struct store_reader **ret)
{
    struct store_reader *r = NULL;

    pthread_mutex_lock(&spare_lock);
    for (int i = 0; i < SPARE_READERS && !r; i++) {
        r = spare[i];
        spare[i] = NULL;
    }
    pthread_mutex_unlock(&spare_lock);
    if (!r)
        return store_reader_open(path, ret, NULL);
    *ret = r;
    return 0;
}

void reads_reader_put(struct store_reader *r)
{
    pthread_mutex_lock(&spare_lock);
    for (int i = 0; i < SPARE_READERS && r; i++) {
        if (!spare[i]) {
            spare[i] = r;
            r = NULL;
        }
    }
    pthread_mutex_unlock(&spare_lock);
    store_reader_close(r);
}

void reads_close(void)
{
    for (int i = 0; i < SPARE_READERS; i++) {
        store_reader_close(spare[i]);
        spare[i] = NULL;
    }
}

/* ---- in the pool ---- */

static int encode(struct read *r, const struct msg *m)
{
    struct err err;

    return codec_encode(m, &r->frame, &r->bytes, &err);
}

static uint32_t row_limit(uint64_t max)
{
    return max > 0 && max < LIMIT_REPORT_BATCH ? (uint32_t)max : LIMIT_REPORT_BATCH;
}

static int do_rows(struct read *r, struct store_reader *db)
{
    struct msg m = {.type = MSG_T_page};
    struct store_span span;
    const int e = store_read_rows(db, r->job, r->since, r->all, row_limit(r->max), &r->rows, &span);

    if (e < 0)
        return e;
    m.page.rows = (struct msg_rows){r->rows.v, r->rows.n};
    m.page.last = span.last;
    m.page.more = span.more;
    m.page.oldest = span.oldest;
    m.page.thinned = span.thinned;
    return encode(r, &m);
}

static int do_log(struct read *r, struct store_reader *db)
{
    const size_t cap = r->max > 0 && r->max < LIMIT_LOG_CHUNK ? (size_t)r->max : LIMIT_LOG_CHUNK;
    struct msg m = {.type = MSG_T_chunk};
    void *to = malloc(cap);
    uint64_t at, size;
    size_t n;
    int e;

    if (!to)
        return -ENOMEM;
    e = store_read_log(db, r->job, r->attempt, r->rank, r->offset, to, cap, &n, &at, &size);
    if (e == 0) {
        m.chunk.attempt = r->attempt;
        m.chunk.offset = at;
        m.chunk.bytes = (struct msg_bin){to, n};
        m.chunk.size = size;
        m.chunk.over = r->over && at + n >= size;
        e = encode(r, &m);
    }
    free(to);
    return e;
}

static int do_spec(struct read *r, struct store_reader *db)
{
    struct msg m = {.type = MSG_T_specs};
    char *user, *resolved;
    bool overwrite;
    int e = store_read_spec(db, r->job, 0, &user, &resolved, &overwrite);

    if (e < 0)
        return e;
    m.specs.job = r->job;
    m.specs.user_spec = user;
    m.specs.resolved = resolved;
    e = encode(r, &m);
    free(user);
    free(resolved);
    return e;
}

static int whole_job(struct read *r, struct store_reader *db)
{
    int e;

    r->attempts.max = r->head->max;
    e = store_read_attempts(db, r->job, r->newest, &r->attempts);
    if (e < 0)
        return e;
    views_attempts(r->head, r->attempts.data, r->step);
    buf_str(r->head, "}");
    return r->head->r;
}

static int do_show(struct read *r, struct store_reader *db)
{
    struct msg m = {.type = MSG_T_json};
    const int e = whole_job(r, db);

    if (e < 0)
        return e;
    m.json.text = r->head->data;
    return encode(r, &m);
}

static int do_news(struct read *r, struct store_reader *db)
{
    const struct reads_news *n = &r->news;
    struct msg m = {.type = MSG_T_job_news};
    struct store_span span = {.last = n->last};
    int e = 0;

    if (!n->rows)
        e = store_read_rows(db, r->job, n->since, false, LIMIT_REPORT_BATCH, &r->rows, &span);
    if (n->job_over && !span.more && span.last < n->seq)
        span.last = n->seq; /* there is nothing after it, whatever became of that row */
    if (e == 0 && r->head)
        e = whole_job(r, db);
    if (e < 0)
        return e;
    m.job_news.job = r->job;
    m.job_news.rev = n->rev;
    m.job_news.state = r->head ? r->head->data : "";
    m.job_news.rows = (struct msg_rows){r->rows.v, r->rows.n};
    m.job_news.last = span.last;
    m.job_news.more = span.more;
    m.job_news.oldest = span.oldest;
    m.job_news.thinned = span.thinned;
    m.job_news.over = n->job_over && span.last >= n->seq && !span.more;
    return encode(r, &m);
}

static void on_work(uv_work_t *w) /* the pool */
{
    static int (*const table[])(struct read * r, struct store_reader * db) = {
        [READ_ROWS] = do_rows, [READ_LOG] = do_log,   [READ_SPEC] = do_spec,
        [READ_SHOW] = do_show, [READ_NEWS] = do_news,
    };
    struct read *r = w->data;
    struct store_reader *db;

    r->r = reads_reader_get(r->path, &db);
    if (r->r < 0)
        return;
    r->r = table[r->kind](r, db);
    reads_reader_put(db);
}

/* ---- in the loop ---- */

static void read_free(struct read *r)
{
    if (r->head) {
        buf_free(r->head);
        free(r->head);
    }
    row_page_fini(&r->rows);
    buf_free(&r->attempts);
    free(r->frame);
    free(r);
}

static void on_after(uv_work_t *w, int status)
{
    struct read *r = w->data;

    if (status < 0 || r->r < 0) {
        const int e = status < 0 ? status : r->r;
        if (e == -ENOENT)
            server_error(r->a, r->request, MSG_NOT_FOUND, "nothing is stored of it");
        else
            server_error(r->a, r->request, MSG_RETRY, "reading failed: %s", strerror(-e));
    } else {
        if (r->attempts.bytes > 0)
            feed_keep_attempts(r->a, r->job, r->attempts_version, r->attempts.data,
                               r->attempts.bytes);
        effects_frame_later(r->a, r->mark, r->request, r->frame, r->bytes);
        r->frame = NULL;
    }
    read_free(r);
}

static struct read *read_new(struct alignd *a, enum read_kind kind, uint64_t request, uint64_t job)
{
    struct read *r = calloc(1, sizeof *r);
    const struct job *j = core_job(a->core, job);

    if (!r) {
        server_error(a, request, MSG_RETRY, "out of memory");
        return NULL;
    }
    *r = (struct read){.work.data = r,
                       .a = a,
                       .kind = kind,
                       .request = request,
                       .job = job,
                       .newest = j ? j->attempt : 0,
                       .step = j ? j->step : 0};
    (void)feed_attempts(a, job, &r->attempts_version);
    strncpy(r->path, store_path(a->store), sizeof r->path - 1);
    return r;
}

static void start(struct read *r)
{
    if (uv_queue_work(r->a->loop, &r->work, on_work, on_after) < 0) {
        server_error(r->a, r->request, MSG_RETRY, "no thread is free");
        read_free(r);
    }
}

void reads_rows(struct alignd *a, uint64_t request, const struct msg_metrics *m)
{
    struct read *r = read_new(a, READ_ROWS, request, m->job);

    if (!r)
        return;
    r->since = m->since;
    r->all = m->all;
    r->max = m->max;
    start(r);
}

void reads_log(struct alignd *a, uint64_t request, uint64_t job, uint32_t attempt, uint32_t rank,
               int64_t offset, uint64_t max, bool over)
{
    struct read *r = read_new(a, READ_LOG, request, job);

    if (!r)
        return;
    r->attempt = attempt;
    r->rank = rank;
    r->offset = offset;
    r->max = max;
    r->over = over;
    start(r);
}

void reads_spec(struct alignd *a, uint64_t request, uint64_t job)
{
    struct read *r = read_new(a, READ_SPEC, request, job);

    if (r) {
        r->mark = effects_mark(a);
        start(r);
    }
}

void reads_show(struct alignd *a, uint64_t request, uint64_t job, struct buf *head)
{
    struct read *r = read_new(a, READ_SHOW, request, job);
    struct buf *copy = r ? malloc(sizeof *copy) : NULL;

    if (!copy) {
        buf_free(head);
        if (r) {
            server_error(a, request, MSG_RETRY, "out of memory");
            read_free(r);
        }
        return;
    }
    *copy = *head;
    r->head = copy;
    r->mark = effects_mark(a);
    start(r);
}

void reads_news(struct alignd *a, uint64_t request, const struct reads_news *n)
{
    struct read *r = read_new(a, READ_NEWS, request, n->job);

    if (!r) {
        if (n->rows)
            row_page_fini(n->rows);
        if (n->head) {
            buf_free(n->head);
            free(n->head);
        }
        return;
    }
    r->news = *n;
    r->head = n->head;
    if (n->rows)
        r->rows = *n->rows;
    r->mark = n->head ? effects_mark(a) : 0;
    start(r);
}
