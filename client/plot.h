/* plot.h - a curve as lines of text: braille dots, or stars without UTF-8. */
#ifndef CLIENT_PLOT_H
#define CLIENT_PLOT_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/buf.h"

struct plot {
    const double *x, *y; /* n points, x ascending; y that is not finite is left out */
    size_t n;
    double x_from, x_to;  /* the axis; x_to <= x_from: that of the points           */
    size_t width, height; /* in characters, the axis's labels included              */
    bool utf8;
};

/* Appends height lines, each ended by \n: a label column, then the field. Several
 * points in one column of dots are averaged. No finite point: empty lines. */
void plot_draw(const struct plot *p, struct buf *out);

#endif
