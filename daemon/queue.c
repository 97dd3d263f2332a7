/* queue.c - see queue.h. */
#include "daemon/queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool queue_before(const struct job *a, const struct job *b)
{
    if (a->priority != b->priority)
        return a->priority > b->priority;
    if (a->order != b->order)
        return a->order < b->order;
    return a->id < b->id;
}

/* How many entries go before j. */
static size_t position(const struct queue *q, const struct job *j)
{
    size_t lo = 0, hi = q->n;

    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (queue_before(q->v[q->first + mid], j))
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static int grow(struct queue *q)
{
    if (q->first > q->n) { /* more room before the front than entries: slide down */
        memmove(q->v, q->v + q->first, q->n * sizeof(*q->v));
        q->first = 0;
        return 0;
    }
    const size_t cap = q->cap ? 2 * q->cap : 64;
    const struct job **v = realloc(q->v, cap * sizeof(*v));
    if (!v)
        return -ENOMEM;
    q->v = v;
    q->cap = cap;
    return 0;
}

int queue_insert(struct queue *q, const struct job *j)
{
    const size_t at = position(q, j);

    if (at < q->n && q->v[q->first + at] == j)
        return 0;
    if (q->first + q->n == q->cap) {
        const int r = grow(q);
        if (r < 0)
            return r;
    }
    const struct job **p = q->v + q->first + at;
    memmove(p + 1, p, (q->n - at) * sizeof(*p));
    *p = j;
    q->n++;
    return 0;
}

bool queue_remove(struct queue *q, const struct job *j)
{
    const size_t at = position(q, j);

    if (at == q->n || q->v[q->first + at] != j)
        return false;
    q->n--;
    if (at == 0) {
        q->first = q->n ? q->first + 1 : 0;
        return true;
    }
    const struct job **p = q->v + q->first + at;
    memmove(p, p + 1, (q->n - at) * sizeof(*p));
    return true;
}

const struct job *queue_at(const struct queue *q, size_t i)
{
    return i < q->n ? q->v[q->first + i] : NULL;
}

void queue_fini(struct queue *q)
{
    free(q->v);
    memset(q, 0, sizeof(*q));
}
