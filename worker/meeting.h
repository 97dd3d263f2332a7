/* meeting.h - the rendezvous of a gang without a daemon: its supervisor's memory. */
#ifndef WORKER_MEETING_H
#define WORKER_MEETING_H

#include <stddef.h>
#include <stdint.h>

#include "worker/reporter.h"

struct meeting;

/* asks[n] is the supervisor's; answer closes them. */
int meeting_new(struct reporter_ask *asks, int n,
                void (*answer)(void *arg, uint32_t rank, const char *key, int result,
                               const void *value, size_t bytes),
                void *arg, struct meeting **ret);
void meeting_free(struct meeting *m); /* NULL is a no-op */

/* asks[rank] was opened: answers it, and whoever waits for what it brought. */
void meeting_ask(struct meeting *m, uint32_t rank);

#endif
