/* dataset.c - see dataset.h. */
#include "worker/dataset.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/sha256.h"
#include "worker/lines.h"
#include "worker/rng.h"
#include "worker/rows.h"
#include "worker/template.h"

/* More boundary rows than this, of 100, refuse the source (numerics.md 13). */
enum { MAX_BOUNDARY_PERCENT = 5 };

/* A usable row, its ids at `at` of the source's tokens: prompt, reply 0, reply 1. */
struct usable {
    int64_t row;
    size_t at;
    int32_t n_prompt, n_reply[2];
    bool cut[2], prompt_trained;
};

/* One source while it is read. */
struct source {
    const struct spec_source *spec;
    int index;
    bool eval;
    enum spec_format format;
    int64_t rows;
    int64_t dropped[DROP_REASONS];
    struct usable *v;
    size_t n, cap;
    struct tokens ids;
};

struct reader {
    const struct spec *spec;
    const struct tokenizer *tok;
    int32_t vocab;
    struct dataset *d;
    size_t dropped_cap;
    struct template template;
    struct row row;
    struct rendered text;
    struct text joined;
    struct tokens prompt, full;
};

const char *drop_reason_name(enum drop_reason r)
{
    static const char *const names[] = {
        "bad_json",   "missing_key",   "prompt_differs", "empty_prompt",    "empty_reply",
        "same_reply", "no_preference", "boundary",       "prompt_too_long", "roles",
    };
    _Static_assert(sizeof names / sizeof names[0] == DROP_REASONS, "a reason without a name");
    return (size_t)r < DROP_REASONS ? names[r] : "?";
}

/* ---- one row ---- */

static int record_drop(struct reader *rd, struct source *s, int64_t row, enum drop_reason reason)
{
    struct dataset *d = rd->d;
    if ((size_t)d->n_dropped == rd->dropped_cap) {
        const size_t cap = rd->dropped_cap ? 2 * rd->dropped_cap : 64;
        struct dropped_row *v = realloc(d->dropped, cap * sizeof *v);
        if (!v)
            return -ENOMEM;
        d->dropped = v;
        rd->dropped_cap = cap;
    }
    d->dropped[d->n_dropped++] = (struct dropped_row){s->index, row, reason, s->eval};
    s->dropped[reason]++;
    return 0;
}

static int encode(struct reader *rd, const char *s, size_t n, struct tokens *out, struct err *err)
{
    out->n = 0;
    const int r = tokenizer_encode(rd->tok, s, n, !rd->template.writes_bos, out);
    if (r == -EOVERFLOW)
        return err_set(err, r, "the tokenizer's regular expression gives up on this text");
    if (r)
        return r;
    /* The post-processor's EOS: a reply gets its own below, a prompt has none. */
    if (!rd->template.writes_bos && tokenizer_adds_eos(rd->tok) && out->n > 0)
        out->n--;
    for (size_t i = 0; i < out->n; i++)
        if (out->ids[i] >= rd->vocab)
            return err_set(err, -EINVAL,
                           "the tokenizer does not fit the model: token id %d, the model's "
                           "vocabulary has %d entries",
                           (int)out->ids[i], (int)rd->vocab);
    return 0;
}

static bool second_bos(const struct reader *rd, const struct tokens *t)
{
    const int32_t bos = tokenizer_bos(rd->tok);
    return bos >= 0 && t->n > 1 && t->ids[0] == bos && t->ids[1] == bos;
}

/* prompt + reply i tokenised as one text; EOS at its end; cut to max_length. Returns 1
 * when the prompt's ids are not how it begins. */
static int add_reply(struct reader *rd, struct source *s, struct usable *u, int i, struct err *err)
{
    struct tokens *full = &rd->full;
    const int32_t eos = tokenizer_eos(rd->tok);

    rd->joined.n = 0;
    if (text_add(&rd->joined, rd->text.prompt.s, rd->text.prompt.n) ||
        text_add(&rd->joined, rd->text.reply[i].s, rd->text.reply[i].n))
        return -ENOMEM;
    int r = encode(rd, rd->joined.s, rd->joined.n, full, err);
    if (r)
        return r;
    if (second_bos(rd, full))
        return err_set(err, -EINVAL, "a second BOS token: the text already begins with \"%s\"",
                       tokenizer_token(rd->tok, tokenizer_bos(rd->tok)));
    if (!rd->template.writes_end && (full->n == 0 || full->ids[full->n - 1] != eos) &&
        tokens_put(full, eos))
        return -ENOMEM;
    const size_t n_prompt = (size_t)u->n_prompt, max = (size_t)rd->spec->max_length;
    for (size_t k = 0; k < n_prompt && k < full->n; k++)
        if (full->ids[k] != rd->prompt.ids[k])
            return 1;
    if (full->n <= n_prompt)
        return 1;
    u->cut[i] = full->n > max;
    const size_t n = u->cut[i] ? max : full->n;
    for (size_t k = n_prompt; k < n; k++)
        if (tokens_put(&s->ids, full->ids[k]))
            return -ENOMEM;
    u->n_reply[i] = (int32_t)(n - n_prompt);
    return 0;
}

