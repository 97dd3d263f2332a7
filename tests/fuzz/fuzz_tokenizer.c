/* fuzz_tokenizer.c - any bytes as a tokenizer.json, then (after a 0xFF) as a text for
 * it; every id that comes out is below the vocabulary's end and has a piece. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "worker/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const char plain[] = "abc  a\xc3\xa9 12 <s>\n";
    const uint8_t *end = bytes ? memchr(data, 0xff, bytes) : NULL;
    const char *text = end ? (const char *)end + 1 : plain;
    size_t n = end ? bytes - (size_t)(end + 1 - data) : sizeof plain - 1;
    struct tokenizer *t = NULL;
    struct tokens out = {0};
    struct err err;

    if (tokenizer_open_json((const char *)data, end ? (size_t)(end - data) : bytes, &t, &err))
        return 0;
    n = n < 4096 ? n : 4096; /* a hostile pattern may take seconds on more */
    if (tokenizer_encode(t, text, n, true, &out) == 0)
        for (size_t i = 0; i < out.n; i++) {
            char piece[16];
            if (out.ids[i] < 0)
                __builtin_trap();
            (void)tokenizer_piece(t, out.ids[i], piece, sizeof piece);
            (void)tokenizer_token(t, out.ids[i]);
        }
    tokens_free(&out);
    tokenizer_close(t);
    return 0;
}
