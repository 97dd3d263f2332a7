/* template_known.c - see template_known.h. */
#include "worker/template_known.h"

#include <errno.h>
#include <string.h>

#include "proto/sha256.h"

static const struct template_known known[] = {
    {.name = "Llama-2-chat",
     .sha256 = "9780fae5bfea3cfd7be37d328c6edfd296a8869be8131495bbe7eb37e780c88c",
     .family = FAMILY_LLAMA2,
     .bos = true},
    {.name = "Mistral-7B-Instruct-v0.1",
     .sha256 = "7e995b379ec01747807246483647cd99030abf331653f1119e16d7ac041a3495",
     .family = FAMILY_MISTRAL,
     .after_eos = " ",
     .bos = true},
    {.name = "Mistral-7B-Instruct-v0.2",
     .sha256 = "26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7",
     .family = FAMILY_MISTRAL,
     .after_eos = "",
     .bos = true},
    {.name = "Meta-Llama-3-8B-Instruct",
     .sha256 = "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122",
     .family = FAMILY_LLAMA3,
     .bos = true},
    {.name = "Qwen2.5-Instruct",
     .sha256 = "a18cc698dd45623eb707279d08e66f7bb8d76afc89ead84016b88487b395b5cc",
     .family = FAMILY_CHATML,
     .system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    {.name = "Qwen3-Instruct-2507",
     .sha256 = "aa39eed4cbfdd57aeaab518e83d06945f00df6afefba6eb985b6b85060cade95",
     .family = FAMILY_CHATML},
    {.name = "Qwen2-Instruct",
     .sha256 = "793202280c0910ab26bc6eb57c8212c2417324c6d8c4efd0d10d59092ab3e3eb",
     .family = FAMILY_CHATML,
     .system = "You are a helpful assistant."},
    {.name = "ChatML",
     .sha256 = "153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3",
     .family = FAMILY_CHATML},
    {.name = "zephyr-7b-beta",
     .sha256 = "66291cf0045c2425a3a667cf3cbb7af2b11f09e025c02f97245323ab79119362",
     .family = FAMILY_ZEPHYR},
};

/* The digest of a source in which \n, which is written both ways in JSON, is a newline,
 * without those at its end. */
static void digest_of(const char *source, char hex[SHA256_HEX])
{
    uint8_t digest[SHA256_BYTES];
    struct sha256 sum;
    size_t n = strlen(source);

    sha256_init(&sum);
    while (n > 0 && source[n - 1] == '\n')
        n--;
    for (size_t i = 0; i < n;) {
        const char *escape = memmem(source + i, n - i, "\\n", 2);
        const size_t k = escape ? (size_t)(escape - (source + i)) : n - i;
        sha256_add(&sum, source + i, k);
        if (escape)
            sha256_add(&sum, "\n", 1);
        i += k + (escape ? 2 : 0);
    }
    sha256_end(&sum, digest);
    sha256_hex(digest, hex);
}

const struct template_known *template_known_find(const char *source)
{
    char hex[SHA256_HEX];

    digest_of(source, hex);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (!strcmp(known[i].sha256, hex))
            return &known[i];
    return NULL;
}

const struct template_known *template_known_named(const char *name)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (!strcmp(known[i].name, name))
            return &known[i];
    return NULL;
}

/* before + text + after. */
static int add(struct text *t, const char *before, struct slice s, const char *after)
{
    int r = text_adds(t, before);
    if (!r)
        r = text_add(t, s.s, s.n);
    return r ? r : text_adds(t, after);
}

static const char *role_name(enum turn_role role)
{
    return role == TURN_SYSTEM ? "system" : role == TURN_USER ? "user" : "assistant";
}

static int render_llama2(const struct template *t, const struct row *row, size_t first, int n,
                         struct rendered *out)
{
    int r = 0;
    for (size_t i = first; i < row->n_turns && !r; i++) {
        if (row->turns[i].role == TURN_ASSISTANT) {
            r = add(&out->prompt, " ", slice_trim(row->turns[i].text), " ");
            if (!r)
                r = text_adds(&out->prompt, t->eos);
            continue;
        }
        r = text_adds(&out->prompt, t->bos);
        if (!r)
            r = text_adds(&out->prompt, "[INST] ");
        if (!r && first && i == 1) { /* the source strips both texts as one */
            r = add(&out->prompt, "<<SYS>>\n", row->turns[0].text, "\n<</SYS>>\n\n");
            struct slice s = slice_trim(row->turns[i].text);
            s.n += (size_t)(s.s - row->turns[i].text.s);
            s.s = row->turns[i].text.s;
            if (!r)
                r = add(&out->prompt, "", s, " [/INST]");
        } else if (!r) {
            r = add(&out->prompt, "", slice_trim(row->turns[i].text), " [/INST]");
        }
    }
    for (int i = 0; i < n && !r; i++) {
        r = add(&out->reply[i], " ", slice_trim(row->reply[i]), " ");
        if (!r)
            r = text_adds(&out->reply[i], t->eos);
    }
    return r;
}

