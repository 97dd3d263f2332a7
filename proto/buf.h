/* buf.h - bytes that grow up to a stated maximum. */
#ifndef PROTO_BUF_H
#define PROTO_BUF_H

#include <stddef.h>
#include <stdint.h>

/* {.max = ...} is an empty one. After the first failure r holds it and every later
 * call does nothing: check once, at the end. */
struct buf {
    char *data; /* NUL after bytes, once anything was added */
    size_t bytes, cap, max;
    int r; /* 0, -EMSGSIZE, -ENOMEM */
};

int buf_add(struct buf *b, const void *data, size_t bytes);
int buf_str(struct buf *b, const char *s);
int buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* s as a JSON string with its quotes; bytes that are no UTF-8 become U+FFFD. */
int buf_json(struct buf *b, const char *s);
/* A number as JSON; null when it is not finite. */
int buf_json_double(struct buf *b, double v);
void buf_clear(struct buf *b); /* keeps the memory */
void buf_free(struct buf *b);

#endif
