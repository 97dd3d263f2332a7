/* tokenizer_added.c - see tokenizer_added.h.
 *
 * A table of contents, and per first byte the lengths there are, longest first:
 * a position is looked up once per length. */
#include "worker/tokenizer_added.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker/text.h"
#include "worker/tokenizer_map.h"
#include "worker/tokenizer_regex.h"

struct added {
    struct tokenizer_map *index; /* content -> index into v */
    struct added_token *v;       /* content: owned          */
    size_t n, cap;
    struct {
        size_t *v; /* descending */
        size_t n;
    } lengths[256];
    struct tokenizer_regex *word; /* one word character */
};

int added_new(struct added **ret)
{
    struct added *a = calloc(1, sizeof *a);
    /* Rust's \w: Alphabetic, M, Nd, Pc, Join_Control; the ranges are Other_Alphabetic symbols. */
    static const char word[] =
        "[\\p{L}\\p{Nl}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}\\x{24b6}-\\x{24e9}"
        "\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}]";

    if (!a || tokenizer_map_new(32, &a->index) ||
        tokenizer_regex_new(word, sizeof word - 1, &a->word, NULL)) {
        added_free(a);
        return -ENOMEM;
    }
    *ret = a;
    return 0;
}

void added_free(struct added *a)
{
    if (!a)
        return;
    for (size_t i = 0; i < a->n; i++)
        free((char *)a->v[i].content);
    for (int c = 0; c < 256; c++)
        free(a->lengths[c].v);
    free(a->v);
    tokenizer_map_free(a->index);
    tokenizer_regex_free(a->word);
    free(a);
}

static int put_length(struct added *a, unsigned char first, size_t n)
{
    size_t i = 0;
    while (i < a->lengths[first].n && a->lengths[first].v[i] > n)
        i++;
    if (i < a->lengths[first].n && a->lengths[first].v[i] == n)
        return 0;
    size_t *v = realloc(a->lengths[first].v, (a->lengths[first].n + 1) * sizeof *v);
    if (!v)
        return -ENOMEM;
    memmove(v + i + 1, v + i, (a->lengths[first].n - i) * sizeof *v);
    v[i] = n;
    a->lengths[first].v = v;
    a->lengths[first].n++;
    return 0;
}

int added_put(struct added *a, const struct added_token *t)
{
    if (t->n == 0)
        return -EINVAL;
    if (tokenizer_map_get(a->index, t->content, t->n) >= 0)
        return 0;
    if (a->n == a->cap) {
        const size_t cap = a->cap ? 2 * a->cap : 16;
        struct added_token *v = realloc(a->v, cap * sizeof *v);
        if (!v)
            return -ENOMEM;
        a->v = v;
        a->cap = cap;
    }
    char *content = malloc(t->n + 1);
    if (!content)
        return -ENOMEM;
    memcpy(content, t->content, t->n);
    content[t->n] = '\0';
    a->v[a->n] = *t;
    a->v[a->n++].content = content;
    int r = put_length(a, (unsigned char)content[0], t->n);
    return r ? r : tokenizer_map_put(a->index, content, t->n, (int32_t)(a->n - 1));
}

size_t added_count(const struct added *a)
{
    return a->n;
}

static int put_part(struct added_parts *out, size_t off, size_t n, int32_t id)
{
    if (out->n == out->cap) {
        const size_t cap = out->cap ? 2 * out->cap : 16;
        struct added_part *v = realloc(out->v, cap * sizeof *v);
        if (!v)
            return -ENOMEM;
        out->v = v;
        out->cap = cap;
    }
    out->v[out->n++] = (struct added_part){off, n, id};
    return 0;
}

static size_t character_before(const char *s, size_t at)
{
    size_t i = at - 1;
    while (i > 0 && ((unsigned char)s[i] & 0xc0) == 0x80)
        i--;
    return i;
}

static bool is_word(const struct added *a, void *room, const char *s, size_t from, size_t to)
{
    size_t x, y;
    return tokenizer_regex_find(a->word, room, s + from, to - from, 0, &x, &y) == 1;
}

/* single_word: no word character touches either end. */
static bool stands_alone(const struct added *a, void *room, const char *s, size_t n, size_t start,
                         size_t end)
{
    if (start > 0 && is_word(a, room, s, character_before(s, start), start))
        return false;
    return end == n || !is_word(a, room, s, end, end + text_utf8_length(s + end, n - end));
}

static const struct added_token *match_at(const struct added *a, const char *s, size_t n)
{
    const unsigned char first = (unsigned char)s[0];
    for (size_t i = 0; i < a->lengths[first].n; i++) {
        const size_t k = a->lengths[first].v[i];
        if (k > n)
            continue;
        const int32_t index = tokenizer_map_get(a->index, s, k);
        if (index >= 0)
            return &a->v[index];
    }
    return NULL;
}

int added_split(const struct added *a, const char *s, size_t n, void *room, struct added_parts *out)
{
    size_t done = 0; /* everything before it is in a part */
    int r = 0;

    out->n = 0;
    for (size_t i = 0; i < n && !r;) {
        const struct added_token *t = match_at(a, s + i, n - i);
        if (!t) {
            i++;
            continue;
        }
        size_t start = i, end = i + t->n;
        i = end;
        if (t->single_word && !stands_alone(a, room, s, n, start, end))
            continue;
        uint32_t cp;
        while (t->lstrip && start > done) {
            const size_t before = character_before(s, start);
            (void)text_utf8_get(s + before, n - before, &cp);
            if (!text_is_space(cp))
                break;
            start = before;
        }
        while (t->rstrip && end < n) {
            const size_t k = text_utf8_get(s + end, n - end, &cp);
            if (!text_is_space(cp))
                break;
            end += k;
        }
        if (done < start)
            r = put_part(out, done, start - done, -1);
        if (!r)
            r = put_part(out, start, end - start, t->id);
        done = end;
    }
    if (!r && done < n)
        r = put_part(out, done, n - done, -1);
    return r;
}
