/* bpe.h - byte-pair encoding as Hugging Face tokenizers' BPE model does it.
 *
 * One word (what the pre-tokenizer left together) at a time: characters, then
 * merges by rank, leftmost first. A word, which for Llama-2 is a whole text, first
 * falls into the parts that no merge can join; a long part is merged by a heap of
 * candidates over a linked list: O(n log n).
 * Definition: huggingface/tokenizers, models/bpe/{model,word}.rs. */
#ifndef WORKER_BPE_H
#define WORKER_BPE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "worker/tokenizer_map.h"
#include "worker/tokens.h"

struct bpe;

/* model: the "model" object of a tokenizer.json. Returns 0, -EINVAL (what is
 * unsupported or broken), -ENOMEM. */
int bpe_new(const json_t *model, struct bpe **ret, struct err *err);
void bpe_free(struct bpe *b);

const struct tokenizer_map *bpe_vocab(const struct bpe *b);
bool bpe_byte_fallback(const struct bpe *b);

/* Working memory of one caller; starts as {0}. */
struct bpe_work {
    struct bpe_symbol *symbols;
    size_t cap;
    struct bpe_merge *heap;
    size_t heap_n, heap_cap;
};
void bpe_work_free(struct bpe_work *w);

/* Appends the ids of the word s[0..n), well-formed UTF-8. 0, -ENOMEM. */
int bpe_encode(const struct bpe *b, const char *s, size_t n, struct bpe_work *w,
               struct tokens *out);

#endif
