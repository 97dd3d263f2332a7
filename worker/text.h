/* text.h - bytes that grow, and UTF-8. */
#ifndef WORKER_TEXT_H
#define WORKER_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Starts as {0}. s is NUL-terminated once anything was added (n does not count
 * the NUL; the text itself may hold NULs). Adding returns 0 or -ENOMEM. */
struct text {
    char *s;
    size_t n, cap;
};

int text_reserve(struct text *t, size_t more);
int text_add(struct text *t, const char *s, size_t n);
int text_adds(struct text *t, const char *z);
int text_addf(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Appends s[0..n) as a quoted JSON string; bytes that are no UTF-8 become U+FFFD. */
int text_add_json(struct text *t, const char *s, size_t n);
void text_free(struct text *t);

/* Well-formed by Unicode table 3-7: no surrogates, no overlong forms. */
bool text_utf8_valid(const char *s, size_t n);
/* Bytes of the well-formed sequence at s, 0 when there is none. */
size_t text_utf8_length(const char *s, size_t n);
/* The code point at s (well-formed, n > 0); returns its bytes. */
size_t text_utf8_get(const char *s, size_t n, uint32_t *ret);
size_t text_utf8_put(uint32_t cp, char out[4]);
/* Unicode White_Space, what Rust's and Oniguruma's \s match. */
bool text_is_space(uint32_t cp);

#endif
