/* gpus.h - this machine's GPUs as the loop knows them: what NVML says (gpu_watch.h),
 * which of them alignd may use, and what of it the core must hear.
 *
 * A GPU is told to the core only when this build can train on it and the environment
 * shows it to us. Processes on it are ours when they are in the session of a gang's
 * supervisor. */
#ifndef DAEMON_GPUS_H
#define DAEMON_GPUS_H

#include "daemon/event.h"
#include "daemon/nvml.h"

struct alignd;
struct gpus;

/* Looks at the GPUs there are; waits for the driver, but not for ever. Without NVML or
 * without a module for GPUs there are simply none. */
int gpus_open(struct alignd *a);
void gpus_close(struct alignd *a);
void gpus_tell(struct alignd *a); /* at start, when the gangs are known: to the core */
void gpus_tick(struct alignd *a); /* once a second                                    */

/* All but the name and `fenced` of an event about this GPU, so that nothing is lost when
 * something else has news of it. */
void gpus_fill(const struct alignd *a, struct event_device *ev);
/* A sentence for people: GPUs that are seen but not used, and why; or "". */
const char *gpus_note(const struct alignd *a);
/* Counts the samples. */
uint64_t gpus_sample(const struct alignd *a);

/* Its lock was found in other hands. */
void gpus_locked(struct alignd *a, const char *name);
/* As last seen; NULL: no GPU, or not seen. Valid until the loop goes on. */
const struct nvml_gpu *gpus_find(const struct alignd *a, const char *name);
/* The job has GPUs, and there is a newer sample than this. */
bool gpus_news(const struct alignd *a, uint64_t job, uint32_t attempt, uint64_t sample);

#endif
