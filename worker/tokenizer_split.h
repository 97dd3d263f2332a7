/* tokenizer_split.h - pre-tokenizers: a text into the pieces that BPE keeps apart.
 *
 * Split, Digits, ByteLevel, Metaspace and Sequence of a tokenizer.json; every
 * other kind is refused by name. Definition: huggingface/tokenizers,
 * pre_tokenizers/ and tokenizer/normalizer.rs (the split behaviours). */
#ifndef WORKER_TOKENIZER_SPLIT_H
#define WORKER_TOKENIZER_SPLIT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "proto/err.h"
#include "worker/text.h"

struct splitter;

struct piece {
    size_t off, n;
    bool first; /* begins where the whole text began (Metaspace "first") */
};

/* Pieces of `text`; starts as {0}. */
struct pieces {
    struct text text;
    struct piece *v;
    size_t n, cap;
};
void pieces_free(struct pieces *p);

/* json: "pre_tokenizer"; null makes a splitter that leaves all together. */
int splitter_new(const json_t *json, struct splitter **ret, struct err *err);
void splitter_free(struct splitter *s);
bool splitter_is_byte_level(const struct splitter *s);

/* s[0..n): well-formed UTF-8; first: it begins the whole text. The pieces are left
 * in *a; *b is working room, as is `room` (tokenizer_regex_room). 0, -ENOMEM,
 * -EOVERFLOW. */
int splitter_run(const struct splitter *s, const char *text, size_t n, bool first, void *room,
                 struct pieces *a, struct pieces *b);

/* GPT-2's table: the printable character that stands for each byte. */
uint32_t splitter_byte_char(unsigned char byte);

#endif
