/* views.h - `align-worker data`, `try` and `tokenize`: the documents of docs/PROCESSES.md. */
#ifndef WORKER_VIEWS_H
#define WORKER_VIEWS_H

#include "worker/job_file.h"
#include "worker/memory.h"

/* Both return the exit code and, in every case, the document in *ret_json (malloc'ed, NULL
 * without memory). */
int views_data(const struct job_args *a, int64_t show, char **ret_json);
int views_try(const struct job_args *a, char **ret_json);

/* Standard input to ids, as JSON or a line of numbers. */
int views_tokenize(const char *model_dir, bool json, bool special, char **ret_text,
                   struct err *err);

/* "memory": a plan's figures, in bytes. */
struct json_t *views_memory(const struct memory_plan *m);
/* "problems": the list of a document. */
struct json_t *views_problems(const struct spec_problems *p);

#endif
