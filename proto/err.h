/* err.h - a sentence for the human whose input was wrong.
 *
 * Functions that read what a person wrote (spec, data, model, checkpoint) take
 * a `struct err *` last: on failure it names the file, row or key, what is
 * wrong, and what would be right. Programs print it; libraries only fill it. */
#ifndef PROTO_ERR_H
#define PROTO_ERR_H

#include <stdarg.h>
#include <stddef.h>

struct err {
    char text[1024]; /* UTF-8, no newline at the end */
};

/* Writes the sentence and returns `code`, so that a caller can
 * `return err_set(err, -EINVAL, "...")`. err == NULL: only returns. */
int err_set(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "<prefix>: " before the sentence (a file name, an outer key). */
int err_prefix(struct err *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
