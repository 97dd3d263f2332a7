/* jobview.h - reads a job's JSON (docs/PROTOCOL.md) as a person wants it. */
#ifndef CLIENT_JOBVIEW_H
#define CLIENT_JOBVIEW_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "client/format.h"

const char *jobview_text(const json_t *job, const char *key); /* "" when it is not there */
int64_t jobview_int(const json_t *job, const char *key);
double jobview_number(const json_t *job, const char *key); /* NAN when null             */

bool jobview_over(const json_t *job);         /* its state is final                          */
bool jobview_completed(const json_t *job);    /* ... and COMPLETED                            */
const char *jobview_short(const char *state); /* RUNNING -> R        */
const char *jobview_step(format_buf b, const json_t *job);              /* 50/100              */
double jobview_seconds(const json_t *job, int64_t now_ms);              /* running for so long */
const char *jobview_devices(const json_t *job, char *buf, size_t room); /* cpu:0,cpu:1     */
const char *jobview_device(const char *name, format_buf b);             /* GPU-8f3aabcd    */
/* One of the job's "gpus": its rank, load, memory, temperature. */
const char *jobview_gpu(const json_t *gpu, char *buf, size_t room);
/* What the last column of `list` says: the reason and, for people, what it means. */
const char *jobview_reason(const json_t *job, char *buf, size_t room);
/* What it does while nobody looks: "trains on", "waits on in the queue". */
const char *jobview_goes_on(const json_t *job);
int64_t jobview_now_ms(void);

#endif
