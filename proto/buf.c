/* buf.c - see buf.h. */
#include "proto/buf.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int room(struct buf *b, size_t more)
{
    size_t want;
    char *p;

    if (b->r < 0)
        return b->r;
    if (more > b->max || b->bytes > b->max - more)
        return b->r = -EMSGSIZE;
    want = b->bytes + more + 1;
    if (want <= b->cap)
        return 0;
    if (want < b->cap + b->cap / 2)
        want = b->cap + b->cap / 2;
    if (want < 256)
        want = 256;
    p = realloc(b->data, want);
    if (!p)
        return b->r = -ENOMEM;
    b->data = p;
    b->cap = want;
    return 0;
}

/* Length of the UTF-8 sequence at p, 0 if there is none (RFC 3629 table 3-7). */
static size_t utf8_len(const unsigned char *p)
{
    if (p[0] < 0x80)
        return 1;
    if (p[0] >= 0xc2 && p[0] <= 0xdf)
        return (p[1] & 0xc0) == 0x80 ? 2 : 0;
    if (p[0] >= 0xe0 && p[0] <= 0xef) {
        const unsigned lo = p[0] == 0xe0 ? 0xa0 : 0x80, hi = p[0] == 0xed ? 0x9f : 0xbf;
        return p[1] >= lo && p[1] <= hi && (p[2] & 0xc0) == 0x80 ? 3 : 0;
    }
    if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        const unsigned lo = p[0] == 0xf0 ? 0x90 : 0x80, hi = p[0] == 0xf4 ? 0x8f : 0xbf;
        return p[1] >= lo && p[1] <= hi && (p[2] & 0xc0) == 0x80 && (p[3] & 0xc0) == 0x80 ? 4 : 0;
    }
    return 0;
}

int buf_add(struct buf *b, const void *data, size_t bytes)
{
    const int r = room(b, bytes);

    if (r < 0)
        return r;
    if (bytes > 0)
        memcpy(b->data + b->bytes, data, bytes);
    b->bytes += bytes;
    b->data[b->bytes] = 0;
    return 0;
}

int buf_str(struct buf *b, const char *s)
{
    return buf_add(b, s, strlen(s));
}

int buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap;
    int n, r;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0)
        return b->r = -EINVAL;
    r = room(b, (size_t)n);
    if (r < 0)
        return r;
    va_start(ap, fmt);
    vsnprintf(b->data + b->bytes, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->bytes += (size_t)n;
    return 0;
}

int buf_json(struct buf *b, const char *s)
{
    const unsigned char *p = (const unsigned char *)s;

    buf_add(b, "\"", 1);
    while (*p) {
        const unsigned char *run = p;
        while (*p >= 0x20 && *p != '"' && *p != '\\' && *p < 0x7f)
            p++;
        buf_add(b, run, (size_t)(p - run));
        if (!*p)
            break;
        if (*p == '"' || *p == '\\') {
            buf_add(b, (char[2]){'\\', (char)*p++}, 2);
        } else if (*p == '\n') {
            buf_str(b, "\\n");
            p++;
        } else if (*p < 0x20 || *p == 0x7f) {
            buf_printf(b, "\\u%04x", *p++);
        } else {
            const size_t n = utf8_len(p);
            buf_add(b, n ? (const void *)p : "\xef\xbf\xbd", n ? n : 3);
            p += n ? n : 1;
        }
    }
    return buf_add(b, "\"", 1);
}

int buf_json_double(struct buf *b, double v)
{
    char t[40];

    if (!isfinite(v))
        return buf_str(b, "null");
    for (int digits = 15; digits <= 17; digits++) { /* the shortest that reads back equal */
        snprintf(t, sizeof t, "%.*g", digits, v);
        if (strtod(t, NULL) == v)
            break;
    }
    return buf_str(b, t);
}

void buf_clear(struct buf *b)
{
    b->bytes = 0;
    b->r = 0;
    if (b->data)
        b->data[0] = 0;
}

void buf_free(struct buf *b)
{
    free(b->data);
    *b = (struct buf){.max = b->max};
}
