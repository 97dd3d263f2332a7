/* screen.h - the watched job as text: a screenful, or a line per report. */
#ifndef CLIENT_SCREEN_H
#define CLIENT_SCREEN_H

#include <jansson.h>

#include "client/curve.h"
#include "proto/buf.h"

struct screen {
    const json_t *job; /* as `show` gives it; NULL: not known yet */
    const struct curve *curve;
    size_t columns, rows; /* of the terminal */
    bool utf8, colour;
    bool connected; /* alignd answers */
    int64_t now_ms; /* wall clock */
};

/* At most rows lines, no wider than columns, each ended by \n. */
void screen_draw(const struct screen *s, struct buf *out);

/* "step 50/100  loss 0.6123  ..." for one row; nothing for start rows. */
void screen_line(const json_t *job, const struct msg_row *row, struct buf *out);

/* A bar of n characters, filled to share (0 to 1). */
void screen_bar(double share, size_t n, bool utf8, struct buf *out);

#endif
