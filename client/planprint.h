/* planprint.h - what a job will do, as people read it: the plan in align-worker's check. */
#ifndef CLIENT_PLANPRINT_H
#define CLIENT_PLANPRINT_H

#include <jansson.h>

#include "proto/buf.h"

/* j: of align-worker --check, where it found no problem. */
void planprint(const json_t *j, struct buf *out);

#endif
