/* bpe.c - see bpe.h. */
#include "worker/bpe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/text.h"

struct bpe_symbol {
    int32_t id;
    int32_t prev, next; /* -1: none */
    bool gone;
    uint32_t rank; /* merge_few: of the pair with the next symbol, NO_RANK: none */
    int32_t to;    /* what that pair becomes                                     */
};

struct bpe_merge {
    uint64_t key; /* rank << 32 | position: the order merges happen in */
    int32_t id;   /* what the pair becomes                             */
};

struct pair {
    uint64_t key; /* left id << 32 | right id; EMPTY: free */
    uint32_t rank;
    int32_t id;
};

#define EMPTY   UINT64_MAX
#define NO_RANK UINT32_MAX

/* Up to so many symbols the best pair is found by looking at all of them. */
enum { FEW = 24 };

struct bpe {
    struct tokenizer_map *vocab;
    struct pair *pairs;
    size_t n_pairs; /* slots, a power of two */
    int32_t byte_id[256];
    int32_t unk;
    /* Which characters may come to stand on the two sides of a seam that a merge closes:
     * where none may, a word falls into parts that are merged on their own. */
    uint64_t *seams; /* a set of (last, first), open addressing; 0: free */
    size_t n_seams;
    uint32_t *first, *last; /* of a piece's characters, by id */
    bool byte_fallback, fuse_unk, ignore_merges;
};

static struct pair *find_pair(const struct bpe *b, int32_t left, int32_t right)
{
    const uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t h = key * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
    for (size_t i = h & (b->n_pairs - 1);; i = (i + 1) & (b->n_pairs - 1)) {
        struct pair *p = &b->pairs[i];
        if (p->key == key || p->key == EMPTY)
            return p;
    }
}

static int read_vocab(struct bpe *b, json_t *vocab, struct err *err)
{
    const char *key;
    json_t *value;

    if (!json_is_object(vocab))
        return err_set(err, -EINVAL, "model.vocab is not an object of pieces and ids");
    int r = tokenizer_map_new(json_object_size(vocab), &b->vocab);
    if (r)
        return r;
    json_object_foreach(vocab, key, value)
    {
        const json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= TOKENIZER_MAX_ID)
            return err_set(err, -EINVAL, "model.vocab: the id of \"%.60s\" is not in [0, %d)", key,
                           TOKENIZER_MAX_ID);
        r = tokenizer_map_put(b->vocab, key, strlen(key), (int32_t)id);
        if (r)
            return r;
    }
    return 0;
}

/* Both forms: ["a", "b"] and "a b". */
static int merge_halves(const json_t *merge, const char **left, size_t *left_n, const char **right,
                        size_t *right_n)
{
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        const json_t *a = json_array_get(merge, 0), *b = json_array_get(merge, 1);
        if (!json_is_string(a) || !json_is_string(b))
            return -EINVAL;
        *left = json_string_value(a);
        *left_n = json_string_length(a);
        *right = json_string_value(b);
        *right_n = json_string_length(b);
        return 0;
    }
    if (!json_is_string(merge))
        return -EINVAL;
    const char *s = json_string_value(merge), *space = strchr(s, ' ');
    if (!space || strchr(space + 1, ' '))
        return -EINVAL;
    *left = s;
    *left_n = (size_t)(space - s);
    *right = space + 1;
    *right_n = strlen(space + 1);
    return 0;
}

/* Where (last, first) is, or would be put, in the set of seams. */
static uint64_t *find_seam(const struct bpe *b, uint32_t last, uint32_t first)
{
    const uint64_t key = ((uint64_t)last << 32 | first) + 1;
    uint64_t h = key * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
    for (size_t i = h & (b->n_seams - 1);; i = (i + 1) & (b->n_seams - 1))
        if (b->seams[i] == key || b->seams[i] == 0)
            return &b->seams[i];
}

