/* tokenizer_split.c - see tokenizer_split.h. */
#include "worker/tokenizer_split.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker/tokenizer_regex.h"

enum { MAX_STEPS = 64, MAX_DEPTH = 8 };

enum behavior { ISOLATED, REMOVED, CONTIGUOUS, MERGED_PREVIOUS, MERGED_NEXT };

struct step {
    enum { STEP_SPLIT, STEP_BYTE_LEVEL, STEP_METASPACE } kind;
    struct tokenizer_regex *regex; /* STEP_SPLIT, and STEP_BYTE_LEVEL with use_regex */
    enum behavior behavior;
    bool invert;
    bool prefix_space; /* STEP_BYTE_LEVEL */
    char mark[4];      /* STEP_METASPACE: what a space becomes */
    size_t mark_n;
    enum { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER } prepend;
};

struct splitter {
    struct step steps[MAX_STEPS];
    size_t n;
    bool byte_level;
    struct {
        char s[4];
        size_t n;
    } byte_chars[256];
};

/* ---- pieces ---- */

void pieces_free(struct pieces *p)
{
    text_free(&p->text);
    free(p->v);
    *p = (struct pieces){0};
}

static int add_piece(struct pieces *p, size_t off, size_t n, bool first)
{
    if (n == 0)
        return 0;
    if (p->n == p->cap) {
        const size_t cap = p->cap ? 2 * p->cap : 64;
        struct piece *v = realloc(p->v, cap * sizeof *v);
        if (!v)
            return -ENOMEM;
        p->v = v;
        p->cap = cap;
    }
    p->v[p->n++] = (struct piece){off, n, first};
    return 0;
}

/* Collects the spans of one split into pieces by a behaviour. */
struct cutter {
    struct pieces *out;
    size_t base; /* offset of the subject in out->text */
    bool first;
    enum behavior behavior;
    bool any;        /* a span is held back in [start, end)  */
    bool last_match; /* what the span before was             */
    size_t start, end;
};

static int cutter_flush(struct cutter *c)
{
    if (!c->any)
        return 0;
    c->any = false;
    return add_piece(c->out, c->base + c->start, c->end - c->start, c->first && c->start == 0);
}

/* A span that is or is not a match. An empty span cuts, and makes no piece. */
static int cutter_span(struct cutter *c, size_t start, size_t end, bool match)
{
    bool join = false;
    if (c->any && c->behavior == CONTIGUOUS)
        join = match == c->last_match;
    else if (c->any && c->behavior == MERGED_PREVIOUS)
        join = match && !c->last_match;
    else if (c->any && c->behavior == MERGED_NEXT)
        join = c->last_match && !match;
    if (!join) {
        const int r = cutter_flush(c);
        if (r)
            return r;
        c->start = start;
    }
    c->any = !(match && c->behavior == REMOVED);
    c->end = end;
    c->last_match = match;
    return 0;
}

/* ---- steps ---- */

static int split(const struct step *st, void *room, const char *s, size_t n, struct cutter *c)
{
    size_t prev = 0, from = 0, start, end;
    int r = 0;

    while (from <= n && (r = tokenizer_regex_find(st->regex, room, s, n, from, &start, &end)) > 0) {
        if (start == end) { /* an empty match cuts; go on one character later */
            uint32_t cp;
            if (start >= n)
                break;
            from = start + text_utf8_get(s + start, n - start, &cp);
        } else {
            from = end;
        }
        r = prev != start ? cutter_span(c, prev, start, st->invert) : 0;
        if (!r)
            r = cutter_span(c, start, end, !st->invert);
        if (r)
            return r;
        prev = end;
    }
    if (r < 0)
        return r;
    r = prev != n ? cutter_span(c, prev, n, st->invert) : 0;
    return r ? r : cutter_flush(c);
}

static int run_split(const struct step *st, void *room, const struct pieces *in, struct pieces *out)
{
    int r = text_add(&out->text, in->text.s, in->text.n);
    for (size_t i = 0; i < in->n && !r; i++) {
        const struct piece *p = &in->v[i];
        struct cutter c = {.out = out, .base = p->off, .first = p->first, .behavior = st->behavior};
        r = split(st, room, in->text.s + p->off, p->n, &c);
    }
    return r;
}

static int add_bytes(const struct splitter *s, const char *p, size_t n, bool first,
                     struct pieces *out)
{
    const size_t off = out->text.n;
    if (text_reserve(&out->text, 2 * n))
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        const unsigned char b = (unsigned char)p[i];
        memcpy(out->text.s + out->text.n, s->byte_chars[b].s, s->byte_chars[b].n);
        out->text.n += s->byte_chars[b].n;
    }
    return add_piece(out, off, out->text.n - off, first);
}

