/* fuzz_safetensors.c - any bytes as a safetensors file; what is accepted is read whole. */
#include <stddef.h>
#include <stdint.h>

#include "worker/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct safetensors *s = NULL;
    struct err err;
    volatile uint8_t sum = 0;

    if (safetensors_parse(data, bytes, "fuzz", &s, &err) < 0)
        return 0;
    for (size_t i = 0; i < safetensors_count(s); i++) {
        const struct safetensors_tensor *t = safetensors_at(s, i);
        for (size_t b = 0; b < t->bytes; b++)
            sum ^= ((const uint8_t *)t->data)[b];
        if (safetensors_find(s, t->name) != t)
            __builtin_trap();
    }
    (void)sum;
    (void)safetensors_metadata(s, "format");
    safetensors_close(s);
    return 0;
}
