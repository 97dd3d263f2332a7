/* spec_near.c - see spec_near.h. */
#include "proto/spec_near.h"

#include <limits.h>
#include <string.h>

#include "proto/spec_key.h"

enum { NAME_MOST = 48 /* longer than any key */ };

/* Lower case, `_` for `-`. Returns buf, or NULL for what is longer than any key. */
static const char *plain(const char *name, char buf[NAME_MOST + 1])
{
    size_t n = strlen(name);

    if (n > NAME_MOST)
        return NULL;
    for (size_t i = 0; i <= n; i++) {
        char c = name[i];
        buf[i] = c == '-' ? '_' : (char)(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    }
    return buf;
}

static const char *hint_in(const struct spec_hint *v, size_t n, const char *name)
{
    char buf[NAME_MOST + 1];
    const char *s = plain(name, buf);

    for (size_t i = 0; s && i < n; i++)
        if (strcmp(v[i].name, s) == 0)
            return v[i].says;
    return NULL;
}

const char *spec_near_hint(const char *name)
{
    return hint_in(spec_hints, spec_n_hints, name);
}

const char *spec_near_entry_hint(const char *name)
{
    return hint_in(spec_entry_hints, spec_n_entry_hints, name);
}

/* Edit distance with transpositions (optimal string alignment); big when longer
 * than what a key can be. */
static int distance(const char *a, const char *b)
{
    int d[3][NAME_MOST + 1];
    size_t n = strlen(a), m = strlen(b);
    if (n > NAME_MOST || m > NAME_MOST)
        return INT_MAX;
    for (size_t j = 0; j <= m; j++)
        d[0][j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int *now = d[i % 3], *was = d[(i + 2) % 3], *before = d[(i + 1) % 3];
        now[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int best = was[j - 1] + (a[i - 1] != b[j - 1]);
            if (was[j] + 1 < best)
                best = was[j] + 1;
            if (now[j - 1] + 1 < best)
                best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
    }
    return d[n % 3][m];
}

static void nearer(const char *name, const char *candidate, const char *means, int *best,
                   const char **ret)
{
    int d = distance(name, candidate);
    if (d < *best) {
        *best = d;
        *ret = means;
    }
}

/* One letter of three may be wrong; of one or two letters none (exclusive). */
static int reach(const char *name)
{
    return (int)(strlen(name) / 3) + 1;
}

const char *spec_near_word(const char *name, const char *const *list, size_t n)
{
    const char *found = NULL;
    int best = reach(name);
    for (size_t i = 0; i < n; i++)
        nearer(name, list[i], list[i], &best, &found);
    return found;
}

/* Does `key` have `part` between its underscores? */
static int has_words(const char *key, const char *part)
{
    const size_t n = strlen(part);

    for (const char *at = key; n > 0 && (at = strstr(at, part)) != NULL; at++)
        if ((at == key || at[-1] == '_') && (at[n] == '\0' || at[n] == '_'))
            return 1;
    return 0;
}

static const char *only_with(const char *part)
{
    const char *found = NULL;

    for (size_t i = 0; i < spec_n_keys; i++) {
        if (spec_keys[i].derived || !has_words(spec_keys[i].name, part))
            continue;
        if (found)
            return NULL;
        found = spec_keys[i].name;
    }
    return found;
}

const char *spec_near_key(const char *name)
{
    char buf[NAME_MOST + 1];
    const char *found = NULL, *s = plain(name, buf);
    int best;

    if (!s)
        return NULL;
    best = reach(s);
    for (size_t i = 0; i < spec_n_keys; i++)
        if (!spec_keys[i].derived)
            nearer(s, spec_keys[i].name, spec_keys[i].name, &best, &found);
    for (size_t i = 0; i < spec_n_aliases; i++) {
        const struct spec_alias *a = &spec_aliases[i];
        nearer(s, a->name, a->turn == SPEC_TURN_SAME ? a->key : a->name, &best, &found);
    }
    for (size_t i = 0; i < spec_n_others; i++)
        nearer(s, spec_others[i].name, spec_others[i].name, &best, &found);
    return found ? found : only_with(s);
}
