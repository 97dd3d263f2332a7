/* table.c - see table.h. */
#include "client/table.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "client/format.h"

enum { CELL_ROOM = 1024 };

struct table {
    const struct table_column *columns;
    size_t n_columns;
    char **cells;
    size_t n, room;
    bool lost;
};

struct table *table_new(const struct table_column *columns, size_t n)
{
    struct table *t = calloc(1, sizeof *t);
    if (t) {
        t->columns = columns;
        t->n_columns = n;
    }
    return t;
}

static bool grow(struct table *t)
{
    if (t->n < t->room)
        return true;
    size_t room = t->room ? 2 * t->room : 64;
    char **cells = realloc(t->cells, room * sizeof *cells);
    if (!cells)
        return false;
    t->cells = cells;
    t->room = room;
    return true;
}

void table_cell(struct table *t, const char *fmt, ...)
{
    char raw[CELL_ROOM], plain[CELL_ROOM];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(raw, sizeof raw, fmt, ap);
    va_end(ap);
    size_t max = t->columns[t->n % t->n_columns].max_width;
    char *copy =
        grow(t) ? strdup(format_plain(plain, sizeof plain, raw, max ? max : CELL_ROOM)) : NULL;
    if (copy)
        t->cells[t->n++] = copy;
    else
        t->lost = true;
}

static void put(FILE *out, const char *s, size_t width, bool right, bool last)
{
    size_t w = format_width(s);
    int pad = w < width ? (int)(width - w) : 0;
    if (right)
        (void)fprintf(out, "%*s%s%s", pad, "", s, last ? "\n" : " ");
    else if (last)
        (void)fprintf(out, "%s\n", s);
    else
        (void)fprintf(out, "%s%*s ", s, pad, "");
}

int table_print(const struct table *t, FILE *out)
{
    enum { MAX_COLUMNS = 32 };
    size_t width[MAX_COLUMNS] = {0}, m = t->n_columns;
    if (m > MAX_COLUMNS)
        return -EINVAL;
    for (size_t c = 0; c < m; c++)
        width[c] = format_width(t->columns[c].title);
    for (size_t i = 0; i < t->n; i++)
        if (format_width(t->cells[i]) > width[i % m])
            width[i % m] = format_width(t->cells[i]);
    for (size_t c = 0; c < m; c++)
        put(out, t->columns[c].title, width[c], t->columns[c].right, c + 1 == m);
    for (size_t i = 0; i < t->n; i++)
        put(out, t->cells[i], width[i % m], t->columns[i % m].right, (i + 1) % m == 0);
    return t->lost ? -ENOMEM : 0;
}

void table_free(struct table *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n; i++)
        free(t->cells[i]);
    free(t->cells);
    free(t);
}
