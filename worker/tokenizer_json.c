/* tokenizer_json.c - see tokenizer_json.h. */
#include "worker/tokenizer_json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker/bpe.h"
#include "worker/tokenizer_added.h"
#include "worker/tokenizer_map.h"
#include "worker/tokenizer_norm.h"
#include "worker/tokenizer_regex.h"
#include "worker/tokenizer_split.h"

struct tokenizer_json {
    struct bpe *bpe;
    struct normalizer *normalizer;
    struct splitter *splitter;
    struct tokenizer_map *added_ids;
    struct added *raw;        /* found in the text as it is         */
    struct added *normalized; /* found in the text once normalized  */
    struct tokenizer_affixes affixes;
};

/* ---- reading ---- */

static int read_added(struct tokenizer_json *t, const json_t *json, size_t index, struct text *a,
                      struct text *b, struct err *err)
{
    const json_t *content = json_object_get(json, "content"), *id = json_object_get(json, "id");

    if (!json_is_string(content) || json_string_length(content) == 0 || !json_is_integer(id))
        return err_set(err, -EINVAL, "added_tokens[%zu] has no content or no id", index);
    struct added_token token = {
        .content = json_string_value(content),
        .n = json_string_length(content),
        .lstrip = json_is_true(json_object_get(json, "lstrip")),
        .rstrip = json_is_true(json_object_get(json, "rstrip")),
        .single_word = json_is_true(json_object_get(json, "single_word")),
    };
    if (json_integer_value(id) < 0 || json_integer_value(id) >= TOKENIZER_MAX_ID)
        return err_set(err, -EINVAL, "added_tokens[%zu]: id is not in [0, %d)", index,
                       TOKENIZER_MAX_ID);
    token.id = (int32_t)json_integer_value(id);
    const int32_t known = tokenizer_map_get(bpe_vocab(t->bpe), token.content, token.n);
    if (known >= 0 && known != token.id)
        return err_set(err, -EINVAL, "added_tokens: \"%.60s\" has id %d, in model.vocab it has %d",
                       token.content, (int)token.id, (int)known);
    int r = tokenizer_map_put(t->added_ids, token.content, token.n, token.id);
    /* As AddedToken's default: normalized unless special. */
    const json_t *normalized = json_object_get(json, "normalized");
    const bool norm =
        normalized ? json_is_true(normalized) : !json_is_true(json_object_get(json, "special"));
    if (!r && norm) {
        r = normalizer_run(t->normalizer, token.content, token.n, a, b);
        token.content = a->s;
        token.n = a->n;
        if (!r && token.n == 0)
            return err_set(err, -EINVAL, "added_tokens[%zu] is empty once normalized", index);
    }
    return r ? r : added_put(norm ? t->normalized : t->raw, &token);
}

static int read_all_added(struct tokenizer_json *t, const json_t *list, struct err *err)
{
    struct text a = {0}, b = {0};
    int r = 0;

    if (list && !json_is_null(list) && !json_is_array(list))
        return err_set(err, -EINVAL, "added_tokens is not a list");
    /* Special ones first: the first of two equal contents wins. */
    for (int special = 1; special >= 0 && !r; special--)
        for (size_t i = 0; i < json_array_size(list) && !r; i++) {
            const json_t *e = json_array_get(list, i);
            if (json_is_true(json_object_get(e, "special")) == (special == 1))
                r = read_added(t, e, i, &a, &b, err);
        }
    text_free(&a);
    text_free(&b);
    return r;
}

static int add_affix(struct tokenizer_json *t, const json_t *special, const json_t *names,
                     bool after, struct err *err)
{
    const char *name = json_string_value(json_object_get(names, "id"));
    const json_t *ids = json_object_get(json_object_get(special, name ? name : ""), "ids");
    int32_t *v = after ? t->affixes.after : t->affixes.before;
    int *n = after ? &t->affixes.n_after : &t->affixes.n_before;

    if (!name || !json_is_array(ids))
        return err_set(err, -EINVAL,
                       "post_processor TemplateProcessing: \"%.40s\" is not in special_tokens",
                       name ? name : "?");
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= TOKENIZER_MAX_ID || *n == TOKENIZER_JSON_AFFIX)
            return err_set(err, -EINVAL,
                           "post_processor TemplateProcessing: bad or more than %d ids",
                           TOKENIZER_JSON_AFFIX);
        v[(*n)++] = (int32_t)json_integer_value(id);
    }
    return 0;
}

static int read_template(struct tokenizer_json *t, const json_t *json, struct err *err)
{
    const json_t *single = json_object_get(json, "single");
    bool seen = false;

    t->affixes.n_before = t->affixes.n_after = 0;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *e = json_array_get(single, i);
        const json_t *special = json_object_get(e, "SpecialToken");
        const json_t *sequence = json_object_get(e, "Sequence");
        int r = 0;
        if (special)
            r = add_affix(t, json_object_get(json, "special_tokens"), special, seen, err);
        else if (sequence && !seen)
            seen = true;
        else
            r = err_set(err, -EINVAL,
                        "post_processor TemplateProcessing: single is not understood");
        if (r)
            return r;
    }
    if (!seen)
        return err_set(err, -EINVAL, "post_processor TemplateProcessing: single has no Sequence");
    return 0;
}

