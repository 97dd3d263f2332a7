/* launch_process.h - what launch_process.c and launch_start.c share: a gang's folder. */
#ifndef DAEMON_LAUNCH_PROCESS_H
#define DAEMON_LAUNCH_PROCESS_H

#include <stddef.h>

#include "daemon/launch.h"

void launch_process_path(const struct launch *l, uint64_t job, uint32_t attempt, char *path,
                         size_t size);
/* A descriptor of the folder, or -errno. */
int launch_process_open(const struct launch *l, uint64_t job, uint32_t attempt);
/* 1: a supervisor has it; 0: none; -errno. */
int launch_process_locked(int dir);

#endif
