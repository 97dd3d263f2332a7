/* dataview.c - see dataview.h. */
#include "worker/dataview.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker/rows.h"

static const char *template_name(enum spec_template t)
{
    static const char *const names[] = {"none", "vicuna", "mistral", "model"};
    return (size_t)t < sizeof names / sizeof names[0] ? names[t] : "?";
}

/* ---- summary ---- */

/* Rows of a source that are examples; those of a split lie in both sets. */
static int64_t selected(const struct dataset *d, const struct spec *spec, int source, bool eval)
{
    const bool split = spec->eval_split_from_train > 0;
    int64_t n = 0;
    for (int64_t i = 0; i < d->n_train && !eval; i++)
        n += d->train[i].source == source;
    for (int64_t i = 0; i < d->n_eval && (eval || split); i++)
        n += d->eval[i].source == source;
    return n;
}

static int add_source(const struct dataset *d, const struct spec *spec, int i, bool eval,
                      struct text *out)
{
    const struct spec_source *s = eval ? &spec->eval[i] : &spec->train[i];
    int r = text_adds(out, i || eval ? ", {\"path\": " : "{\"path\": ");
    if (!r)
        r = text_add_json(out, s->path, strlen(s->path));
    if (r)
        return r;
    return text_addf(
        out,
        ", \"set\": \"%s\", \"format\": \"%s\", \"template\": \"%s\", \"rows\": %lld, "
        "\"usable\": %lld, \"selected\": %lld}",
        eval ? "eval" : "train", rows_format_name(eval ? d->eval_format[i] : d->train_format[i]),
        template_name(s->template), (long long)(eval ? d->n_eval_rows[i] : d->n_rows[i]),
        (long long)(eval ? d->n_eval_usable[i] : d->n_usable[i]),
        (long long)selected(d, spec, i, eval));
}

