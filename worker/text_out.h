/* text_out.h - text that grows: what files are made of before they are written at once. */
#ifndef WORKER_TEXT_OUT_H
#define WORKER_TEXT_OUT_H

#include <stddef.h>

struct text_out {
    char *p;
    size_t bytes, cap;
    int error; /* -ENOMEM once and for all; then nothing more is added               */
};
void text_out_add(struct text_out *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void text_out_bytes(struct text_out *t, const void *p, size_t bytes);
void text_out_json(struct text_out *t, const char *s); /* a JSON string, quotes included      */
/* A JSON number that reads back as the same double; null when it is not finite. */
void text_out_number(struct text_out *t, double v);
void text_out_free(struct text_out *t);

#endif
