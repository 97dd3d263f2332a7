/* spool.h - attempts/N/metrics.jsonl: every report of an attempt, a line each,
 * appended before anybody is told of it. The supervisor sends from the file
 * (service.md 13), so no step waits for a daemon.
 *
 * Line: {"attempt":1,"n":7,"kind":"train","global_step":7,"wall_ms":...,
 * "loss":0.69,...,"nonfinite":["grad_norm"]}. n counts from 1 without gaps per
 * attempt. A value that is not finite is null and named in "nonfinite". A line
 * cut short by a crash is ignored by readers and overwritten by the writer. */
#ifndef WORKER_SPOOL_H
#define WORKER_SPOOL_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/limit.h"

enum spool_kind {
    SPOOL_START, /* first line: global_step = the step resumed from, 0 for a new run */
    SPOOL_TRAIN,
    SPOOL_EVAL,
    SPOOL_SUMMARY, /* last line of a finished run */
};

struct spool_value {
    char name[48];
    double value;
};

struct spool_row {
    uint32_t attempt;
    uint64_t n; /* set by spool_append */
    enum spool_kind kind;
    int64_t global_step;
    int64_t wall_ms; /* set by spool_append */
    int n_values;
    struct spool_value values[LIMIT_METRICS];
};

enum { SPOOL_LINE_BYTES = 8192 }; /* no line is longer */

/* Writer: one per attempt, rank 0's. A row is in the file, for every reader, when
 * spool_append returned 0; it is on stable storage at the latest a second later
 * and after spool_sync: before a checkpoint that rests on it. */
struct spool;

/* Opens attempt_dir/metrics.jsonl and goes on after its last whole line. */
int spool_create(const char *attempt_dir, uint32_t attempt, struct spool **ret, struct err *err);
/* Sets row->attempt, n and wall_ms. A failure (-ENOSPC) leaves the file as it
 * was and the number unused. */
int spool_append(struct spool *s, struct spool_row *row, struct err *err);
int spool_sync(struct spool *s, struct err *err);
void spool_close(struct spool *s);

/* Reader that follows a file which may still grow, or not be there yet. */
struct spool_tail;
int spool_tail_open(const char *attempt_dir, struct spool_tail **ret);
/* The next row. Returns 1; 0: none so far; -EBADMSG: a line that is no row; -errno. */
int spool_tail_next(struct spool_tail *t, struct spool_row *ret);
/* The next row will be row n, or the first after it. */
void spool_tail_seek(struct spool_tail *t, uint64_t n);
void spool_tail_close(struct spool_tail *t);

/* Parses one line (without newline). -EINVAL: not a whole row. */
int spool_parse(const char *line, size_t bytes, struct spool_row *ret);
/* Formats one line with its newline; returns bytes, snprintf's way. Values as the
 * shortest text that reads back as the same bits, always with a point or an e. */
size_t spool_format(const struct spool_row *row, char *buf, size_t size);

const char *spool_kind_name(enum spool_kind k);

#endif