/* A text without a prompt: its first token is what the rest follows from. */
static int tokenize_text(struct reader *rd, struct source *s, struct usable *u, struct err *err)
{
    rd->prompt.n = 0;
    u->n_prompt = 0;
    u->prompt_trained = true;
    const int r = add_reply(rd, s, u, 0, err);
    if (r)
        return r < 0 ? r : DROP_EMPTY_REPLY + 1;
    if (u->n_reply[0] < 2)
        return DROP_EMPTY_REPLY + 1;
    u->n_prompt = 1;
    u->n_reply[0]--;
    return 0;
}

/* Appends the ids of rd->text to the source. 0; reason + 1; negative. */
static int tokenize(struct reader *rd, struct source *s, struct usable *u, struct err *err)
{
    if (rd->row.kind == ROW_TEXT)
        return tokenize_text(rd, s, u, err);
    int r = encode(rd, rd->text.prompt.s, rd->text.prompt.n, &rd->prompt, err);
    if (r)
        return r;
    if (rd->prompt.n == 0)
        return DROP_EMPTY_PROMPT + 1;
    if (rd->prompt.n >= (size_t)rd->spec->max_length)
        return DROP_PROMPT_TOO_LONG + 1;
    u->n_prompt = (int32_t)rd->prompt.n;
    u->prompt_trained = rd->spec->method == SPEC_SFT && !rd->spec->completion_only_loss;
    for (size_t i = 0; i < rd->prompt.n; i++)
        if (tokens_put(&s->ids, rd->prompt.ids[i]))
            return -ENOMEM;
    for (int i = 0; i < rd->text.n_replies; i++) {
        r = add_reply(rd, s, u, i, err);
        if (r)
            return r < 0 ? r : DROP_BOUNDARY + 1;
    }
    return 0;
}

static int add_usable(struct source *s, const struct usable *u)
{
    if (s->n == s->cap) {
        const size_t cap = s->cap ? 2 * s->cap : 1024;
        struct usable *v = realloc(s->v, cap * sizeof *v);
        if (!v)
            return -ENOMEM;
        s->v = v;
        s->cap = cap;
    }
    s->v[s->n++] = *u;
    return 0;
}

static int read_row(struct reader *rd, struct source *s, const struct rows_rule *rule,
                    const char *json, size_t n, int64_t number, struct err *err)
{
    enum drop_reason reason;
    struct usable u = {.row = number, .at = s->ids.n};
    const int replies = rd->spec->method == SPEC_DPO ? 2 : 1;

    s->rows++;
    int r = rows_parse(rule, json, n, &rd->row, &reason, err);
    if (!r)
        r = template_render(&rd->template, &rd->row, replies, &rd->text, &reason, err);
    if (r == 1)
        return record_drop(rd, s, number, reason);
    if (!r)
        r = tokenize(rd, s, &u, err);
    if (r > 0) {
        s->ids.n = u.at;
        return record_drop(rd, s, number, (enum drop_reason)(r - 1));
    }
    return r ? r : add_usable(s, &u);
}

/* ---- one source ---- */

static int no_usable(const struct source *s, struct err *err)
{
    int top = 0;
    for (int i = 1; i < DROP_REASONS; i++)
        if (s->dropped[i] > s->dropped[top])
            top = i;
    if (s->rows == 0)
        return err_set(err, -EINVAL, "%s: there are no rows in it", s->spec->path);
    return err_set(err, -EINVAL, "%s: none of its %lld row%s can be used; %lld dropped as %s",
                   s->spec->path, (long long)s->rows, s->rows == 1 ? "" : "s",
                   (long long)s->dropped[top], drop_reason_name((enum drop_reason)top));
}

static int check_source(const struct source *s, struct err *err)
{
    if (s->n == 0)
        return no_usable(s, err);
    if (s->dropped[DROP_BOUNDARY] * 100 > s->rows * MAX_BOUNDARY_PERCENT)
        return err_set(err, -EINVAL,
                       "%s: in %lld of %lld rows the prompt's tokens are not how prompt and reply "
                       "begin together (at most %d %% may be dropped for that): prompts must not "
                       "end in a space, or choose another template",
                       s->spec->path, (long long)s->dropped[DROP_BOUNDARY], (long long)s->rows,
                       MAX_BOUNDARY_PERCENT);
    if (s->spec->samples > 0 && (uint64_t)s->spec->samples > s->n)
        return err_set(err, -EINVAL,
                       "%s: samples is %lld, and only %zu of its %lld rows can be used",
                       s->spec->path, (long long)s->spec->samples, s->n, (long long)s->rows);
    return 0;
}

