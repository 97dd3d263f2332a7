/* check.h - `align-worker --check`: everything that can be known before training. */
#ifndef WORKER_CHECK_H
#define WORKER_CHECK_H

#include "worker/job_file.h"

enum { CHECK_USED_FOLDER = 6 }; /* exit code: only output_dir is in the way */

/* Reads and checks everything, leaves every problem in *job (the caller frees it) and
 * the document of docs/PROCESSES.md in *ret_json (malloc'ed). Returns the exit code: 0,
 * RUN_EXIT_ERROR, CHECK_USED_FOLDER, RUN_EXIT_USAGE (the file cannot be read: err). */
int check_job(const struct job_args *a, struct job_file *job, char **ret_json, struct err *err);

#endif
