/* summary.h - what was derived from a job file, in one sentence. */
#ifndef CLIENT_SUMMARY_H
#define CLIENT_SUMMARY_H

#include <jansson.h>
#include <stddef.h>

#include "proto/spec.h"

/* "batch 16 = 4 x 2 x 2 devices; 100 steps = 1.0 epochs of 1,596 pairs; learning_rate
 * 5e-06 (default); ...". check: what align-worker --check printed, or NULL. */
const char *summary_text(const struct spec *spec, const char *resolved, const json_t *check,
                         char *buf, size_t room);

#endif
