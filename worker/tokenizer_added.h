/* tokenizer_added.h - the tokens that are found in a text before anything else
 * looks at it: <s>, <|im_end|> and the like.
 *
 * Leftmost-longest, with lstrip, rstrip and single_word. Definition:
 * huggingface/tokenizers, tokenizer/added_vocabulary.rs. */
#ifndef WORKER_TOKENIZER_ADDED_H
#define WORKER_TOKENIZER_ADDED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

struct added;

struct added_token {
    const char *content; /* as matched: normalized ones are given in normalized form */
    size_t n;
    int32_t id;
    bool lstrip, rstrip, single_word;
};

int added_new(struct added **ret);
void added_free(struct added *a);
/* The content is copied. The first of two equal contents wins. 0, -ENOMEM, -EINVAL (empty). */
int added_put(struct added *a, const struct added_token *t);
size_t added_count(const struct added *a);

/* Parts of a text: id >= 0: that token; -1: text between tokens. */
struct added_part {
    size_t off, n;
    int32_t id;
};
struct added_parts {
    struct added_part *v;
    size_t n, cap;
};

/* Replaces *out by the parts of s[0..n). 0, -ENOMEM. */
int added_split(const struct added *a, const char *s, size_t n, void *room,
                struct added_parts *out);

#endif
