/* job_file.h - the JOB of a command line: read, checked, with its problems. */
#ifndef WORKER_JOB_FILE_H
#define WORKER_JOB_FILE_H

#include <stdbool.h>

#include "proto/err.h"
#include "proto/spec.h"

struct job_args {
    const char *path; /* "-": standard input                                        */
    const char *base; /* relative paths are relative to this; NULL: the file's folder */
    struct spec_set sets[64];
    size_t n_sets;
    bool json, overwrite;
};

struct job_file {
    struct spec *spec; /* NULL when there are problems                              */
    char *user, *resolved;
    struct spec_problems problems;
    struct spec_more more;
};

/* 0; -EINVAL: see ret->problems; other: the file cannot be read, err says why. ret is to
 * be freed in every case. */
int job_file_read(const struct job_args *a, struct job_file *ret, struct err *err);
void job_file_free(struct job_file *j);

/* Adds a problem of what stands under `key` ("train.0.path"; NULL: of nothing there),
 * at its line. The problems stay in the order of their lines. */
int job_file_problem(struct job_file *j, const char *key, bool warning, const char *text);
/* The same of what reading the data says: at the source that it names. */
int job_file_data_problem(struct job_file *j, const struct spec *spec, const char *text);

#endif