static int run_byte_level(const struct splitter *s, const struct step *st, void *room,
                          const struct pieces *in, struct pieces *out)
{
    struct pieces cut = {0};
    int r = 0;

    for (size_t i = 0; i < in->n && !r; i++) {
        const struct piece *p = &in->v[i];
        const char *text = in->text.s + p->off;
        size_t n = p->n;
        cut.n = cut.text.n = 0;
        r = st->prefix_space && text[0] != ' ' ? text_add(&cut.text, " ", 1) : 0;
        if (!r)
            r = text_add(&cut.text, text, n);
        n = cut.text.n;
        struct cutter c = {.out = &cut, .first = p->first, .behavior = ISOLATED};
        if (!r)
            r = st->regex ? split(st, room, cut.text.s, n, &c) : add_piece(&cut, 0, n, p->first);
        for (size_t k = 0; k < cut.n && !r; k++)
            r = add_bytes(s, cut.text.s + cut.v[k].off, cut.v[k].n, cut.v[k].first, out);
    }
    pieces_free(&cut);
    return r;
}

static int run_metaspace(const struct step *st, void *room, const struct pieces *in,
                         struct pieces *out)
{
    int r = 0;
    for (size_t i = 0; i < in->n && !r; i++) {
        const struct piece *p = &in->v[i];
        const char *text = in->text.s + p->off;
        const size_t off = out->text.n;
        const bool marked =
            text[0] == ' ' || (p->n >= st->mark_n && !memcmp(text, st->mark, st->mark_n));
        if (!marked &&
            (st->prepend == PREPEND_ALWAYS || (st->prepend == PREPEND_FIRST && p->first)))
            r = text_add(&out->text, st->mark, st->mark_n);
        for (size_t k = 0; k < p->n && !r; k++)
            r = text[k] == ' ' ? text_add(&out->text, st->mark, st->mark_n)
                               : text_add(&out->text, text + k, 1);
        if (r)
            break;
        struct cutter c = {.out = out, .base = off, .first = p->first, .behavior = MERGED_NEXT};
        r = st->regex ? split(st, room, out->text.s + off, out->text.n - off, &c)
                      : add_piece(out, off, out->text.n - off, p->first);
    }
    return r;
}

int splitter_run(const struct splitter *s, const char *text, size_t n, bool first, void *room,
                 struct pieces *a, struct pieces *b)
{
    a->n = a->text.n = 0;
    int r = text_add(&a->text, text, n);
    if (!r)
        r = add_piece(a, 0, n, first);
    for (size_t i = 0; i < s->n && !r; i++) {
        const struct step *st = &s->steps[i];
        b->n = b->text.n = 0;
        if (st->kind == STEP_SPLIT)
            r = run_split(st, room, a, b);
        else if (st->kind == STEP_BYTE_LEVEL)
            r = run_byte_level(s, st, room, a, b);
        else
            r = run_metaspace(st, room, a, b);
        const struct pieces swap = *a;
        *a = *b;
        *b = swap;
    }
    return r;
}

/* ---- reading the description ---- */

uint32_t splitter_byte_char(unsigned char byte)
{
    uint32_t n = 0;
    for (unsigned b = 0; b <= byte; b++) {
        const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte)
            return printable ? b : 256 + n;
        n += !printable;
    }
    return 0;
}

static const char *type_of(const json_t *json)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    return type ? type : "?";
}

/* json[key] as true or false, `otherwise` when absent. */
static int read_bool(const json_t *json, const char *key, bool otherwise, bool *ret,
                     struct err *err)
{
    const json_t *v = json_object_get(json, key);
    if (v && !json_is_boolean(v))
        return err_set(err, -EINVAL, "pre_tokenizer %s: %s is not true or false", type_of(json),
                       key);
    *ret = v ? json_is_true(v) : otherwise;
    return 0;
}

