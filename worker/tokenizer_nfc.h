/* tokenizer_nfc.h - Unicode normalization form C (UAX #15). */
#ifndef WORKER_TOKENIZER_NFC_H
#define WORKER_TOKENIZER_NFC_H

#include <stddef.h>

#include "worker/text.h"

/* Appends the NFC of s[0..n), well-formed UTF-8. 0, -ENOMEM. */
int tokenizer_nfc(const char *s, size_t n, struct text *out);

#endif
