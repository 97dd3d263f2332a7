/* table.h - rows of texts in columns as wide as they need to be. */
#ifndef CLIENT_TABLE_H
#define CLIENT_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct table_column {
    const char *title;
    bool right;       /* numbers stand on the right, as squeue's             */
    size_t max_width; /* longer texts are cut with ~; 0: never (last column) */
};

struct table;

/* columns are borrowed until the table is freed. NULL when out of memory. */
struct table *table_new(const struct table_column *columns, size_t n);
/* The next cell, from left to right, row after row; copied and made plain. */
void table_cell(struct table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Prints the titles and the rows. Returns 0 or -ENOMEM (a cell was lost). */
int table_print(const struct table *t, FILE *out);
void table_free(struct table *t); /* NULL is a no-op */

#endif
