/* history.c - see history.h. */
#include "worker/history.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SPOOL_MOST = 1 << 30 }; /* bytes of one attempt's spool that are read          */

/* One attempt's spool in memory. */
struct part {
    uint32_t attempt;
    char *text;
    size_t bytes;
    int64_t start; /* step it began at; -1: it never came so far                      */
    int64_t until; /* rows beyond it are superseded                                   */
    bool last;     /* no later attempt began                                          */
};

/* The next whole line from *at; false at the end or at a line cut short. */
static bool next_line(const struct part *p, size_t *at, const char **line, size_t *bytes)
{
    const char *end;

    if (*at >= p->bytes)
        return false;
    *line = p->text + *at;
    end = memchr(*line, '\n', p->bytes - *at);
    if (end == NULL)
        return false;
    *bytes = (size_t)(end - *line);
    *at += *bytes + 1;
    return true;
}

static int load_part(const struct rundir *d, struct part *p, struct err *err)
{
    struct spool_row *row = malloc(sizeof *row);
    char name[64];
    const char *line;
    size_t at = 0, bytes;
    int r;

    p->start = -1;
    p->until = INT64_MAX;
    p->last = true;
    if (row == NULL)
        return err_set(err, -ENOMEM, "out of memory");
    snprintf(name, sizeof name, "attempts/%u/metrics.jsonl", p->attempt);
    r = rundir_read(d->fd, name, SPOOL_MOST, &p->text, &p->bytes);
    if (r == 0 && next_line(p, &at, &line, &bytes) && spool_parse(line, bytes, row) == 0 &&
        row->kind == SPOOL_START)
        p->start = row->global_step;
    free(row);
    return r < 0 && r != -ENOENT ? err_set(err, r, "%s/%s: %s", d->path, name, strerror(-r)) : 0;
}

/* Rows of `p` count up to the lowest step at which a later attempt began. */
static void supersede(struct part *v, size_t n, int64_t resume)
{
    int64_t until = resume >= 0 ? resume : INT64_MAX;
    bool last = resume < 0;

    for (size_t i = n; i-- > 0;) {
        v[i].until = until;
        v[i].last = last;
        if (v[i].start >= 0) {
            until = v[i].start < until ? v[i].start : until;
            last = false;
        }
    }
}

static int read_part(const struct part *p,
                     int (*fn)(void *arg, const struct spool_row *row, const char *line,
                               size_t bytes),
                     void *arg)
{
    struct spool_row *row = malloc(sizeof *row);
    const char *line;
    size_t at = 0, bytes;
    int r = row != NULL ? 0 : -ENOMEM;

    while (r == 0 && p->start >= 0 && next_line(p, &at, &line, &bytes)) {
        if (spool_parse(line, bytes, row) < 0)
            break; /* nothing behind a broken line is to be trusted */
        if (row->global_step > p->until || (row->kind == SPOOL_SUMMARY && !p->last))
            continue;
        r = fn(arg, row, line, bytes);
    }
    free(row);
    return r;
}

int history_read(const struct rundir *d, uint32_t last, int64_t resume,
                 int (*fn)(void *arg, const struct spool_row *row, const char *line, size_t bytes),
                 void *arg, struct err *err)
{
    uint32_t *attempts = NULL;
    struct part *v = NULL;
    size_t n = 0, all;
    int r = rundir_attempts(d->path, &attempts, &all);

    if (r < 0)
        return err_set(err, r, "%s/attempts: %s", d->path, strerror(-r));
    v = calloc(all > 0 ? all : 1, sizeof *v);
    if (v == NULL)
        r = err_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; r == 0 && i < all && attempts[i] <= last; i++) {
        v[n].attempt = attempts[i];
        r = load_part(d, &v[n++], err);
    }
    if (r == 0)
        supersede(v, n, resume);
    for (size_t i = 0; r == 0 && i < n; i++)
        r = read_part(&v[i], fn, arg);
    for (size_t i = 0; i < n; i++)
        free(v[i].text);
    free(v);
    free(attempts);
    return r;
}

/* ---- trainer_state.json ---- */

void history_add(struct history *h, const struct spool_row *row)
{
    if (row->kind == SPOOL_START)
        return;
    text_out_add(&h->log, "%s\n    {\n", h->log.bytes > 0 ? "," : "");
    for (int i = 0; i < row->n_values; i++) {
        text_out_add(&h->log, "      ");
        text_out_json(&h->log, row->values[i].name);
        text_out_add(&h->log, ": ");
        text_out_number(&h->log, row->values[i].value);
        text_out_add(&h->log, ",\n");
    }
    text_out_add(&h->log, "      \"step\": %lld\n    }", (long long)row->global_step);
}

static int add_row(void *arg, const struct spool_row *row, const char *line, size_t bytes)
{
    (void)line;
    (void)bytes;
    history_add(arg, row);
    return 0;
}

int history_load(struct history *h, const struct rundir *d, int64_t resume, struct err *err)
{
    if (d->attempt <= 1)
        return 0;
    return history_read(d, d->attempt - 1, resume, add_row, h, err);
}

void history_free(struct history *h)
{
    text_out_free(&h->log);
}

void history_print(const struct history *h, const struct history_state *s, struct text_out *out)
{
    const struct spec *spec = s->spec;

    text_out_add(out, "{\n  \"best_global_step\": null,\n  \"best_metric\": null,\n"
                      "  \"best_model_checkpoint\": null,\n  \"epoch\": ");
    text_out_number(out, (double)s->global_step / (double)s->plan->steps_per_epoch);
    text_out_add(out, ",\n  \"eval_steps\": %lld,\n  \"global_step\": %lld,\n",
                 (long long)(spec->eval_steps > 0 ? spec->eval_steps : s->plan->steps),
                 (long long)s->global_step);
    text_out_add(out, "  \"is_hyper_param_search\": false,\n  \"is_local_process_zero\": true,\n"
                      "  \"is_world_process_zero\": true,\n  \"log_history\": [");
    text_out_bytes(out, h->log.p, h->log.bytes);
    text_out_add(out, "%s],\n  \"logging_steps\": %lld,\n  \"max_steps\": %lld,\n",
                 h->log.bytes > 0 ? "\n  " : "", (long long)spec->logging_steps,
                 (long long)s->plan->steps);
    text_out_add(out, "  \"num_input_tokens_seen\": %lld,\n  \"num_train_epochs\": %lld,\n",
                 (long long)s->num_tokens, (long long)ceil(s->plan->epochs));
    text_out_add(out, "  \"save_steps\": %lld,\n  \"stateful_callbacks\": {},\n  \"total_flos\": ",
                 (long long)spec->save_steps);
    text_out_number(out, s->total_flos);
    text_out_add(out,
                 ",\n  \"train_batch_size\": %lld,\n  \"trial_name\": null,\n"
                 "  \"trial_params\": null\n}\n",
                 (long long)spec->train_batch_size);
    if (out->error == 0)
        out->error = h->log.error;
}
