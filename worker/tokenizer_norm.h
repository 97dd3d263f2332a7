/* tokenizer_norm.h - normalizers of a tokenizer.json: Prepend, Replace (of a
 * string), NFC, Sequence; every other kind is refused by name. */
#ifndef WORKER_TOKENIZER_NORM_H
#define WORKER_TOKENIZER_NORM_H

#include <jansson.h>
#include <stddef.h>

#include "proto/err.h"
#include "worker/text.h"

struct normalizer;

/* json: "normalizer"; null makes one that changes nothing. */
int normalizer_new(const json_t *json, struct normalizer **ret, struct err *err);
void normalizer_free(struct normalizer *z);

/* Replaces *out by the normalized s[0..n), well-formed UTF-8; *work is room. 0, -ENOMEM. */
int normalizer_run(const struct normalizer *z, const char *s, size_t n, struct text *out,
                   struct text *work);

#endif
