/* fuzz_spool.c - any bytes as a line of metrics.jsonl; what is a row reads back the same. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "worker/spool.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct spool_row row, back;
    char line[2 * SPOOL_LINE_BYTES];
    size_t n;

    if (spool_parse((const char *)data, bytes, &row) < 0)
        return 0;
    n = spool_format(&row, line, sizeof line);
    if (n >= sizeof line || line[n - 1] != '\n' || memchr(line, '\n', n - 1))
        __builtin_trap();
    if (spool_parse(line, n - 1, &back) < 0 || back.n != row.n || back.n_values != row.n_values ||
        back.kind != row.kind || back.global_step != row.global_step)
        __builtin_trap();
    for (int i = 0; i < row.n_values; i++) {
        const double a = row.values[i].value, b = back.values[i].value;
        if (strcmp(row.values[i].name, back.values[i].name) != 0 ||
            (a != b && !(isnan(a) && isnan(b))))
            __builtin_trap();
    }
    return 0;
}