static int render_mistral(const struct template *t, const struct row *row, int n,
                          struct rendered *out)
{
    int r = text_adds(&out->prompt, t->bos);
    for (size_t i = 0; i < row->n_turns && !r; i++) {
        if (row->turns[i].role == TURN_USER) {
            r = add(&out->prompt, "[INST] ", row->turns[i].text, " [/INST]");
        } else {
            r = add(&out->prompt, "", row->turns[i].text, t->eos);
            if (!r)
                r = text_adds(&out->prompt, t->known->after_eos);
        }
    }
    for (int i = 0; i < n && !r; i++) {
        r = add(&out->reply[i], "", row->reply[i], t->eos);
        if (!r)
            r = text_adds(&out->reply[i], t->known->after_eos);
    }
    return r;
}

static int render_llama3(const struct template *t, const struct row *row, int n,
                         struct rendered *out)
{
    int r = text_adds(&out->prompt, t->bos);
    for (size_t i = 0; i < row->n_turns && !r; i++) {
        r = text_addf(&out->prompt, "<|start_header_id|>%s<|end_header_id|>\n\n",
                      role_name(row->turns[i].role));
        if (!r)
            r = add(&out->prompt, "", slice_trim(row->turns[i].text), "<|eot_id|>");
    }
    if (!r)
        r = text_adds(&out->prompt, "<|start_header_id|>assistant<|end_header_id|>\n\n");
    for (int i = 0; i < n && !r; i++)
        r = add(&out->reply[i], "", slice_trim(row->reply[i]), "<|eot_id|>");
    return r;
}

static int render_chatml(const struct template *t, const struct row *row, int n,
                         struct rendered *out)
{
    int r = 0;
    if (t->known->system && row->turns[0].role != TURN_SYSTEM)
        r = text_addf(&out->prompt, "<|im_start|>system\n%s<|im_end|>\n", t->known->system);
    for (size_t i = 0; i < row->n_turns && !r; i++) {
        r = text_addf(&out->prompt, "<|im_start|>%s\n", role_name(row->turns[i].role));
        if (!r)
            r = add(&out->prompt, "", row->turns[i].text, "<|im_end|>\n");
    }
    if (!r)
        r = text_adds(&out->prompt, "<|im_start|>assistant\n");
    for (int i = 0; i < n && !r; i++)
        r = add(&out->reply[i], "", row->reply[i], "<|im_end|>\n");
    return r;
}

static int render_zephyr(const struct template *t, const struct row *row, int n,
                         struct rendered *out)
{
    int r = 0;
    for (size_t i = 0; i < row->n_turns && !r; i++) {
        r = text_addf(&out->prompt, "<|%s|>\n", role_name(row->turns[i].role));
        if (!r)
            r = add(&out->prompt, "", row->turns[i].text, t->eos);
        if (!r)
            r = text_adds(&out->prompt, "\n");
    }
    if (!r)
        r = text_adds(&out->prompt, "<|assistant|>\n");
    for (int i = 0; i < n && !r; i++) {
        r = add(&out->reply[i], "", row->reply[i], t->eos);
        if (!r)
            r = text_adds(&out->reply[i], "\n");
    }
    return r;
}

int template_known_render(const struct template *t, const struct row *row, int n_replies,
                          struct rendered *out, enum drop_reason *reason)
{
    const int first = rows_first_user(row);
    const bool strict = t->known->family == FAMILY_LLAMA2 || t->known->family == FAMILY_MISTRAL;

    if (row->n_turns == 0 || row->odd_turns || (strict && first < 0) ||
        (t->known->family == FAMILY_MISTRAL && first != 0)) {
        *reason = DROP_ROLES;
        return 1;
    }
    switch (t->known->family) {
    case FAMILY_LLAMA2:
        return render_llama2(t, row, (size_t)first, n_replies, out);
    case FAMILY_MISTRAL:
        return render_mistral(t, row, n_replies, out);
    case FAMILY_LLAMA3:
        return render_llama3(t, row, n_replies, out);
    case FAMILY_ZEPHYR:
        return render_zephyr(t, row, n_replies, out);
    case FAMILY_CHATML:
        break;
    }
    return render_chatml(t, row, n_replies, out);
}
