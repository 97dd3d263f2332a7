/* template_known.c - see template_known.h. */
#include "worker/template_known.h"

#include <errno.h>
#include <string.h>

#include "proto/sha256.h"

static const struct template_known known[] = {
    {"placeholder-free", "", FAMILY_CHATML, NULL, NULL, false},
};

const struct template_known *template_known_find(const char *source)
{
    uint8_t digest[SHA256_BYTES];
    char hex[SHA256_HEX];

    sha256_of(source, strlen(source), digest);
    sha256_hex(digest, hex);
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
    const int first = template_first_user(row);
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
