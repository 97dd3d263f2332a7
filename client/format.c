/* format.c - see format.h. */
#include "client/format.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <wchar.h>

const char *format_count(format_buf b, int64_t n)
{
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%lld", (long long)n), used = 0;
    for (int i = 0; i < len; i++) {
        if (i > (n < 0) && (len - i) % 3 == 0)
            b[used++] = ',';
        b[used++] = digits[i];
    }
    b[used] = '\0';
    return b;
}

const char *format_value(format_buf b, double v)
{
    if (fabs(v) >= 1000 && fabs(v) < 1e15)
        return format_count(b, (int64_t)(v < 0 ? v - 0.5 : v + 0.5));
    if (v == 0)
        (void)snprintf(b, FORMAT_ROOM, "0");
    else if (fabs(v) < 1e-3)
        (void)snprintf(b, FORMAT_ROOM, "%.3g", v);
    else
        (void)snprintf(b, FORMAT_ROOM, "%.4g", v);
    return b;
}

const char *format_fixed(format_buf b, double v, int after)
{
    if (!isfinite(v))
        (void)snprintf(b, FORMAT_ROOM, "-");
    else
        (void)snprintf(b, FORMAT_ROOM, "%.*f", after, v);
    return b;
}

const char *format_loss(format_buf b, double v)
{
    if (isfinite(v) && v != 0 && (fabs(v) < 1e-3 || fabs(v) >= 1e4))
        (void)snprintf(b, FORMAT_ROOM, "%.1e", v);
    else
        (void)format_fixed(b, v, 4);
    return b;
}

const char *format_bytes(format_buf b, double bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    size_t u = 0;
    while (bytes >= 999.5 && u + 1 < sizeof units / sizeof units[0]) {
        bytes /= 1000;
        u++;
    }
    (void)snprintf(b, FORMAT_ROOM, u && bytes < 99.5 ? "%.1f %s" : "%.0f %s", bytes, units[u]);
    return b;
}

const char *format_about(format_buf b, double s)
{
    if (!isfinite(s) || s < 0)
        (void)snprintf(b, FORMAT_ROOM, "-");
    else if (s < 10)
        (void)snprintf(b, FORMAT_ROOM, "%.1f s", s);
    else if (s < 100)
        (void)snprintf(b, FORMAT_ROOM, "%.0f s", s);
    else if (s < 5700)
        (void)snprintf(b, FORMAT_ROOM, "%.0f min", s / 60);
    else if (s < 48 * 3600.0)
        (void)snprintf(b, FORMAT_ROOM, "%.1f h", s / 3600);
    else
        (void)snprintf(b, FORMAT_ROOM, "%.1f days", s / 86400);
    return b;
}

const char *format_clock(format_buf b, double seconds)
{
    long long s = seconds > 0 && seconds < 1e12 ? (long long)seconds : 0;
    if (s >= 86400)
        (void)snprintf(b, FORMAT_ROOM, "%lld-%02lld:%02lld:%02lld", s / 86400, s / 3600 % 24,
                       s / 60 % 60, s % 60);
    else if (s >= 3600)
        (void)snprintf(b, FORMAT_ROOM, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else
        (void)snprintf(b, FORMAT_ROOM, "%lld:%02lld", s / 60, s % 60);
    return b;
}

const char *format_when(format_buf b, int64_t wall_ms)
{
    struct tm tm;
    time_t t = (time_t)(wall_ms / 1000);
    if (wall_ms <= 0 || !localtime_r(&t, &tm) || !strftime(b, FORMAT_ROOM, "%F %T", &tm))
        (void)snprintf(b, FORMAT_ROOM, "-");
    return b;
}

/* Bytes of the character at s and its columns; 1 and 1 for what is no character.
 * A decoder of its own: it must not depend on the locale. */
static size_t next_char(const char *s, int *ret_columns, bool *ret_ok)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t n = p[0] < 0x80                   ? 1
               : p[0] >= 0xf0 && p[0] < 0xf8 ? 4
               : p[0] >= 0xe0 && p[0] < 0xf0 ? 3
               : p[0] >= 0xc2 && p[0] < 0xe0 ? 2
                                             : 0;
    uint32_t c = n == 1 ? p[0] : n == 0 ? 0 : p[0] & (0x7fu >> n);
    *ret_ok = n > 0;
    *ret_columns = 1;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            *ret_ok = false;
            return 1;
        }
        c = c << 6 | (p[i] & 0x3f);
    }
    if (n == 0)
        return 1;
    if (c < 0x20 || (c >= 0x7f && c < 0xa0)) {
        *ret_ok = false;
    } else if (n > 1) {
        int w = wcwidth((wchar_t)c);
        *ret_columns = w < 0 ? 1 : w;
    }
    return n;
}

size_t format_width(const char *s)
{
    size_t width = 0;
    int columns;
    bool ok;
    while (*s) {
        s += next_char(s, &columns, &ok);
        width += (size_t)columns;
    }
    return width;
}

const char *format_plain(char *buf, size_t room, const char *s, size_t columns)
{
    size_t used = 0, width = 0;
    while (*s && used + 5 < room) {
        int w;
        bool ok;
        size_t n = next_char(s, &w, &ok);
        if (width + (size_t)w + (s[n] ? 1 : 0) > columns) {
            if (width < columns)
                buf[used++] = '~';
            break;
        }
        if (ok) {
            memcpy(buf + used, s, n);
            used += n;
        } else {
            buf[used++] = (unsigned char)*s < 0x20 || *s == 0x7f ? ' ' : '?';
        }
        width += (size_t)w;
        s += n;
    }
    buf[used] = '\0';
    return buf;
}
