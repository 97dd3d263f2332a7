/* tokenizer_json.h - the pipeline that a tokenizer.json describes: added tokens,
 * normalizer, pre-tokenizer, BPE, post-processor. Immutable after opening. */
#ifndef WORKER_TOKENIZER_JSON_H
#define WORKER_TOKENIZER_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "worker/tokens.h"

struct tokenizer_json;

enum { TOKENIZER_JSON_AFFIX = 16 }; /* ids a post-processor may add at one end */

struct tokenizer_affixes {
    int32_t before[TOKENIZER_JSON_AFFIX], after[TOKENIZER_JSON_AFFIX];
    int n_before, n_after;
};

int tokenizer_json_new(const json_t *root, struct tokenizer_json **ret, struct err *err);
void tokenizer_json_free(struct tokenizer_json *t);

/* Without the post-processor. s[0..n): well-formed UTF-8. 0, -ENOMEM, -EOVERFLOW. */
int tokenizer_json_encode(const struct tokenizer_json *t, const char *s, size_t n,
                          struct tokens *out);
const struct tokenizer_affixes *tokenizer_json_affixes(const struct tokenizer_json *t);

int32_t tokenizer_json_end(const struct tokenizer_json *t); /* highest id + 1 */
/* Id of a token by its content, -1: none. */
int32_t tokenizer_json_id(const struct tokenizer_json *t, const char *s, size_t n);
/* Content of an id as the file writes it, NULL: none; *ret_added: an added token. */
const char *tokenizer_json_token(const struct tokenizer_json *t, int32_t id, size_t *ret_n,
                                 bool *ret_added);
bool tokenizer_json_byte_level(const struct tokenizer_json *t);
bool tokenizer_json_byte_fallback(const struct tokenizer_json *t);

#endif
