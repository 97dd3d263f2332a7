/* fuzz_rows.c - the first byte chooses format, method, preference and template; the
 * rest is one row. What is accepted has a prompt, replies that differ, and renders. */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/rows.h"
#include "worker/template.h"
#include "worker/template_known.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const char *const known[] = {"Llama-2-chat", "Mistral-7B-Instruct-v0.1",
                                        "Meta-Llama-3-8B-Instruct", "Qwen2.5-Instruct"};
    struct row row = {0};
    struct rendered out = {0};
    struct err err;
    enum drop_reason reason = DROP_REASONS;

    if (bytes == 0)
        return 0;
    const char *json = (const char *)data + 1;
    struct rows_rule rule = {.format = SPEC_FORMAT_HH_RLHF + data[0] % 7,
                             .method = data[0] & 8 ? SPEC_SFT : SPEC_DPO,
                             .preference = data[0] & 16 ? SPEC_PREF_SAFE : SPEC_PREF_BETTER};
    const struct template t = {.kind = SPEC_TEMPLATE_NONE + (data[0] >> 5 & 3),
                               .eos = "</s>",
                               .bos = "<s>",
                               .known = template_known_named(known[data[0] >> 3 & 3])};
    (void)rows_detect(json, bytes - 1, rule.method, &rule.format, &err);
    const int r = rows_parse(&rule, json, bytes - 1, &row, &reason, &err);
    if (r == 1 && reason >= DROP_REASONS)
        __builtin_trap();
    if (r == 0) {
        const int n = row.kind == ROW_PAIR && rule.method == SPEC_DPO ? 2 : 1;
        const int k = template_render(&t, &row, n, &out, &reason, &err);
        if ((k == 0 && out.reply[0].n == 0) || (k < 0 && k != -EINVAL))
            __builtin_trap();
    }
    rendered_free(&out);
    rows_free(&row);
    return 0;
}
