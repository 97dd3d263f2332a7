/* views.h - what the core holds, as JSON for people and their scripts (docs/PROTOCOL.md).
 * Read-only. */
#ifndef DAEMON_VIEWS_H
#define DAEMON_VIEWS_H

#include "daemon/core.h"
#include "proto/buf.h"

struct alignd;

/* Called for the name of a uid; the result must live until the next call. */
const char *views_user(uint32_t uid);

/* One object. open: without its last brace, for more to be added. */
void views_job(struct buf *b, const struct core *c, const struct job *j, bool open);
/* ,"progress":{...} */
void views_progress(struct buf *b, const struct job *j);
/* ,"attempts":[...] from what store_read_attempts() made, `step` in its place. */
void views_attempts(struct buf *b, const char *text, int64_t step);
/* ,"gpus":[...] of a job that has GPUs, one per rank; else nothing. */
void views_gpus(struct buf *b, const struct alignd *a, const struct job *j);
/* ,"host_memory":{"now_kb":..,"peak_kb":..} while it has a gang that has said so. */
void views_host_memory(struct buf *b, const struct alignd *a, const struct job *j);
void views_devices(struct buf *b, const struct alignd *a);

#endif
