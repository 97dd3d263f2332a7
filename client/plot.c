/* plot.c - see plot.h. Braille: U+2800 + bits; a cell is 2 dots wide, 4 high. */
#include "client/plot.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "client/format.h"

enum { LABEL = 9, MAX_WIDTH = 512, MAX_HEIGHT = 128 };

struct field {
    size_t cols, rows; /* in dots */
    double *sum;       /* per column */
    size_t *n;
    uint8_t *dot; /* rows x cols */
    double lo, hi;
};

static void field_free(struct field *f)
{
    free(f->sum);
    free(f->n);
    free(f->dot);
}

static bool field_new(struct field *f, size_t cols, size_t rows)
{
    *f = (struct field){.cols = cols, .rows = rows, .lo = INFINITY, .hi = -INFINITY};
    f->sum = calloc(cols, sizeof *f->sum);
    f->n = calloc(cols, sizeof *f->n);
    f->dot = calloc(cols * rows, 1);
    return f->sum && f->n && f->dot;
}

static void gather(const struct plot *p, struct field *f)
{
    double from = p->x_from, to = p->x_to;
    if (!(to > from)) {
        from = p->n ? p->x[0] : 0;
        to = p->n ? p->x[p->n - 1] : 1;
    }
    for (size_t i = 0; i < p->n; i++) {
        if (!isfinite(p->y[i]) || p->x[i] < from || p->x[i] > to)
            continue;
        double at = to > from ? (p->x[i] - from) / (to - from) : 0;
        size_t c = (size_t)(at * (double)(f->cols - 1) + 0.5);
        f->sum[c] += p->y[i];
        f->n[c]++;
    }
    for (size_t c = 0; c < f->cols; c++) {
        if (!f->n[c])
            continue;
        f->sum[c] /= (double)f->n[c];
        f->lo = fmin(f->lo, f->sum[c]);
        f->hi = fmax(f->hi, f->sum[c]);
    }
}

static size_t row_of(const struct field *f, double y)
{
    double at = f->hi > f->lo ? (f->hi - y) / (f->hi - f->lo) : 0.5;
    return (size_t)(at * (double)(f->rows - 1) + 0.5);
}

static void stroke_column(struct field *f, size_t c, size_t from, size_t to)
{
    for (size_t r = from < to ? from : to; r <= (from < to ? to : from); r++)
        f->dot[r * f->cols + c] = 1;
}

/* A dot per column that has points, and an unbroken line between neighbours. */
static void stroke(struct field *f)
{
    size_t before = SIZE_MAX, at = 0;
    for (size_t c = 0; c < f->cols; c++) {
        if (!f->n[c])
            continue;
        if (before == SIZE_MAX) {
            at = row_of(f, f->sum[c]);
            stroke_column(f, c, at, at);
        }
        for (size_t k = before == SIZE_MAX ? c + 1 : before + 1; k <= c; k++) {
            double share = (double)(k - before) / (double)(c - before);
            size_t r = row_of(f, f->sum[before] + share * (f->sum[c] - f->sum[before]));
            /* the column before has its own dot */
            stroke_column(f, k, at < r ? at + 1 : at > r ? at - 1 : at, r);
            at = r;
        }
        before = c;
    }
}

static void put_cell(const struct field *f, size_t r, size_t c, bool utf8, struct buf *out)
{
    static const uint8_t bit[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    if (!utf8) {
        (void)buf_str(out, f->dot[r * f->cols + c] ? "*" : " ");
        return;
    }
    unsigned bits = 0;
    for (size_t y = 0; y < 4; y++)
        for (size_t x = 0; x < 2; x++)
            if (f->dot[(4 * r + y) * f->cols + 2 * c + x])
                bits |= bit[y][x];
    if (!bits) {
        (void)buf_str(out, " ");
        return;
    }
    char ch[4] = {(char)0xe2, (char)(0xa0 + (bits >> 6)), (char)(0x80 + (bits & 0x3f)), '\0'};
    (void)buf_str(out, ch);
}

void plot_draw(const struct plot *p, struct buf *out)
{
    size_t height = p->height < MAX_HEIGHT ? p->height : MAX_HEIGHT;
    size_t width = p->width > MAX_WIDTH ? MAX_WIDTH : p->width;
    size_t cells = width > LABEL + 2 ? width - LABEL : 0;
    struct field f;
    format_buf b;

    if (height == 0)
        return;
    if (cells == 0 || !field_new(&f, cells * (p->utf8 ? 2 : 1), height * (p->utf8 ? 4 : 1))) {
        for (size_t r = 0; r < height; r++)
            (void)buf_str(out, "\n");
        if (cells)
            field_free(&f);
        return;
    }
    gather(p, &f);
    if (isfinite(f.lo))
        stroke(&f);
    for (size_t r = 0; r < height; r++) {
        const char *label = "";
        if (isfinite(f.lo) && (r == 0 || r + 1 == height))
            label = format_value(b, r == 0 ? f.hi : f.lo);
        (void)buf_printf(out, "%*.*s%s", LABEL - 1, LABEL - 1, label,
                         p->utf8 ? "\xe2\x94\x82" : "|");
        for (size_t c = 0; c < cells; c++)
            put_cell(&f, r, c, p->utf8, out);
        (void)buf_str(out, "\n");
    }
    field_free(&f);
}