static int read_post(struct tokenizer_json *t, const json_t *json, int depth, struct err *err)
{
    const char *type = json_string_value(json_object_get(json, "type"));

    if (!json || json_is_null(json))
        return 0;
    if (type && !strcmp(type, "ByteLevel")) /* moves offsets, not ids */
        return 0;
    if (type && !strcmp(type, "TemplateProcessing"))
        return read_template(t, json, err);
    if (type && !strcmp(type, "Sequence") && depth < 8) {
        const json_t *list = json_object_get(json, "processors");
        for (size_t i = 0; i < json_array_size(list); i++) {
            const int r = read_post(t, json_array_get(list, i), depth + 1, err);
            if (r)
                return r;
        }
        return 0;
    }
    return err_set(err, -EINVAL,
                   "post_processor \"%.40s\" is not supported (TemplateProcessing, ByteLevel and "
                   "Sequence are)",
                   type ? type : "?");
}

int tokenizer_json_new(const json_t *root, struct tokenizer_json **ret, struct err *err)
{
    if (!json_is_object(root))
        return err_set(err, -EINVAL, "not a JSON object");
    struct tokenizer_json *t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    int r = bpe_new(json_object_get(root, "model"), &t->bpe, err);
    if (!r)
        r = normalizer_new(json_object_get(root, "normalizer"), &t->normalizer, err);
    if (!r)
        r = splitter_new(json_object_get(root, "pre_tokenizer"), &t->splitter, err);
    if (!r)
        r = tokenizer_map_new(64, &t->added_ids);
    if (!r)
        r = added_new(&t->raw);
    if (!r)
        r = added_new(&t->normalized);
    if (!r)
        r = read_all_added(t, json_object_get(root, "added_tokens"), err);
    if (!r)
        r = read_post(t, json_object_get(root, "post_processor"), 0, err);
    if (r) {
        tokenizer_json_free(t);
        return r;
    }
    *ret = t;
    return 0;
}

void tokenizer_json_free(struct tokenizer_json *t)
{
    if (!t)
        return;
    bpe_free(t->bpe);
    normalizer_free(t->normalizer);
    splitter_free(t->splitter);
    tokenizer_map_free(t->added_ids);
    added_free(t->raw);
    added_free(t->normalized);
    free(t);
}

/* ---- encoding ---- */

struct work {
    void *room; /* of the regular expressions */
    struct added_parts outer, inner;
    struct text normal, spare;
    struct pieces a, b;
    struct bpe_work bpe;
};

/* A normalized text without added tokens. */
static int encode_plain(const struct tokenizer_json *t, const char *s, size_t n, bool first,
                        struct work *w, struct tokens *out)
{
    int r = splitter_run(t->splitter, s, n, first, w->room, &w->a, &w->b);
    for (size_t i = 0; i < w->a.n && !r; i++)
        r = bpe_encode(t->bpe, w->a.text.s + w->a.v[i].off, w->a.v[i].n, &w->bpe, out);
    return r;
}

/* A text without raw added tokens, not yet normalized. */
static int encode_part(const struct tokenizer_json *t, const char *s, size_t n, bool first,
                       struct work *w, struct tokens *out)
{
    int r = normalizer_run(t->normalizer, s, n, &w->normal, &w->spare);
    if (r)
        return r;
    if (added_count(t->normalized) == 0)
        return encode_plain(t, w->normal.s, w->normal.n, first, w, out);
    r = added_split(t->normalized, w->normal.s, w->normal.n, w->room, &w->inner);
    for (size_t i = 0; i < w->inner.n && !r; i++) {
        const struct added_part *p = &w->inner.v[i];
        if (p->id >= 0)
            r = tokens_put(out, p->id);
        else
            r = encode_plain(t, w->normal.s + p->off, p->n, first && p->off == 0, w, out);
    }
    return r;
}

int tokenizer_json_encode(const struct tokenizer_json *t, const char *s, size_t n,
                          struct tokens *out)
{
    struct work w = {.room = tokenizer_regex_room()};
    int r = w.room ? added_split(t->raw, s, n, w.room, &w.outer) : -ENOMEM;

    for (size_t i = 0; i < w.outer.n && !r; i++) {
        const struct added_part *p = &w.outer.v[i];
        r = p->id >= 0 ? tokens_put(out, p->id)
                       : encode_part(t, s + p->off, p->n, p->off == 0, &w, out);
    }
    tokenizer_regex_room_free(w.room);
    free(w.outer.v);
    free(w.inner.v);
    text_free(&w.normal);
    text_free(&w.spare);
    pieces_free(&w.a);
    pieces_free(&w.b);
    bpe_work_free(&w.bpe);
    return r;
}

const struct tokenizer_affixes *tokenizer_json_affixes(const struct tokenizer_json *t)
{
    return &t->affixes;
}

int32_t tokenizer_json_end(const struct tokenizer_json *t)
{
    const int32_t a = tokenizer_map_end(bpe_vocab(t->bpe)), b = tokenizer_map_end(t->added_ids);
    return a > b ? a : b;
}

int32_t tokenizer_json_id(const struct tokenizer_json *t, const char *s, size_t n)
{
    const int32_t id = tokenizer_map_get(t->added_ids, s, n);
    return id >= 0 ? id : tokenizer_map_get(bpe_vocab(t->bpe), s, n);
}

const char *tokenizer_json_token(const struct tokenizer_json *t, int32_t id, size_t *ret_n,
                                 bool *ret_added)
{
    const char *s = tokenizer_map_string(t->added_ids, id, ret_n);
    if (ret_added)
        *ret_added = s != NULL;
    return s ? s : tokenizer_map_string(bpe_vocab(t->bpe), id, ret_n);
}

bool tokenizer_json_byte_level(const struct tokenizer_json *t)
{
    return splitter_is_byte_level(t->splitter);
}

bool tokenizer_json_byte_fallback(const struct tokenizer_json *t)
{
    return bpe_byte_fallback(t->bpe);
}
