/* feed.c - the newest committed rows of jobs that run, for those who watch. */
#include <stdlib.h>
#include <string.h>

#include "daemon/alignd.h"
#include "proto/log.h"

enum { FEED_ROWS = 256 };

struct feed_row {
    struct msg_row row; /* names and values unused */
    void *packed;       /* row.h; NULL: none       */
    size_t bytes;
};

struct feed {
    struct feed *next;
    uint64_t job;
    uint64_t gap;     /* rows up to this seq are not here */
    uint64_t last;    /* newest seq                       */
    char *attempts;   /* the job's attempts as JSON, as of `version`; NULL: not read yet */
    uint64_t version; /* grows when an attempt's row changes */
    struct feed_row rows[FEED_ROWS]; /* a ring: row with number i lies at i % FEED_ROWS */
    uint64_t n;
};

static struct feed *find(const struct alignd *a, uint64_t job)
{
    struct feed *f = a->feeds;

    while (f && f->job != job)
        f = f->next;
    return f;
}

/* first_seq: of the row about to be added to a new one. NULL: no memory; watchers
 * then read from the disk. */
static struct feed *need(struct alignd *a, uint64_t job, uint64_t first_seq)
{
    struct feed *f = find(a, job);

    if (f)
        return f;
    f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->job = job;
    f->gap = f->last = first_seq - 1;
    f->next = a->feeds;
    a->feeds = f;
    return f;
}

static void add(struct feed *f, const struct msg_row *row, const void *vals, size_t bytes)
{
    struct feed_row *r = &f->rows[f->n % FEED_ROWS];

    if (f->n >= FEED_ROWS)
        f->gap = r->row.seq;
    free(r->packed);
    *r = (struct feed_row){.row = *row};
    if (bytes > 0) {
        r->packed = malloc(bytes);
        if (r->packed) {
            memcpy(r->packed, vals, bytes);
            r->bytes = bytes;
        } else {
            f->gap = row->seq; /* this one has to come from the disk */
        }
    }
    f->last = row->seq;
    f->n++;
}

void feed_attempt(struct alignd *a, uint64_t job)
{
    struct feed *f = find(a, job);

    if (!f)
        return;
    f->version++;
    free(f->attempts);
    f->attempts = NULL;
}

const char *feed_attempts(const struct alignd *a, uint64_t job, uint64_t *ret_version)
{
    const struct feed *f = find(a, job);

    *ret_version = f ? f->version : 0;
    return f ? f->attempts : NULL;
}

void feed_keep_attempts(struct alignd *a, uint64_t job, uint64_t version, const char *json,
                        size_t bytes)
{
    struct feed *f = find(a, job);

    if (f && f->version == version && !f->attempts)
        f->attempts = strndup(json, bytes);
}

void feed_report(struct alignd *a, const struct fx_report *p)
{
    struct feed *f = need(a, p->job, p->seq);
    const struct msg_row row = {.seq = p->seq,
                                .attempt = p->attempt,
                                .n = p->n,
                                .step = p->step,
                                .wall_ms = p->wall_ms,
                                .kind = (enum msg_kind)p->kind,
                                .superseded = p->superseded};

    if (f)
        add(f, &row, p->vals, p->bytes);
    if (row.kind == MSG_ROW_START) /* the attempt's resume_step is known now */
        feed_attempt(a, p->job);
}

void feed_rewind(struct alignd *a, const struct fx_rewind *w)
{
    struct feed *f = need(a, w->job, w->seq);
    const struct msg_row row = {
        .seq = w->seq, .attempt = w->attempt, .step = w->step, .kind = MSG_ROW_REWIND};

    if (!f)
        return;
    for (uint64_t i = f->n > FEED_ROWS ? f->n - FEED_ROWS : 0; i < f->n; i++) {
        struct msg_row *r = &f->rows[i % FEED_ROWS].row;
        if (r->attempt < w->attempt && r->step > w->step && r->kind != MSG_ROW_REWIND)
            r->superseded = true;
    }
    add(f, &row, NULL, 0);
    log_info("job_rewind", "job=%llu attempt=%u step=%lld", (unsigned long long)w->job, w->attempt,
             (long long)w->step);
}

bool feed_rows(struct alignd *a, uint64_t job, uint64_t since, struct row_page *ret,
               uint64_t *ret_last)
{
    const struct feed *f = find(a, job);

    *ret_last = since;
    if (!f || since < f->gap)
        return false;
    for (uint64_t i = f->n > FEED_ROWS ? f->n - FEED_ROWS : 0; i < f->n; i++) {
        const struct feed_row *r = &f->rows[i % FEED_ROWS];
        struct msg_row row = r->row;
        const char *names = "";
        const void *values = NULL;
        size_t bytes = 0;
        if (row.seq <= since)
            continue;
        *ret_last = row.seq;
        if (row.superseded)
            continue;
        if (r->packed && row_split(r->packed, r->bytes, &names, &bytes, &values, &row.n_values) < 0)
            return false;
        if (row_page_add(ret, &row, names, bytes, values) < 0)
            return false;
    }
    return true;
}

uint64_t feed_last(const struct alignd *a, uint64_t job)
{
    const struct feed *f = find(a, job);

    return f ? f->last : 0;
}

static void feed_free(struct feed *f)
{
    for (int i = 0; i < FEED_ROWS; i++)
        free(f->rows[i].packed);
    free(f->attempts);
    free(f);
}

void feed_expire(struct alignd *a)
{
    struct feed **at = &a->feeds;

    while (*at) {
        struct feed *f = *at;
        const struct job *j = core_job(a->core, f->job);
        if (j && !job_is_over((enum job_state)j->state)) {
            at = &f->next;
            continue;
        }
        *at = f->next;
        feed_free(f);
    }
}

void feed_close(struct alignd *a)
{
    while (a->feeds) {
        struct feed *next = a->feeds->next;
        feed_free(a->feeds);
        a->feeds = next;
    }
}
