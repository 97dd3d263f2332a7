/* text_out.c - see text_out.h. */
#include "worker/text_out.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool room(struct text_out *t, size_t bytes)
{
    size_t cap = t->cap > 0 ? t->cap : 256;
    char *p;

    if (t->error < 0)
        return false;
    while (cap - t->bytes < bytes)
        cap *= 2;
    p = cap == t->cap ? t->p : realloc(t->p, cap);
    if (p == NULL) {
        t->error = -ENOMEM;
        return false;
    }
    t->p = p;
    t->cap = cap;
    return true;
}

void text_out_bytes(struct text_out *t, const void *p, size_t bytes)
{
    if (!room(t, bytes) || bytes == 0)
        return;
    memcpy(t->p + t->bytes, p, bytes);
    t->bytes += bytes;
}

void text_out_add(struct text_out *t, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || !room(t, (size_t)n + 1))
        return;
    va_start(ap, fmt);
    vsnprintf(t->p + t->bytes, (size_t)n + 1, fmt, ap);
    va_end(ap);
    t->bytes += (size_t)n;
}

void text_out_json(struct text_out *t, const char *s)
{
    text_out_bytes(t, "\"", 1);
    for (; *s; s++) {
        const unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            text_out_add(t, "\\%c", c);
        else if (c < 0x20)
            text_out_add(t, "\\u%04x", c);
        else
            text_out_bytes(t, s, 1);
    }
    text_out_bytes(t, "\"", 1);
}

void text_out_number(struct text_out *t, double v)
{
    if (!isfinite(v))
        text_out_add(t, "null");
    else if (v == floor(v) && fabs(v) < 1e15)
        text_out_add(t, "%.1f", v);
    else
        text_out_add(t, "%.17g", v);
}

void text_out_free(struct text_out *t)
{
    free(t->p);
    *t = (struct text_out){0};
}
