/* tokenizer_regex.h - the regular expressions of tokenizer files, matched by PCRE2.
 *
 * The files are written for Oniguruma. What means something else in PCRE2 is
 * rewritten (\s, \w) or refused by name, so that pieces are the same; Unicode is
 * the version of the installed PCRE2. Immutable; may be shared by threads. */
#ifndef WORKER_TOKENIZER_REGEX_H
#define WORKER_TOKENIZER_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/err.h"

struct tokenizer_regex;

int tokenizer_regex_new(const char *pattern, size_t n, struct tokenizer_regex **ret,
                        struct err *err);
/* A pattern that matches the text itself. */
int tokenizer_regex_literal(const char *text, size_t n, struct tokenizer_regex **ret,
                            struct err *err);
void tokenizer_regex_free(struct tokenizer_regex *r);

/* Room for one match; one per thread. NULL: out of memory. */
void *tokenizer_regex_room(void);
void tokenizer_regex_room_free(void *room);

/* The first match in s[0..n) at or after `from`; s is well-formed UTF-8. Returns 1
 * and its ends, 0 (none), -ENOMEM, -EOVERFLOW (gave up: the pattern backtracks
 * without end on this text). */
int tokenizer_regex_find(const struct tokenizer_regex *r, void *room, const char *s, size_t n,
                         size_t from, size_t *ret_start, size_t *ret_end);

#endif
