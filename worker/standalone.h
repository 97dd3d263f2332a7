/* standalone.h - `align-worker run`: a gang without a daemon, restartable. */
#ifndef WORKER_STANDALONE_H
#define WORKER_STANDALONE_H

#include "worker/job_file.h"

struct standalone_opts {
    const struct job_args *args;
    void (*say)(void *arg, const char *line); /* a line for people                    */
    void *arg;
};

/* Trains and returns the exit code (run.h). *err holds the sentence of ERROR, USAGE and
 * OOM; problems of the job file are left in *job, which the caller frees. */
int standalone_run(const struct standalone_opts *o, struct job_file *job, struct err *err);

#endif