static int by_value(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

enum what { PROMPT, FIRST, SECOND, PAIR };

static int32_t length_of(const struct example *e, enum what what)
{
    switch (what) {
    case PROMPT:
        return e->n_prompt;
    case FIRST:
        return e->n_reply[0];
    case SECOND:
        return e->n_reply[1];
    case PAIR:
        break;
    }
    return e->n_prompt + e->n_reply[0] + e->n_reply[1];
}

/* Nearest rank: the smallest length that at least that share does not exceed. */
static int add_lengths(const struct dataset *d, enum what what, const char *name, int32_t *v,
                       struct text *out)
{
    size_t n = 0;
    for (int64_t i = 0; i < d->n_train; i++)
        v[n++] = length_of(&d->train[i], what);
    for (int64_t i = 0; i < d->n_eval; i++)
        v[n++] = length_of(&d->eval[i], what);
    if (n == 0)
        return 0;
    qsort(v, n, sizeof *v, by_value);
    return text_addf(out, "%s\"%s\": {\"p50\": %d, \"p95\": %d, \"max\": %d}",
                     what == PROMPT ? "" : ", ", name, (int)v[(n * 50 + 99) / 100 - 1],
                     (int)v[(n * 95 + 99) / 100 - 1], (int)v[n - 1]);
}

static int add_all_lengths(const struct dataset *d, const struct spec *spec, struct text *out)
{
    const bool pairs = spec->method == SPEC_DPO;
    int32_t *v = malloc(((size_t)d->n_train + (size_t)d->n_eval + 1) * sizeof *v);
    int r = v ? text_adds(out, ", \"lengths\": {") : -ENOMEM;

    if (!r)
        r = add_lengths(d, PROMPT, "prompt", v, out);
    if (!r)
        r = add_lengths(d, FIRST, pairs ? "chosen" : "completion", v, out);
    if (!r && pairs)
        r = add_lengths(d, SECOND, "rejected", v, out);
    if (!r)
        r = add_lengths(d, PAIR, "pair", v, out);
    free(v);
    return r ? r : text_adds(out, "}");
}

static int add_dropped_counts(const struct dataset *d, struct text *out)
{
    int64_t counts[DROP_REASONS] = {0};
    bool any = false;
    int r = text_adds(out, ", \"dropped\": {");

    for (int64_t i = 0; i < d->n_dropped; i++)
        counts[d->dropped[i].reason]++;
    for (int i = 0; i < DROP_REASONS && !r; i++)
        if (counts[i]) {
            r = text_addf(out, "%s\"%s\": %lld", any ? ", " : "",
                          drop_reason_name((enum drop_reason)i), (long long)counts[i]);
            any = true;
        }
    return r ? r : text_adds(out, "}");
}

/* The object without its closing brace. */
static int add_summary(const struct dataset *d, const struct spec *spec, struct text *out)
{
    int r = text_adds(out, "{\"sources\": [");
    for (int i = 0; i < spec->n_train && !r; i++)
        r = add_source(d, spec, i, false, out);
    for (int i = 0; i < spec->n_eval && spec->eval_split_from_train == 0 && !r; i++)
        r = add_source(d, spec, i, true, out);
    if (!r)
        r = text_addf(out, "], \"train\": %lld, \"eval\": %lld, \"cut\": %lld, \"longest\": %d",
                      (long long)d->n_train, (long long)d->n_eval, (long long)d->n_cut,
                      (int)d->longest);
    if (!r)
        r = add_dropped_counts(d, out);
    return r ? r : add_all_lengths(d, spec, out);
}

/* ---- rows ---- */

static int add_piece(const struct tokenizer *tok, int32_t id, struct text *out)
{
    struct text piece = {0}, shown = {0};
    const size_t n = tokenizer_piece(tok, id, NULL, 0);
    int r = text_reserve(&piece, n);

    if (!r) {
        (void)tokenizer_piece(tok, id, piece.s, n + 1);
        piece.n = n;
    }
    for (size_t i = 0; i < piece.n && !r;) {
        const size_t k = text_utf8_length(piece.s + i, piece.n - i);
        r = k ? text_add(&shown, piece.s + i, k)
              : text_addf(&shown, "<0x%02X>", (unsigned)(unsigned char)piece.s[i]);
        i += k ? k : 1;
    }
    if (!r)
        r = text_add_json(out, shown.s, shown.n);
    text_free(&piece);
    text_free(&shown);
    return r;
}

static int add_token(const struct tokenizer *tok, int32_t id, bool trained, const char *kind,
                     bool first, struct text *out)
{
    int r = text_addf(out, "%s[%d, ", first ? "" : ", ", (int)id);
    if (!r)
        r = add_piece(tok, id, out);
    return r ? r : text_addf(out, ", %s, \"%s\"]", trained ? "true" : "false", kind);
}

static int add_reply(const struct example *e, int half, const char *name,
                     const struct tokenizer *tok, struct text *out)
{
    int r = text_addf(out, ", \"%s\": [", name);
    for (int32_t i = 0; i < e->n_reply[half] && !r; i++) {
        const int32_t id = e->reply[half][i];
        const bool eos = i + 1 == e->n_reply[half] && id == tokenizer_eos(tok);
        r = add_token(tok, id, true, eos ? "eos" : "reply", i == 0, out);
    }
    return r ? r : text_adds(out, "]");
}

static int add_row(const struct example *e, const struct spec *spec, const struct tokenizer *tok,
                   struct text *out)
{
    const char *path = spec->train[e->source].path;
    int r = text_adds(out, "{\"source\": ");
    if (!r)
        r = text_add_json(out, path, strlen(path));
    if (!r)
        r = text_addf(out, ", \"row\": %lld, \"ordinal\": %lld, \"cut\": [%s, %s], \"prompt\": [",
                      (long long)e->row, (long long)e->ordinal, e->cut[0] ? "true" : "false",
                      e->cut[1] ? "true" : "false");
    for (int32_t i = 0; i < e->n_prompt && !r; i++) {
        const bool bos = i == 0 && e->prompt[i] == tokenizer_bos(tok);
        r = add_token(tok, e->prompt[i], e->prompt_trained && i > 0, bos ? "bos" : "prompt", i == 0,
                      out);
    }
    if (!r)
        r = text_adds(out, "]");
    if (!r)
        r = add_reply(e, 0, spec->method == SPEC_DPO ? "chosen" : "completion", tok, out);
    if (!r && spec->method == SPEC_DPO)
        r = add_reply(e, 1, "rejected", tok, out);
    return r ? r : text_adds(out, "}");
}

int dataview_show(const struct dataset *d, const struct spec *spec, const struct tokenizer *tok,
                  int64_t n, struct text *out)
{
    int r = add_summary(d, spec, out);
    if (!r)
        r = text_adds(out, ", \"rows\": [");
    for (int64_t i = 0; i < n && i < d->n_train && !r; i++) {
        r = i ? text_adds(out, ", ") : 0;
        if (!r)
            r = add_row(&d->train[i], spec, tok, out);
    }
    return r ? r : text_adds(out, "]}");
}