static int find_ends(struct bpe *b)
{
    const int32_t n = tokenizer_map_end(b->vocab);
    b->first = calloc((size_t)n + 1, sizeof *b->first);
    b->last = calloc((size_t)n + 1, sizeof *b->last);
    if (!b->first || !b->last)
        return -ENOMEM;
    for (int32_t id = 0; id < n; id++) {
        size_t k;
        const char *s = tokenizer_map_string(b->vocab, id, &k);
        if (!s || k == 0)
            continue;
        size_t i = k - 1;
        while (i > 0 && ((unsigned char)s[i] & 0xc0) == 0x80)
            i--;
        (void)text_utf8_get(s, k, &b->first[id]);
        (void)text_utf8_get(s + i, k - i, &b->last[id]);
    }
    return 0;
}

static int add_merge(struct bpe *b, const json_t *merge, size_t index, uint32_t rank,
                     struct text *joined, struct err *err)
{
    const char *left, *right;
    size_t left_n, right_n;

    if (merge_halves(merge, &left, &left_n, &right, &right_n))
        return err_set(err, -EINVAL, "model.merges[%zu] is neither [\"a\", \"b\"] nor \"a b\"",
                       index);
    joined->n = 0;
    if (text_add(joined, left, left_n) || text_add(joined, right, right_n))
        return -ENOMEM;
    const int32_t l = tokenizer_map_get(b->vocab, left, left_n);
    const int32_t r = tokenizer_map_get(b->vocab, right, right_n);
    const int32_t id = tokenizer_map_get(b->vocab, joined->s, joined->n);
    if (l < 0 || r < 0 || id < 0)
        return err_set(err, -EINVAL, "model.merges[%zu]: \"%.40s\" is not in model.vocab", index,
                       l < 0   ? left
                       : r < 0 ? right
                               : joined->s);
    struct pair *p = find_pair(b, l, r);
    *p = (struct pair){(uint64_t)(uint32_t)l << 32 | (uint32_t)r, rank, id};
    *find_seam(b, b->last[l], b->first[r]) = ((uint64_t)b->last[l] << 32 | b->first[r]) + 1;
    return 0;
}

static int read_merges(struct bpe *b, const json_t *merges, struct err *err)
{
    struct text joined = {0};
    uint32_t rank = 0;
    int r = 0;

    if (!json_is_array(merges))
        return err_set(err, -EINVAL, "model.merges is not a list");
    const size_t n = json_array_size(merges);
    b->n_pairs = 64;
    while (b->n_pairs < 2 * n)
        b->n_pairs *= 2;
    b->n_seams = b->n_pairs;
    b->pairs = malloc(b->n_pairs * sizeof *b->pairs);
    b->seams = calloc(b->n_seams, sizeof *b->seams);
    if (!b->pairs || !b->seams || find_ends(b))
        return -ENOMEM;
    for (size_t i = 0; i < b->n_pairs; i++)
        b->pairs[i].key = EMPTY;
    for (size_t i = 0; i < n && !r; i++) {
        const json_t *m = json_array_get(merges, i);
        if (json_is_string(m) && !strncmp(json_string_value(m), "#version", 8))
            continue;
        r = add_merge(b, m, i, rank++, &joined, err);
    }
    text_free(&joined);
    return r;
}

static int read_options(struct bpe *b, const json_t *model, struct err *err)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const json_t *dropout = json_object_get(model, "dropout");

    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0.0)
        return err_set(err, -EINVAL, "model.dropout is not supported: encoding must be repeatable");
    for (size_t i = 0; i < 2; i++) {
        const json_t *a = json_object_get(model, affixes[i]);
        if (a && !json_is_null(a) && !(json_is_string(a) && json_string_length(a) == 0))
            return err_set(err, -EINVAL, "model.%s is not supported (only null)", affixes[i]);
    }
    b->byte_fallback = json_is_true(json_object_get(model, "byte_fallback"));
    b->fuse_unk = json_is_true(json_object_get(model, "fuse_unk"));
    b->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    b->unk = -1;
    const json_t *unk = json_object_get(model, "unk_token");
    if (json_is_string(unk)) {
        b->unk = tokenizer_map_get(b->vocab, json_string_value(unk), json_string_length(unk));
        if (b->unk < 0)
            return err_set(err, -EINVAL, "model.unk_token \"%.60s\" is not in model.vocab",
                           json_string_value(unk));
    }
    for (int i = 0; i < 256; i++) {
        char code[8];
        (void)snprintf(code, sizeof code, "<0x%02X>", (unsigned)i);
        b->byte_id[i] = tokenizer_map_get(b->vocab, code, 6);
    }
    return 0;
}

