/* thin.h - which rows of a job that ended long ago stay in the store: a curve, and all
 * that is not one of its points. The full record is metrics.jsonl in the run folder. */
#ifndef DAEMON_THIN_H
#define DAEMON_THIN_H

#include <stdbool.h>
#include <stdint.h>

enum { THIN_ROWS = 512 }; /* about so many training rows stay of a job                  */

/* One training row in so many stays of a job whose newest seq is this; 1: all do. */
uint64_t thin_every(uint64_t seq);

/* Does row n (1..) of an attempt whose last row is `last` stay? Starts, evaluations,
 * summaries and rewinds always do, and of the training rows the first and the last of
 * each attempt and every `every`-th. */
bool thin_keeps(uint8_t kind, uint64_t n, uint64_t last, uint64_t every);

#endif
