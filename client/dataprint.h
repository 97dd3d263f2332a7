/* dataprint.h - rows as they will be trained, for people: trained tokens coloured,
 * masked ones grey, special tokens and the prompt's end visible. */
#ifndef CLIENT_DATAPRINT_H
#define CLIENT_DATAPRINT_H

#include <jansson.h>
#include <stdbool.h>

#include "proto/buf.h"

/* j: what `align-worker data` prints (docs/PROCESSES.md). Without colour trained text
 * stands in [[ ]]. */
void dataprint_rows(const json_t *j, bool colour, bool utf8, struct buf *out);
/* Counts, lengths, and rows cut or dropped, by reason. */
void dataprint_summary(const json_t *j, struct buf *out);
/* "4 of 1,600 rows dropped (empty reply)"; "" when none was. */
const char *dataprint_dropped(const json_t *j, char *buf, size_t room);

#endif