static int read_split(const json_t *json, struct step *st, struct err *err)
{
    static const struct {
        const char *name;
        enum behavior behavior;
    } names[] = {{"Isolated", ISOLATED},
                 {"Removed", REMOVED},
                 {"Contiguous", CONTIGUOUS},
                 {"MergedWithPrevious", MERGED_PREVIOUS},
                 {"MergedWithNext", MERGED_NEXT}};
    const json_t *pattern = json_object_get(json, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    const json_t *string = json_object_get(pattern, "String");
    const char *name = json_string_value(json_object_get(json, "behavior"));
    size_t k = 0;

    while (name && k < sizeof names / sizeof names[0] && strcmp(names[k].name, name))
        k++;
    if (!name || k == sizeof names / sizeof names[0])
        return err_set(err, -EINVAL, "pre_tokenizer Split: behavior \"%.40s\" is not supported",
                       name ? name : "?");
    st->kind = STEP_SPLIT;
    st->behavior = names[k].behavior;
    const int r = read_bool(json, "invert", false, &st->invert, err);
    if (r)
        return r;
    if (json_is_string(regex))
        return tokenizer_regex_new(json_string_value(regex), json_string_length(regex), &st->regex,
                                   err);
    if (json_is_string(string))
        return tokenizer_regex_literal(json_string_value(string), json_string_length(string),
                                       &st->regex, err);
    return err_set(err, -EINVAL, "pre_tokenizer Split: pattern is neither Regex nor String");
}

static int read_byte_level(const json_t *json, struct splitter *s, struct step *st, struct err *err)
{
    static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|"
                               " ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    bool use_regex;

    st->kind = STEP_BYTE_LEVEL;
    st->behavior = ISOLATED;
    s->byte_level = true;
    int r = read_bool(json, "add_prefix_space", true, &st->prefix_space, err);
    if (!r)
        r = read_bool(json, "use_regex", true, &use_regex, err);
    if (!r && use_regex)
        r = tokenizer_regex_new(gpt2, sizeof gpt2 - 1, &st->regex, err);
    return r;
}

static int read_metaspace(const json_t *json, struct step *st, struct err *err)
{
    const json_t *mark = json_object_get(json, "replacement");
    const char *scheme = json_string_value(json_object_get(json, "prepend_scheme"));
    bool add, cut;

    st->kind = STEP_METASPACE;
    st->behavior = MERGED_NEXT;
    const size_t n = json_is_string(mark) ? json_string_length(mark) : 0;
    if (n == 0 || n > 4 || text_utf8_length(json_string_value(mark), n) != n)
        return err_set(err, -EINVAL, "pre_tokenizer Metaspace: replacement is not one character");
    memcpy(st->mark, json_string_value(mark), n);
    st->mark_n = n;
    int r = read_bool(json, "add_prefix_space", true, &add, err);
    if (!r)
        r = read_bool(json, "split", true, &cut, err);
    if (r)
        return r;
    if (!scheme)
        st->prepend = add ? PREPEND_ALWAYS : PREPEND_NEVER;
    else if (!strcmp(scheme, "always"))
        st->prepend = PREPEND_ALWAYS;
    else if (!strcmp(scheme, "first"))
        st->prepend = PREPEND_FIRST;
    else if (!strcmp(scheme, "never"))
        st->prepend = PREPEND_NEVER;
    else
        return err_set(err, -EINVAL,
                       "pre_tokenizer Metaspace: prepend_scheme \"%.20s\" is not supported",
                       scheme);
    return cut ? tokenizer_regex_literal(st->mark, n, &st->regex, err) : 0;
}

static int read_digits(const json_t *json, struct step *st, struct err *err)
{
    bool each;
    st->kind = STEP_SPLIT;
    const int r = read_bool(json, "individual_digits", false, &each, err);
    st->behavior = each ? ISOLATED : CONTIGUOUS;
    return r ? r : tokenizer_regex_new("\\p{N}", 5, &st->regex, err);
}

static int read_step(const json_t *json, struct splitter *s, int depth, struct err *err)
{
    const char *type = type_of(json);

    if (!json || json_is_null(json))
        return 0;
    if (depth > MAX_DEPTH || s->n == MAX_STEPS)
        return err_set(err, -EINVAL, "pre_tokenizer has more than %d steps or %d levels", MAX_STEPS,
                       MAX_DEPTH);
    if (!strcmp(type, "Sequence")) {
        const json_t *list = json_object_get(json, "pretokenizers");
        if (!json_is_array(list))
            return err_set(err, -EINVAL, "pre_tokenizer Sequence: pretokenizers is not a list");
        for (size_t i = 0; i < json_array_size(list); i++) {
            const int r = read_step(json_array_get(list, i), s, depth + 1, err);
            if (r)
                return r;
        }
        return 0;
    }
    struct step *st = &s->steps[s->n++];
    if (!strcmp(type, "Split"))
        return read_split(json, st, err);
    if (!strcmp(type, "ByteLevel"))
        return read_byte_level(json, s, st, err);
    if (!strcmp(type, "Metaspace"))
        return read_metaspace(json, st, err);
    if (!strcmp(type, "Digits"))
        return read_digits(json, st, err);
    return err_set(err, -EINVAL,
                   "pre_tokenizer \"%.40s\" is not supported (Split, ByteLevel, Metaspace, Digits "
                   "and Sequence are)",
                   type);
}

int splitter_new(const json_t *json, struct splitter **ret, struct err *err)
{
    struct splitter *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    for (int b = 0; b < 256; b++)
        s->byte_chars[b].n =
            text_utf8_put(splitter_byte_char((unsigned char)b), s->byte_chars[b].s);
    const int r = read_step(json, s, 0, err);
    if (r) {
        splitter_free(s);
        return r;
    }
    *ret = s;
    return 0;
}

void splitter_free(struct splitter *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n; i++)
        tokenizer_regex_free(s->steps[i].regex);
    free(s);
}

bool splitter_is_byte_level(const struct splitter *s)
{
    return s->byte_level;
}
