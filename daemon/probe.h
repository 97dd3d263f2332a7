/* probe.h - asks align-worker whether it can train on GPUs here: its module for them may be
 * there and CUDA's libraries not. */
#ifndef DAEMON_PROBE_H
#define DAEMON_PROBE_H

#include <stddef.h>

/* Runs `worker devices` and waits for it, at most so long. 1: it can; 0: it cannot, `why`
 * says why; negative: it did not say (another program, an older one, killed for its
 * silence). Blocks: for the start. */
int probe_gpus(const char *worker, int timeout_ms, char *why, size_t size);

#endif
