/* text.c - see text.h. */
#include "worker/text.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int text_reserve(struct text *t, size_t more)
{
    if (more >= SIZE_MAX / 4 - t->n)
        return -ENOMEM;
    const size_t need = t->n + more + 1;
    if (need <= t->cap)
        return 0;
    size_t cap = t->cap ? t->cap : 64;
    while (cap < need)
        cap += cap / 2 + 1;
    char *s = realloc(t->s, cap);
    if (!s)
        return -ENOMEM;
    t->s = s;
    t->cap = cap;
    return 0;
}

int text_add(struct text *t, const char *s, size_t n)
{
    if (text_reserve(t, n))
        return -ENOMEM;
    if (n)
        memcpy(t->s + t->n, s, n);
    t->n += n;
    t->s[t->n] = '\0';
    return 0;
}

int text_adds(struct text *t, const char *z)
{
    return text_add(t, z, strlen(z));
}

int text_addf(struct text *t, const char *fmt, ...)
{
    va_list ap;
    char small[256];

    va_start(ap, fmt);
    const int n = vsnprintf(small, sizeof small, fmt, ap);
    va_end(ap);
    if (n < 0)
        return -EINVAL;
    if ((size_t)n < sizeof small)
        return text_add(t, small, (size_t)n);
    if (text_reserve(t, (size_t)n))
        return -ENOMEM;
    va_start(ap, fmt);
    (void)vsnprintf(t->s + t->n, (size_t)n + 1, fmt, ap);
    va_end(ap);
    t->n += (size_t)n;
    return 0;
}

int text_add_json(struct text *t, const char *s, size_t n)
{
    int r = text_add(t, "\"", 1);
    for (size_t i = 0; i < n && !r;) {
        const size_t k = text_utf8_length(s + i, n - i);
        const unsigned char c = (unsigned char)s[i];
        if (k == 0) {
            r = text_add(t, "\xef\xbf\xbd", 3);
            i++;
        } else if (k > 1 || (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f)) {
            r = text_add(t, s + i, k);
            i += k;
        } else {
            if (c == '"' || c == '\\')
                r = text_addf(t, "\\%c", c);
            else if (c == '\n')
                r = text_adds(t, "\\n");
            else
                r = text_addf(t, "\\u%04x", c);
            i++;
        }
    }
    return r ? r : text_add(t, "\"", 1);
}

void text_free(struct text *t)
{
    free(t->s);
    *t = (struct text){0};
}

size_t text_utf8_length(const char *str, size_t n)
{
    const unsigned char *s = (const unsigned char *)str;
    if (n == 0)
        return 0;
    if (s[0] < 0x80)
        return 1;
    unsigned lo = 0x80, hi = 0xbf;
    size_t k;
    if (s[0] >= 0xc2 && s[0] <= 0xdf) {
        k = 2;
    } else if (s[0] >= 0xe0 && s[0] <= 0xef) {
        k = 3;
        lo = s[0] == 0xe0 ? 0xa0 : lo;
        hi = s[0] == 0xed ? 0x9f : hi;
    } else if (s[0] >= 0xf0 && s[0] <= 0xf4) {
        k = 4;
        lo = s[0] == 0xf0 ? 0x90 : lo;
        hi = s[0] == 0xf4 ? 0x8f : hi;
    } else {
        return 0;
    }
    if (n < k || s[1] < lo || s[1] > hi)
        return 0;
    for (size_t i = 2; i < k; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    return k;
}

bool text_utf8_valid(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        const size_t k = text_utf8_length(s + i, n - i);
        if (k == 0)
            return false;
        i += k;
    }
    return true;
}

size_t text_utf8_get(const char *str, size_t n, uint32_t *ret)
{
    const unsigned char *s = (const unsigned char *)str;
    if (s[0] < 0x80 || n < 2) {
        *ret = s[0];
        return 1;
    }
    if (s[0] < 0xe0 || n < 3) {
        *ret = (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3f);
        return 2;
    }
    if (s[0] < 0xf0 || n < 4) {
        *ret = (uint32_t)(s[0] & 0x0f) << 12 | (uint32_t)(s[1] & 0x3f) << 6 | (s[2] & 0x3f);
        return 3;
    }
    *ret = (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3f) << 12 |
           (uint32_t)(s[2] & 0x3f) << 6 | (s[3] & 0x3f);
    return 4;
}

size_t text_utf8_put(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}

bool text_is_space(uint32_t cp)
{
    return (cp >= 0x09 && cp <= 0x0d) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f ||
           cp == 0x205f || cp == 0x3000;
}
