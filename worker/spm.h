/* spm.h - libsentencepiece behind C functions that never throw. */
#ifndef WORKER_SPM_H
#define WORKER_SPM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct spm;

/* The bytes of a tokenizer.model. NULL: message says why. */
struct spm *spm_parse(const void *bytes, size_t n, char *message, size_t size);
void spm_close(struct spm *s);

int32_t spm_vocab(const struct spm *s);
int32_t spm_bos(const struct spm *s); /* -1: none */
int32_t spm_eos(const struct spm *s);
/* The piece, valid as long as s; NULL for an id outside the vocabulary. */
const char *spm_piece(const struct spm *s, int32_t id);
bool spm_is_control(const struct spm *s, int32_t id); /* or the unknown piece */
bool spm_is_byte(const struct spm *s, int32_t id);
int32_t spm_id(const struct spm *s, const char *piece); /* -1: none */

/* *ret: malloc'ed ids, *ret_n of them. 0, -ENOMEM, -EIO. Safe from many threads. */
int spm_encode(const struct spm *s, const char *text, size_t n, int32_t **ret, size_t *ret_n);

#ifdef __cplusplus
}
#endif

#endif
