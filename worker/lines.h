/* lines.h - the rows of a data file, one JSON text at a time.
 *
 * .jsonl (a line is a row) or .json (an array of rows), plain or compressed with
 * gzip, xz, zstd or bzip2; which one is told from the bytes, not the name. */
#ifndef WORKER_LINES_H
#define WORKER_LINES_H

#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

struct lines;

/* -ENOENT and other errnos of open; -EINVAL: a kind of file that is refused
 * (Parquet, Arrow, CSV: the sentence has a one-line conversion). */
int lines_open(const char *path, struct lines **ret, struct err *err);
void lines_close(struct lines *l);

/* The next row: 1 and *ret (not NUL-terminated, valid until the next call), its bytes
 * and its number: the line of a .jsonl file, the place in an array, from 1. Blank
 * lines are no rows. 0: the end. -EINVAL: the file is cut short or damaged (names
 * the last good row); -E2BIG: a row longer than LIMIT_ROW_BYTES; -ENOMEM. */
int lines_next(struct lines *l, const char **ret, size_t *ret_n, int64_t *ret_row, struct err *err);

#endif
