/* tokenizer.h - text to token ids, as the Hugging Face tokenizer of the folder does.
 *
 * tokenizer.json (BPE with byte fallback or ByteLevel BPE) wins over
 * tokenizer.model (SentencePiece). Immutable after opening; may be shared by
 * threads. */
#ifndef WORKER_TOKENIZER_H
#define WORKER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "worker/tokens.h"

struct tokenizer;

/* dir: a model folder. Returns 0; -ENOENT (no tokenizer there), -EINVAL (says
 * which file and what is unsupported or broken), -ENOMEM. */
int tokenizer_open(const char *dir, struct tokenizer **ret, struct err *err);
/* The same from the text of a tokenizer.json alone (tests, fuzzing). */
int tokenizer_open_json(const char *json, size_t bytes, struct tokenizer **ret, struct err *err);
void tokenizer_close(struct tokenizer *t);

int32_t tokenizer_vocab(const struct tokenizer *t); /* highest id + 1              */
int32_t tokenizer_bos(const struct tokenizer *t);   /* -1: none                    */
int32_t tokenizer_eos(const struct tokenizer *t);   /* -1: none                    */
bool tokenizer_adds_bos(const struct tokenizer *t); /* with special tokens asked for */
bool tokenizer_adds_eos(const struct tokenizer *t);
const char *tokenizer_chat_template(const struct tokenizer *t); /* NULL: none      */

/* Appends the ids of text. special: add BOS/EOS where the model's post-processor
 * does. Text that is not UTF-8: -EILSEQ. Special tokens written in the text are
 * recognised, as transformers does. Also -ENOMEM, -EOVERFLOW (a regular expression of
 * the tokenizer backtracks without end on this text). */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool special,
                     struct tokens *out);

/* A token as the vocabulary writes it ("<s>", "\u2581the"), NULL: no such id; and the
 * id of what it writes, -1: none. */
const char *tokenizer_token(const struct tokenizer *t, int32_t id);
int32_t tokenizer_id(const struct tokenizer *t, const char *token);

/* Writes the text of one id to buf; returns bytes needed (snprintf's way).
 * Byte-fallback pieces give their raw byte. For people: not a round trip. */
size_t tokenizer_piece(const struct tokenizer *t, int32_t id, char *buf, size_t size);

#endif
