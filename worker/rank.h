/* rank.h - one rank of a gang, as its supervisor started it (child.h). */
#ifndef WORKER_RANK_H
#define WORKER_RANK_H

#include <sys/types.h>

/* Trains and returns the exit code (run.h). */
int rank_run(int rank, pid_t supervisor);

#endif
