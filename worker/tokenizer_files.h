/* tokenizer_files.h - the tokenizer's files beside an adapter, so that whoever loads the
 * folder (transformers, vLLM) needs no other. */
#ifndef WORKER_TOKENIZER_FILES_H
#define WORKER_TOKENIZER_FILES_H

#include "proto/err.h"
#include "worker/rundir.h"

/* Copies what there is of them from a model's folder to dir_fd (named `to` in sentences),
 * each replaced whole. */
int tokenizer_files_copy(const char *model_dir, int dir_fd, const char *to, struct err *err);

/* Into attempts/N/tokenizer/, from where this attempt's checkpoints take them: the model's
 * folder may be gone by then, and a checkpoint costs names instead of megabytes. */
int tokenizer_files_keep(const char *model_dir, const struct rundir *d, struct err *err);

/* The kept files as hard links in dir_fd; as copies where there are no hard links. None kept:
 * none there. 0 or -errno. */
int tokenizer_files_link(const struct rundir *d, int dir_fd);

#endif
