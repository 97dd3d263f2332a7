/* schedule.h - learning rates, as transformers' optimization.py defines them. */
#ifndef WORKER_SCHEDULE_H
#define WORKER_SCHEDULE_H

#include <stdint.h>

#include "proto/spec.h"

/* Warm-up updates of a run of `steps`: warmup_steps where given, else
 * ceil(warmup_ratio * steps). "constant" has none. */
int64_t schedule_warmup(const struct spec *spec, int64_t steps);

/* The factor on learning_rate for the update after `done` updates: 0 for the first
 * of a warm-up, 1 at its end. */
double schedule_factor(enum spec_schedule kind, int64_t done, int64_t warmup, int64_t steps);

#endif