int bpe_new(const json_t *model, struct bpe **ret, struct err *err)
{
    if (!json_is_object(model))
        return err_set(err, -EINVAL, "there is no \"model\" object");
    const json_t *type = json_object_get(model, "type");
    if (type && !(json_is_string(type) && !strcmp(json_string_value(type), "BPE")))
        return err_set(err, -EINVAL, "model type \"%.40s\" is not supported (only BPE)",
                       json_is_string(type) ? json_string_value(type) : "?");
    struct bpe *b = calloc(1, sizeof *b);
    if (!b)
        return -ENOMEM;
    int r = read_vocab(b, json_object_get(model, "vocab"), err);
    if (!r)
        r = read_merges(b, json_object_get(model, "merges"), err);
    if (!r)
        r = read_options(b, model, err);
    if (r) {
        bpe_free(b);
        return r == -ENOMEM ? err_set(err, r, "out of memory") : r;
    }
    *ret = b;
    return 0;
}

void bpe_free(struct bpe *b)
{
    if (!b)
        return;
    tokenizer_map_free(b->vocab);
    free(b->pairs);
    free(b->seams);
    free(b->first);
    free(b->last);
    free(b);
}

const struct tokenizer_map *bpe_vocab(const struct bpe *b)
{
    return b->vocab;
}

bool bpe_byte_fallback(const struct bpe *b)
{
    return b->byte_fallback;
}

void bpe_work_free(struct bpe_work *w)
{
    free(w->symbols);
    free(w->heap);
    *w = (struct bpe_work){0};
}

