/* exit_record.h - how a gang ended: exit.json, or the same text over the wire. */
#ifndef DAEMON_EXIT_RECORD_H
#define DAEMON_EXIT_RECORD_H

#include <stddef.h>

#include "daemon/event.h"
#include "proto/err.h"

struct exit_record {
    struct event_exit exit; /* points into the texts below */
    char error[1024], adapter[LIMIT_PATH];
};

/* Hostile input: text of a process that may have been killed in the middle of it, or
 * of somebody else's. -EBADMSG with a sentence unless it is a whole record of (job, attempt). */
int exit_record_parse(const char *text, size_t bytes, uint64_t job, uint32_t attempt,
                      struct exit_record *ret, struct err *err);

#endif
