/* format.h - numbers and texts as people read them. Each returns its buffer. */
#ifndef CLIENT_FORMAT_H
#define CLIENT_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FORMAT_ROOM = 64 };
typedef char format_buf[FORMAT_ROOM];

const char *format_count(format_buf b, int64_t n);           /* 1,596              */
const char *format_value(format_buf b, double v);            /* 0.6931, 5e-06, nan */
const char *format_fixed(format_buf b, double v, int after); /* 0.6931; - for nan  */
const char *format_loss(format_buf b, double v);             /* 0.6931, 1.4e-05    */
const char *format_bytes(format_buf b, double bytes);        /* 1.2 GB (10^9)      */
const char *format_about(format_buf b, double seconds);      /* 45 s, 4 min, 3.5 h */
const char *format_clock(format_buf b, double seconds);      /* squeue: 1-02:03:04 */
const char *format_when(format_buf b, int64_t wall_ms);      /* 2026-11-24 09:30:12 */

/* Columns of a UTF-8 text on a terminal. */
size_t format_width(const char *s);
/* Copies s, at most `columns` wide (cut with ~), control characters as spaces and
 * bytes that are no UTF-8 as ?: what a daemon sends cannot move the cursor. */
const char *format_plain(char *buf, size_t room, const char *s, size_t columns);

#endif
