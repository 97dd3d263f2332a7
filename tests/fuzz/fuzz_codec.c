/* fuzz_codec.c - any bytes as a frame; what is accepted encodes again to what decodes the same. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct msg *m, *again;
    struct err err;
    uint8_t *out, *out2;
    size_t n, n2;
    uint32_t type, version;

    (void)codec_peek(data, bytes, &type, &version);
    if (codec_decode(data, bytes, &m, &err) < 0)
        return 0;
    if (codec_encode(m, &out, &n, &err) < 0 || codec_decode(out, n, &again, &err) < 0 ||
        codec_encode(again, &out2, &n2, &err) < 0)
        __builtin_trap();
    if (n != n2 || memcmp(out, out2, n) != 0)
        __builtin_trap();
    codec_free(m);
    codec_free(again);
    free(out);
    free(out2);
    return 0;
}
