/* queue.h - the jobs that could start now if there were devices, in the order in
 * which they will: higher priority first, then first come, first served.
 *
 * A sorted array with room at both ends: a new job goes to the end and the next
 * one leaves the front without moving the others; 100,000 entries are 800 KB. */
#ifndef DAEMON_QUEUE_H
#define DAEMON_QUEUE_H

#include <stdbool.h>
#include <stddef.h>

#include "daemon/job.h"

struct queue {            /* zeroed = empty */
    const struct job **v; /* borrowed */
    size_t first, n, cap; /* entries are v[first .. first + n) */
};

/* a goes before b. Total: orders, and at last ids, differ. */
bool queue_before(const struct job *a, const struct job *b);

/* priority, order and id must not change while it is in. Returns 0 or -ENOMEM. */
int queue_insert(struct queue *q, const struct job *j);
bool queue_remove(struct queue *q, const struct job *j);     /* false: it was not in */
const struct job *queue_at(const struct queue *q, size_t i); /* NULL past the end */
void queue_fini(struct queue *q);

#endif
