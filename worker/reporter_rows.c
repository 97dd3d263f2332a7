/* reporter_rows.c - the rows that the daemon has not acknowledged, read from the spool. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "proto/log.h"
#include "worker/reporter_impl.h"

void reporter_rows_seek(struct reporter *r, uint64_t n)
{
    r->n_rows = 0;
    r->rows_end = false;
    spool_tail_seek(r->tail, n);
}

void reporter_rows_fill(struct reporter *r)
{
    while (!r->rows_bad && r->n_rows < REPORTER_ROWS) {
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
void reporter_rows_acked(struct reporter *r, uint64_t next_n)
{
    int k = 0;

    while (k < r->n_rows && r->rows[k].n < next_n)
        k++;
    if (k < r->n_rows && r->rows[k].n != next_n) { /* it wants what we no longer hold */
        reporter_rows_seek(r, next_n);
        return;
    }
    if (k == r->n_rows && k > 0 && r->rows[k - 1].n + 1 != next_n) {
        reporter_rows_seek(r, next_n);
        return;
    }
    memmove(r->rows, r->rows + k, (size_t)(r->n_rows - k) * sizeof r->rows[0]);
    r->n_rows -= k;
}

bool reporter_rows_past(const struct reporter *r)
{
    return r->rows_of < r->o.gang->attempt;
}

/* The rows of an attempt, from the first. */
int reporter_rows_open(struct reporter *r, uint32_t attempt)
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
void reporter_rows_next(struct reporter *r)
{
    while (reporter_rows_past(r) && r->rows_asked) {
        reporter_rows_fill(r);
        if (r->n_rows > 0)
            return;
        if (reporter_rows_open(r, r->rows_of + 1) < 0)
            r->rows_bad = r->rows_end = r->rows_asked = true;
    }
}