static int read_source(struct reader *rd, struct source *s, struct err *err)
{
    struct rows_rule rule = {s->spec->format, s->spec->preference, rd->spec->method};
    struct lines *lines = NULL;
    const char *json;
    size_t n;
    int64_t number = 0;

    if (rule.method == SPEC_DPO &&
        (rule.format == SPEC_FORMAT_PROMPT_COMPLETION || rule.format == SPEC_FORMAT_TEXT))
        return err_set(err, -EINVAL, "%s: format %s has one reply a row; DPO needs two",
                       s->spec->path, rows_format_name(rule.format));
    int r = template_init(&rd->template, s->spec->template, rd->tok, err);
    if (r)
        return err_prefix(err, r, "%s", s->spec->path);
    r = lines_open(s->spec->path, &lines, err);
    if (r)
        return r;
    while ((r = lines_next(lines, &json, &n, &number, err)) == 1) {
        int k = 0;
        if (rule.format == SPEC_FORMAT_AUTO)
            k = rows_detect(json, n, rule.method, &rule.format, err);
        if (k == 0) {
            k = read_row(rd, s, &rule, json, n, number, err);
        } else if (k == 1) { /* not an object: no format can be told from it */
            s->rows++;
            k = record_drop(rd, s, number, DROP_BAD_JSON);
        }
        if (k) {
            r = k == -ENOMEM ? err_set(err, k, "out of memory") : k;
            (void)err_prefix(err, r, "%s: row %lld", s->spec->path, (long long)number);
            break;
        }
    }
    lines_close(lines);
    s->format = rule.format;
    return r ? r : check_source(s, err);
}

/* ---- draws ---- */

/* Marks k of n: Fisher and Yates' shuffle, stopped after k draws. */
static int draw(uint64_t seed, enum rng_what what, uint64_t stream, size_t n, size_t k,
                uint8_t *mark)
{
    size_t *index = malloc((n + 1) * sizeof *index);
    if (!index)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        index[i] = i;
    for (size_t i = 0; i < k; i++) {
        const size_t j = i + rng_below(seed, what, stream, i, n - i);
        const size_t t = index[i];
        index[i] = index[j];
        index[j] = t;
        mark[index[i]] = 1;
    }
    free(index);
    return 0;
}

/* The examples of a set while it is collected; token pointers are offsets yet. */
struct set {
    struct example *v;
    int64_t n, cap;
};

static int add_example(struct set *set, const struct source *s, const struct usable *u,
                       struct tokens *arena)
{
    if (set->n == set->cap) {
        const int64_t cap = set->cap ? 2 * set->cap : 1024;
        struct example *v = realloc(set->v, (size_t)cap * sizeof *v);
        if (!v)
            return -ENOMEM;
        set->v = v;
        set->cap = cap;
    }
    const size_t n = (size_t)u->n_prompt + (size_t)u->n_reply[0] + (size_t)u->n_reply[1];
    struct example e = {.n_prompt = u->n_prompt,
                        .n_reply = {u->n_reply[0], u->n_reply[1]},
                        .source = s->index,
                        .row = u->row,
                        .cut = {u->cut[0], u->cut[1]},
                        .prompt_trained = u->prompt_trained};
    e.ordinal = arena->n; /* until fix_pointers */
    for (size_t i = 0; i < n; i++)
        if (tokens_put(arena, s->ids.ids[u->at + i]))
            return -ENOMEM;
    set->v[set->n++] = e;
    return 0;
}

/* Reads a source and keeps what `samples` draws of it, in file order. */
static int take_source(struct reader *rd, const struct spec_source *spec, int index, bool eval,
                       struct set *set, struct tokens *arena, struct err *err)
{
    struct source s = {.spec = spec, .index = index, .eval = eval};
    uint8_t *mark = NULL;
    int r = read_source(rd, &s, err);

    if (!r && spec->samples > 0) {
        mark = calloc(s.n, 1);
        r = mark ? draw(rd->spec->data_seed, RNG_SAMPLES, (uint64_t)index | (uint64_t)eval << 32,
                        s.n, (size_t)spec->samples, mark)
                 : -ENOMEM;
    }
    for (size_t i = 0; i < s.n && !r; i++)
        if (!mark || mark[i])
            r = add_example(set, &s, &s.v[i], arena);
    if (!r) {
        struct dataset *d = rd->d;
        (eval ? d->n_eval_rows : d->n_rows)[index] = s.rows;
        (eval ? d->n_eval_usable : d->n_usable)[index] = (int64_t)s.n;
        (eval ? d->eval_format : d->train_format)[index] = s.format;
    }
    free(mark);
    free(s.v);
    tokens_free(&s.ids);
    return r;
}

