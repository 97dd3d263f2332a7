/* fuzz_ckpt.c - any bytes as a checkpoint's state.json, as they are and with a checksum
 * that fits, so that the fields behind it are reached; what is accepted prints and
 * parses back to the same. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "proto/sha256.h"
#include "worker/ckpt_state.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void round_trip(const struct ckpt_state *s, const uint8_t tensors[32])
{
    struct ckpt_state again;
    uint8_t tensors_again[32];
    struct text_out text = {0};

    ckpt_state_print(s, tensors, &text);
    if (text.error == 0 &&
        (ckpt_state_parse(text.p, text.bytes, &again, tensors_again) < 0 ||
         memcmp(tensors, tensors_again, 32) != 0 || again.global_step != s->global_step ||
         !moments_shape_equal(&again.adapter, &s->adapter) || strcmp(again.isa, s->isa) != 0))
        __builtin_trap();
    text_out_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct ckpt_state s;
    uint8_t tensors[32], digest[SHA256_BYTES];
    char hex[SHA256_HEX];
    struct text_out text = {0};

    if (ckpt_state_parse((const char *)data, bytes, &s, tensors) == 0)
        round_trip(&s, tensors);
    text_out_bytes(&text, data, bytes);
    sha256_of(data, bytes, digest);
    sha256_hex(digest, hex);
    text_out_add(&text, "  \"check\": \"%s\"\n}\n", hex);
    if (text.error == 0 && ckpt_state_parse(text.p, text.bytes, &s, tensors) == 0)
        round_trip(&s, tensors);
    text_out_free(&text);
    return 0;
}
