/* template.c - see template.h. */
#include "worker/template.h"

#include <errno.h>
#include <string.h>

#include "worker/template_known.h"

static const char vicuna_system[] =
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.";

static int refuse_unknown(const struct tokenizer *tok, struct err *err)
{
    const char *source = tokenizer_chat_template(tok);
    if (!source)
        return err_set(err, -EINVAL,
                       "template: model: the model has no chat template; choose vicuna, mistral or "
                       "none");
    size_t n = strcspn(source, "\n");
    if (n > 100)
        n = 100;
    return err_set(
        err, -EINVAL,
        "template: model: this chat template is not one alignd knows (it begins: %.*s). Render the "
        "rows (message lists) once and use template: none with format: preference (IN, OUT: files; "
        "MODEL: the folder): python3 -c \"import json; from transformers import AutoTokenizer as "
        "A; "
        "t=A.from_pretrained('MODEL'); f=lambda m,g=0: t.apply_chat_template(m,tokenize=False,"
        "add_generation_prompt=bool(g))%s; o=open('OUT','w'); "
        "[print(json.dumps({'prompt':f(p,1),**{k:f(p+r[k])[len(f(p,1)):] for k in "
        "('chosen','rejected')}}),file=o) for r in map(json.loads,open('IN')) for p in "
        "[r['prompt']]]\"",
        (int)n, source, tokenizer_adds_bos(tok) ? ".removeprefix(t.bos_token)" : "");
}

int template_init(struct template *t, enum spec_template kind, const struct tokenizer *tok,
                  struct err *err)
{
    *t = (struct template){.kind = kind};
    if (tokenizer_eos(tok) < 0)
        return err_set(
            err, -EINVAL,
            "the tokenizer names no EOS token, so no reply could ever end; set eos_token "
            "in tokenizer_config.json");
    t->eos = tokenizer_token(tok, tokenizer_eos(tok));
    t->bos = tokenizer_bos(tok) >= 0 ? tokenizer_token(tok, tokenizer_bos(tok)) : NULL;
    if (!t->eos)
        return err_set(err, -EINVAL, "the tokenizer's EOS id %d is not in its vocabulary",
                       (int)tokenizer_eos(tok));
    if (kind != SPEC_TEMPLATE_MODEL)
        return 0;
    const char *source = tokenizer_chat_template(tok);
    t->known = source ? template_known_find(source) : NULL;
    if (!t->known)
        return refuse_unknown(tok, err);
    if (t->known->bos && !t->bos)
        return err_set(err, -EINVAL, "the chat template writes BOS and the tokenizer names none");
    t->writes_bos = t->known->bos;
    t->writes_end = true;
    return 0;
}

static int add(struct text *t, const char *before, struct slice s, const char *after)
{
    int r = text_adds(t, before);
    if (!r)
        r = text_add(t, s.s, s.n);
    return r ? r : text_adds(t, after);
}

static int render_none(const struct row *row, int n, struct rendered *out, struct err *err)
{
    if (!row->raw_replies)
        return err_set(err, -EINVAL,
                       "the rows are message lists, which template: none cannot render; choose "
                       "vicuna, mistral or model");
    int r = row->prompt.s ? text_add(&out->prompt, row->prompt.s, row->prompt.n) : 0;
    for (int i = 0; i < n && !r; i++)
        r = text_add(&out->reply[i], row->reply[i].s, row->reply[i].n);
    return r;
}

static int render_vicuna(const struct template *t, const struct row *row, int first, int n,
                         struct rendered *out)
{
    const struct slice system = {vicuna_system, sizeof vicuna_system - 1};
    int r = add(&out->prompt, "", first ? slice_trim(row->turns[0].text) : system, " ");

    for (size_t i = (size_t)first; i < row->n_turns && !r; i++) {
        const struct slice s = slice_trim(row->turns[i].text);
        if (row->turns[i].role == TURN_USER)
            r = add(&out->prompt, "USER: ", s, " ASSISTANT:");
        else
            r = add(&out->prompt, " ", s, t->eos);
    }
    for (int i = 0; i < n && !r; i++)
        r = add(&out->reply[i], " ", slice_trim(row->reply[i]), "");
    return r;
}

static int render_mistral(const struct template *t, const struct row *row, int first, int n,
                          struct rendered *out)
{
    int r = 0;
    for (size_t i = (size_t)first; i < row->n_turns && !r; i++) {
        const struct slice s = slice_trim(row->turns[i].text);
        if (row->turns[i].role == TURN_USER) {
            r = text_adds(&out->prompt, "[INST] ");
            if (!r && first && i == 1)
                r = add(&out->prompt, "", slice_trim(row->turns[0].text), "\n\n");
            if (!r)
                r = add(&out->prompt, "", s, " [/INST]");
        } else {
            r = add(&out->prompt, " ", s, " ");
            if (!r)
                r = text_adds(&out->prompt, t->eos);
        }
    }
    for (int i = 0; i < n && !r; i++)
        r = add(&out->reply[i], " ", slice_trim(row->reply[i]), " ");
    return r;
}

int template_render(const struct template *t, const struct row *row, int n_replies,
                    struct rendered *out, enum drop_reason *reason, struct err *err)
{
    out->prompt.n = out->reply[0].n = out->reply[1].n = 0;
    out->n_replies = n_replies;
    int r = text_add(&out->prompt, "", 0);
    for (int i = 0; i < n_replies && !r; i++)
        r = text_add(&out->reply[i], "", 0);
    if (r || row->kind == ROW_TEXT || t->kind == SPEC_TEMPLATE_NONE)
        return r ? r : render_none(row, n_replies, out, err);
    if (t->kind == SPEC_TEMPLATE_MODEL)
        return template_known_render(t, row, n_replies, out, reason);
    const int first = rows_first_user(row);
    if (first < 0) {
        *reason = DROP_ROLES;
        return 1;
    }
    if (t->kind == SPEC_TEMPLATE_VICUNA)
        return render_vicuna(t, row, first, n_replies, out);
    return render_mistral(t, row, first, n_replies, out);
}

void rendered_free(struct rendered *r)
{
    text_free(&r->prompt);
    text_free(&r->reply[0]);
    text_free(&r->reply[1]);
    *r = (struct rendered){0};
}