static int split(const struct spec *spec, struct set *train, struct set *eval, struct err *err)
{
    const int64_t k = spec->eval_split_from_train;
    int64_t kept = 0;

    if (k == 0)
        return 0;
    if (k >= train->n)
        return err_set(err, -EINVAL,
                       "eval.split_from_train is %lld, and train has only %lld example%s",
                       (long long)k, (long long)train->n, train->n == 1 ? "" : "s");
    uint8_t *mark = calloc((size_t)train->n, 1);
    eval->v = malloc((size_t)k * sizeof *eval->v);
    int r = mark && eval->v ? draw(spec->data_seed, RNG_SPLIT, 0, (size_t)train->n, (size_t)k, mark)
                            : -ENOMEM;
    for (int64_t i = 0; i < train->n && !r; i++) {
        if (mark[i])
            eval->v[eval->n++] = train->v[i];
        else
            train->v[kept++] = train->v[i];
    }
    if (!r)
        train->n = kept;
    free(mark);
    return r;
}

/* ---- the whole ---- */

static void fix_pointers(struct example *v, int64_t n, const int32_t *arena)
{
    for (int64_t i = 0; i < n; i++) {
        v[i].prompt = arena + v[i].ordinal;
        v[i].reply[0] = v[i].prompt + v[i].n_prompt;
        v[i].reply[1] = v[i].reply[0] + v[i].n_reply[0];
        v[i].ordinal = (uint64_t)i;
    }
}

static void summarize(struct dataset *d, const struct example *v, int64_t n, struct sha256 *sum)
{
    for (int64_t i = 0; i < n; i++) {
        const int32_t lengths[3] = {v[i].n_prompt, v[i].n_reply[0], v[i].n_reply[1]};
        const int32_t total = lengths[0] + lengths[1] + lengths[2];
        sha256_add(sum, lengths, sizeof lengths);
        sha256_add(sum, v[i].prompt, (size_t)total * sizeof(int32_t));
        d->n_cut += v[i].cut[0] + v[i].cut[1];
        if (total > d->longest)
            d->longest = total;
    }
}

static int read_all(struct reader *rd, struct set *train, struct set *eval, struct tokens *arena,
                    struct err *err)
{
    const struct spec *spec = rd->spec;
    int r = 0;

    for (int i = 0; i < spec->n_train && !r; i++)
        r = take_source(rd, &spec->train[i], i, false, train, arena, err);
    if (!r)
        r = split(spec, train, eval, err);
    for (int i = 0; i < spec->n_eval && spec->eval_split_from_train == 0 && !r; i++)
        r = take_source(rd, &spec->eval[i], i, true, eval, arena, err);
    if (!r && train->n == 0)
        r = err_set(err, -EINVAL, "train: there is no source");
    return r;
}

int dataset_open(const struct spec *spec, const struct tokenizer *tok, int32_t vocab,
                 struct dataset **ret, struct err *err)
{
    struct dataset *d = calloc(1, sizeof *d);
    struct reader rd = {.spec = spec, .tok = tok, .vocab = vocab, .d = d};
    struct set train = {0}, eval = {0};
    struct tokens arena = {0};
    struct sha256 sum;

    if (!d)
        return err_set(err, -ENOMEM, "out of memory");
    int r = read_all(&rd, &train, &eval, &arena, err);
    rows_free(&rd.row);
    rendered_free(&rd.text);
    text_free(&rd.joined);
    tokens_free(&rd.prompt);
    tokens_free(&rd.full);
    d->train = train.v;
    d->eval = eval.v;
    d->arena = arena.ids;
    if (r) {
        dataset_close(d);
        return r == -ENOMEM ? err_set(err, r, "out of memory for the data set") : r;
    }
    d->n_train = train.n;
    d->n_eval = eval.n;
    fix_pointers(d->train, d->n_train, arena.ids);
    fix_pointers(d->eval, d->n_eval, arena.ids);
    sha256_init(&sum);
    summarize(d, d->train, d->n_train, &sum);
    summarize(d, d->eval, d->n_eval, &sum);
    sha256_end(&sum, d->digest);
    *ret = d;
    return 0;
}

void dataset_close(struct dataset *d)
{
    if (!d)
        return;
    free(d->train);
    free(d->eval);
    free(d->dropped);
    free(d->arena);
    free(d);
}
