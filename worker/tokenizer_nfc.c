/* tokenizer_nfc.c - see tokenizer_nfc.h. Decompose, order, compose: UAX #15 and
 * chapter 3.11 of the Unicode Standard (D115 to D117); Hangul by arithmetic (3.12). */
#include "worker/tokenizer_nfc.h"

#include <errno.h>
#include <stdlib.h>

struct nfc_class {
    uint32_t first, last;
    uint8_t ccc;
};
struct nfc_pair {
    uint32_t cp, first, second; /* second: 0 in a singleton */
};

#include "worker/tokenizer_nfc_table.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

enum { S_BASE = 0xac00, L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11a7 };
enum { L_COUNT = 19, V_COUNT = 21, T_COUNT = 28, S_COUNT = L_COUNT * V_COUNT * T_COUNT };

struct character {
    uint32_t cp;
    uint32_t place; /* where it stood: makes the ordering stable */
    uint8_t ccc;
};

struct characters {
    struct character *v;
    size_t n, cap;
};

static uint8_t class_of(uint32_t cp)
{
    size_t lo = 0, hi = COUNT(nfc_classes);
    if (cp < 0x300)
        return 0;
    while (lo < hi) {
        const size_t mid = (lo + hi) / 2;
        if (nfc_classes[mid].last < cp)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < COUNT(nfc_classes) && nfc_classes[lo].first <= cp ? nfc_classes[lo].ccc : 0;
}

static const struct nfc_pair *decomposition_of(uint32_t cp)
{
    size_t lo = 0, hi = COUNT(nfc_pairs);
    while (lo < hi) {
        const size_t mid = (lo + hi) / 2;
        if (nfc_pairs[mid].cp < cp)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < COUNT(nfc_pairs) && nfc_pairs[lo].cp == cp ? &nfc_pairs[lo] : NULL;
}

/* What a and b compose to, 0: nothing. */
static uint32_t compose(uint32_t a, uint32_t b)
{
    if (a - L_BASE < L_COUNT && b - V_BASE < V_COUNT)
        return S_BASE + ((a - L_BASE) * V_COUNT + (b - V_BASE)) * T_COUNT;
    if (a - S_BASE < S_COUNT && (a - S_BASE) % T_COUNT == 0 && b - T_BASE - 1 < T_COUNT - 1)
        return a + (b - T_BASE);
    size_t lo = 0, hi = COUNT(nfc_compositions);
    const uint64_t key = (uint64_t)a << 32 | b;
    while (lo < hi) {
        const size_t mid = (lo + hi) / 2;
        const struct nfc_pair *p = &nfc_pairs[nfc_compositions[mid]];
        const uint64_t k = (uint64_t)p->first << 32 | p->second;
        if (k == key)
            return p->cp;
        if (k < key)
            lo = mid + 1;
        else
            hi = mid;
    }
    return 0;
}

static int put(struct characters *c, uint32_t cp)
{
    if (c->n == c->cap) {
        const size_t cap = c->cap ? 2 * c->cap : 256;
        struct character *v = realloc(c->v, cap * sizeof *v);
        if (!v)
            return -ENOMEM;
        c->v = v;
        c->cap = cap;
    }
    c->v[c->n] = (struct character){cp, (uint32_t)c->n, class_of(cp)};
    c->n++;
    return 0;
}

/* The longest chain in the table is four deep. */
static int decompose(struct characters *c, uint32_t cp)
{
    if (cp - S_BASE < S_COUNT) {
        const uint32_t i = cp - S_BASE;
        int r = put(c, L_BASE + i / (V_COUNT * T_COUNT));
        if (!r)
            r = put(c, V_BASE + i % (V_COUNT * T_COUNT) / T_COUNT);
        return r || i % T_COUNT == 0 ? r : put(c, T_BASE + i % T_COUNT);
    }
    const struct nfc_pair *p = cp < 0xc0 ? NULL : decomposition_of(cp);
    if (!p)
        return put(c, cp);
    const int r = decompose(c, p->first);
    return r || p->second == 0 ? r : decompose(c, p->second);
}

static int by_class(const void *a, const void *b)
{
    const struct character *x = a, *y = b;
    if (x->ccc != y->ccc)
        return x->ccc < y->ccc ? -1 : 1;
    return x->place < y->place ? -1 : x->place > y->place;
}

static void order(struct characters *c)
{
    for (size_t i = 0; i < c->n;) {
        size_t j = i;
        while (j < c->n && c->v[j].ccc != 0)
            j++;
        if (j - i > 1)
            qsort(c->v + i, j - i, sizeof *c->v, by_class);
        i = j + (j == i);
    }
}

static void compose_all(struct characters *c)
{
    size_t starter = SIZE_MAX, n = 0;
    int last = -1; /* class of what was kept last since the starter; -1: nothing */

    for (size_t i = 0; i < c->n; i++) {
        const struct character x = c->v[i];
        const uint32_t made =
            starter != SIZE_MAX && last < (int)x.ccc ? compose(c->v[starter].cp, x.cp) : 0;
        if (made) {
            c->v[starter].cp = made;
            continue;
        }
        last = x.ccc;
        if (x.ccc == 0) {
            starter = n;
            last = -1;
        }
        c->v[n++] = x;
    }
    c->n = n;
}

int tokenizer_nfc(const char *s, size_t n, struct text *out)
{
    struct characters c = {0};
    size_t plain = 0;
    int r = 0;

    /* Nothing below U+0300 changes: by lead byte, 0xcc is U+0300. */
    while (plain < n && (unsigned char)s[plain] < 0xcc)
        plain++;
    if (plain == n)
        return text_add(out, s, n);
    for (size_t i = 0; i < n && !r;) {
        uint32_t cp;
        i += text_utf8_get(s + i, n - i, &cp);
        r = decompose(&c, cp);
    }
    if (!r) {
        order(&c);
        compose_all(&c);
        r = text_reserve(out, 4 * c.n);
    }
    for (size_t i = 0; i < c.n && !r; i++) {
        char buf[4];
        r = text_add(out, buf, text_utf8_put(c.v[i].cp, buf));
    }
    free(c.v);
    return r;
}
