/* curve.c - see curve.h. */
#include "client/curve.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PACE_ROWS = 50 }; /* rows the pace is taken over */

void curve_init(struct curve *c)
{
    memset(c, 0, sizeof *c);
    c->step = c->eval_step = -1;
}

void curve_fini(struct curve *c)
{
    free(c->v);
    c->v = NULL;
    c->n = c->room = 0;
}

static double row_value(const struct msg_row *row, const char *name)
{
    for (uint32_t i = 0; i < row->n_values; i++)
        if (strcmp(row->names[i], name) == 0)
            return row->values[i];
    return NAN;
}

static size_t keep(struct curve_value *to, const struct msg_row *row)
{
    size_t n = 0;
    for (uint32_t i = 0; i < row->n_values && n < LIMIT_METRICS; i++, n++) {
        (void)snprintf(to[n].name, sizeof to[n].name, "%s", row->names[i]);
        to[n].value = row->values[i];
    }
    return n;
}

static void add_point(struct curve *c, const struct msg_row *row)
{
    if (c->n == c->room) {
        size_t room = c->room ? 2 * c->room : 256;
        struct curve_point *v = realloc(c->v, room * sizeof *v);
        if (!v) {
            c->lost = true;
            return;
        }
        c->v = v;
        c->room = room;
    }
    /* steps ascend; a row that comes out of order replaces what it is older than */
    while (c->n && c->v[c->n - 1].step >= row->step)
        c->n--;
    c->v[c->n++] =
        (struct curve_point){row->step, row->wall_ms, row->attempt, row_value(row, "loss")};
}

static void rewind_to(struct curve *c, int64_t step)
{
    size_t before = c->n;
    while (c->n && c->v[c->n - 1].step > step)
        c->n--;
    if (c->n == before && c->step <= step)
        return;
    c->rewinds++;
    c->rewound_to = step;
    c->step = c->n ? c->v[c->n - 1].step : -1;
}

void curve_add(struct curve *c, const struct msg_row *row)
{
    if (row->superseded)
        return;
    switch (row->kind) {
    case MSG_ROW_TRAIN:
        add_point(c, row);
        c->n_train = keep(c->train, row);
        c->step = row->step;
        break;
    case MSG_ROW_EVAL:
        c->n_eval = keep(c->eval, row);
        c->eval_step = row->step;
        break;
    case MSG_ROW_REWIND:
        rewind_to(c, row->step);
        break;
    case MSG_ROW_START:
    case MSG_ROW_SUMMARY:
    case MSG_ROW_KINDS:
        break;
    }
}

static double find(const struct curve_value *v, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(v[i].name, name) == 0)
            return v[i].value;
    return NAN;
}

double curve_train(const struct curve *c, const char *name)
{
    return find(c->train, c->n_train, name);
}

double curve_eval(const struct curve *c, const char *name)
{
    return find(c->eval, c->n_eval, name);
}

double curve_step_seconds(const struct curve *c)
{
    if (c->n < 2)
        return NAN;
    const struct curve_point *last = &c->v[c->n - 1];
    size_t first = c->n > PACE_ROWS ? c->n - PACE_ROWS : 0;
    while (first + 1 < c->n && c->v[first].attempt != last->attempt)
        first++; /* the pause between attempts is no pace */
    int64_t steps = last->step - c->v[first].step, ms = last->wall_ms - c->v[first].wall_ms;
    return steps > 0 && ms > 0 ? (double)ms / 1000 / (double)steps : NAN;
}
