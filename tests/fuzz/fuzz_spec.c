/* fuzz_spec.c - any bytes as a job file and as a resolved spec; what is accepted
 * resolves to a spec that is accepted again. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/spec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct spec_set set = {"learning_rate=1e-5"};
    struct spec_options o = {.file = "fuzz.yaml", .base_dir = "/tmp", .sets = &set, .n_sets = 1};
    struct spec_problems problems;
    struct spec *spec = NULL, *again = NULL;
    char *user = NULL, *resolved = NULL;
    struct err err;

    if (spec_from_resolved((const char *)data, bytes, &spec, &err) == 0) {
        (void)spec_place(spec, "1", &err);
        spec_free(spec);
    }
    if (spec_read((const char *)data, bytes, &o, &spec, &user, &resolved, &problems) == 0) {
        if (spec_from_resolved(resolved, strlen(resolved), &again, &err) < 0)
            __builtin_trap();
        spec_free(again);
        spec_free(spec);
        free(user);
        free(resolved);
    } else if (problems.n == 0) {
        __builtin_trap();
    }
    spec_problems_free(&problems);
    return 0;
}