static int heap_push(struct bpe_work *w, struct bpe_merge m)
{
    if (w->heap_n == w->heap_cap) {
        const size_t cap = w->heap_cap ? 2 * w->heap_cap : 64;
        struct bpe_merge *p = realloc(w->heap, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        w->heap = p;
        w->heap_cap = cap;
    }
    size_t i = w->heap_n++;
    for (; i > 0 && w->heap[(i - 1) / 2].key > m.key; i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = m;
    return 0;
}

static struct bpe_merge heap_pop(struct bpe_work *w)
{
    const struct bpe_merge top = w->heap[0], last = w->heap[--w->heap_n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < w->heap_n; i = child) {
        if (child + 1 < w->heap_n && w->heap[child + 1].key < w->heap[child].key)
            child++;
        if (w->heap[child].key >= last.key)
            break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return top;
}

/* Offers the merge of symbol `at` with its successor, if there is one. */
static int offer(const struct bpe *b, struct bpe_work *w, int32_t at)
{
    const struct bpe_symbol *s = &w->symbols[at];
    if (s->next < 0)
        return 0;
    const struct pair *p = find_pair(b, s->id, w->symbols[s->next].id);
    if (p->key == EMPTY)
        return 0;
    return heap_push(w, (struct bpe_merge){(uint64_t)p->rank << 32 | (uint32_t)at, p->id});
}

/* The characters of a word as symbols; returns how many. A character that is in no
 * vocabulary becomes its bytes, or unk, or (no unk) nothing, as the definition. */
static size_t split_characters(const struct bpe *b, const char *s, size_t n, struct bpe_symbol *out)
{
    size_t m = 0;
    bool pending = false; /* an unk not yet written: fuse_unk joins runs of them */

    for (size_t i = 0; i < n;) {
        uint32_t cp;
        size_t k = text_utf8_get(s + i, n - i, &cp);
        const int32_t id = tokenizer_map_get(b->vocab, s + i, k);
        if (id >= 0) {
            if (pending)
                out[m++].id = b->unk;
            pending = false;
            out[m++].id = id;
        } else {
            bool bytes = b->byte_fallback;
            for (size_t j = 0; j < k && bytes; j++)
                bytes = b->byte_id[(unsigned char)s[i + j]] >= 0;
            if (bytes) {
                for (size_t j = 0; j < k; j++)
                    out[m++].id = b->byte_id[(unsigned char)s[i + j]];
            } else if (b->unk >= 0) {
                if (pending && !b->fuse_unk)
                    out[m++].id = b->unk;
                pending = true;
            }
        }
        i += k;
    }
    if (pending)
        out[m++].id = b->unk;
    return m;
}

/* Merges symbols [from, to) by a heap of offers. */
static int merge_many(const struct bpe *b, struct bpe_work *w, int32_t from, int32_t to)
{
    struct bpe_symbol *s = w->symbols;
    int r = 0;

    w->heap_n = 0;
    for (int32_t i = from; i < to && !r; i++)
        r = offer(b, w, i);
    while (w->heap_n > 0 && !r) {
        const struct bpe_merge top = heap_pop(w);
        const int32_t at = (int32_t)(uint32_t)top.key, next = s[at].next;
        if (s[at].gone || next < 0)
            continue;
        const struct pair *p = find_pair(b, s[at].id, s[next].id);
        if (p->key == EMPTY || p->id != top.id)
            continue; /* the pair has changed since it was offered */
        s[at].id = top.id;
        s[at].next = s[next].next;
        s[next].gone = true;
        if (s[at].next >= 0)
            s[s[at].next].prev = at;
        if (s[at].prev >= 0)
            r = offer(b, w, s[at].prev);
        if (!r)
            r = offer(b, w, at);
    }
    return r;
}

static void rank_pair(const struct bpe *b, struct bpe_symbol *s, int32_t at)
{
    s[at].rank = NO_RANK;
    if (s[at].next < 0)
        return;
    const struct pair *p = find_pair(b, s[at].id, s[s[at].next].id);
    if (p->key != EMPTY) {
        s[at].rank = p->rank;
        s[at].to = p->id;
    }
}

/* The same for a few symbols: the lowest rank, leftmost, until there is none. */
static void merge_few(const struct bpe *b, struct bpe_symbol *s, int32_t from, int32_t to)
{
    for (int32_t i = from; i < to; i++)
        rank_pair(b, s, i);
    for (;;) {
        int32_t at = from;
        for (int32_t i = s[from].next; i >= 0; i = s[i].next)
            if (s[i].rank < s[at].rank)
                at = i;
        if (s[at].rank == NO_RANK)
            return;
        const int32_t next = s[at].next;
        s[at].id = s[at].to;
        s[at].next = s[next].next;
        s[next].gone = true;
        if (s[at].next >= 0)
            s[s[at].next].prev = at;
        if (s[at].prev >= 0)
            rank_pair(b, s, s[at].prev);
        rank_pair(b, s, at);
    }
}

/* Merges symbols [0, m), part by part. */
static int merge_all(const struct bpe *b, struct bpe_work *w, size_t m)
{
    struct bpe_symbol *s = w->symbols;
    int r = 0;

    for (size_t from = 0, to; from < m && !r; from = to) {
        s[from].prev = -1;
        s[from].gone = false;
        for (to = from + 1; to < m; to++) {
            if (*find_seam(b, b->last[s[to - 1].id], b->first[s[to].id]) == 0)
                break;
            s[to - 1].next = (int32_t)to;
            s[to].prev = (int32_t)to - 1;
            s[to].gone = false;
        }
        s[to - 1].next = -1;
        if (to - from > FEW)
            r = merge_many(b, w, (int32_t)from, (int32_t)to);
        else if (to - from > 1)
            merge_few(b, s, (int32_t)from, (int32_t)to);
    }
    return r;
}

int bpe_encode(const struct bpe *b, const char *s, size_t n, struct bpe_work *w, struct tokens *out)
{
    if (n == 0)
        return 0;
    if (n > INT32_MAX / 2)
        return -EOVERFLOW;
    if (b->ignore_merges) {
        const int32_t id = tokenizer_map_get(b->vocab, s, n);
        if (id >= 0)
            return tokens_put(out, id);
    }
    if (w->cap < n + 1) { /* bytes bound symbols; one more for a pending unk */
        const size_t cap = n + n / 2 + 64;
        struct bpe_symbol *p = realloc(w->symbols, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        w->symbols = p;
        w->cap = cap;
    }
    const size_t m = split_characters(b, s, n, w->symbols);
    int r = merge_all(b, w, m);
    for (size_t i = 0; i < m && !r; i++)
        if (!w->symbols[i].gone)
            r = tokens_put(out, w->symbols[i].id);
    return r;
}
