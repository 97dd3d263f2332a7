/* publish.c - see publish.h. */
#include "worker/publish.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/atomic_file.h"
#include "worker/history.h"
#include "worker/tokenizer_files.h"

static int put(const struct publish *p, const char *name, const void *data, size_t bytes,
               struct err *err)
{
    const int r = atomic_file_replace(p->dir->fd, name, &(struct span){data, bytes}, 1);

    return r < 0 ? err_set(err, r, "%s/%s: %s", p->dir->path, name, strerror(-r)) : 0;
}

/* Frees the text. */
static int put_text(const struct publish *p, const char *name, struct text_out *t, struct err *err)
{
    const int r = t->error < 0 ? err_set(err, t->error, "%s/%s: out of memory", p->dir->path, name)
                               : put(p, name, t->p, t->bytes, err);

    text_out_free(t);
    return r;
}

static const struct spec_source *source_of(const struct spec *s, bool eval, int32_t i)
{
    const int n = eval ? s->n_eval : s->n_train;

    return i >= 0 && i < n ? (eval ? &s->eval[i] : &s->train[i]) : NULL;
}

static void put_row(struct text_out *out, const struct spec_source *s, int64_t row)
{
    text_out_add(out, ", \"path\": ");
    text_out_json(out, s != NULL && s->path != NULL ? s->path : "");
    text_out_add(out, ", \"row\": %lld", (long long)row);
}

void publish_dropped(const struct spec *spec, const struct dataset *d, struct text_out *out)
{
    for (int64_t i = 0; i < d->n_dropped; i++) {
        const struct dropped_row *x = &d->dropped[i];
        text_out_add(out, "{\"set\": \"%s\"", x->eval ? "eval" : "train");
        put_row(out, source_of(spec, x->eval, x->source), x->row);
        text_out_add(out, ", \"reason\": \"%s\"}\n", drop_reason_name(x->reason));
    }
}

static void selected(const struct spec *spec, const struct example *v, int64_t n, bool eval,
                     struct text_out *out)
{
    const bool split = eval && spec->eval_split_from_train > 0;

    for (int64_t i = 0; i < n; i++) {
        text_out_add(out, "{\"set\": \"%s\"", eval ? "eval" : "train");
        put_row(out, source_of(spec, eval && !split, v[i].source), v[i].row);
        text_out_add(out, "}\n");
    }
}

void publish_selected(const struct spec *spec, const struct dataset *d, struct text_out *out)
{
    selected(spec, d->train, d->n_train, false, out);
    selected(spec, d->eval, d->n_eval, true, out);
}

static int add_line(void *arg, const struct spool_row *row, const char *line, size_t bytes)
{
    struct text_out *t = arg;

    (void)row;
    text_out_bytes(t, line, bytes);
    text_out_bytes(t, "\n", 1);
    return t->error;
}

static int put_metrics(const struct publish *p, struct err *err)
{
    struct text_out t = {0};
    const int r = history_read(p->dir, p->dir->attempt, -1, add_line, &t, err);

    if (r < 0) {
        text_out_free(&t);
        return err_prefix(err, r, "metrics.jsonl");
    }
    return put_text(p, "metrics.jsonl", &t, err);
}

/* Rank 0's output of all attempts, oldest first; older ones go when it is too much. */
static int put_log(const struct publish *p, struct err *err)
{
    uint32_t *v = NULL;
    size_t n = 0, first;
    struct text_out all = {0};
    int64_t room = LIMIT_LOG_BYTES;
    int r = rundir_attempts(p->dir->path, &v, &n);

    for (first = n; r == 0 && first > 0; first--) {
        char name[64];
        const int fd = p->dir->fd;
        int f;
        off_t bytes;

        snprintf(name, sizeof name, "attempts/%u/rank-0.log", v[first - 1]);
        f = openat(fd, name, O_RDONLY | O_CLOEXEC);
        bytes = f >= 0 ? lseek(f, 0, SEEK_END) : 0;
        if (f >= 0)
            close(f);
        room -= bytes > 0 ? bytes : 0;
        if (room < 0)
            break;
    }
    for (size_t i = first; r == 0 && i < n && v[i] <= p->dir->attempt; i++) {
        char name[64], *text = NULL;
        size_t bytes = 0;

        snprintf(name, sizeof name, "attempts/%u/rank-0.log", v[i]);
        if (rundir_read(p->dir->fd, name, LIMIT_LOG_BYTES + 65536, &text, &bytes) == 0)
            text_out_bytes(&all, text, bytes);
        free(text);
    }
    free(v);
    if (r < 0)
        return err_set(err, r, "%s/attempts: %s", p->dir->path, strerror(-r));
    return put_text(p, "log.txt", &all, err);
}

int publish_rows(const struct publish *p, struct err *err)
{
    struct text_out dropped = {0}, chosen = {0};
    int r = rundir_fence(p->dir, err);

    if (r == 0) {
        publish_dropped(p->spec, p->data, &dropped);
        r = put_text(p, "dropped.jsonl", &dropped, err);
    }
    if (r == 0) {
        publish_selected(p->spec, p->data, &chosen);
        r = put_text(p, "selected.jsonl", &chosen, err);
    }
    return r;
}

int publish_run(const struct publish *p, struct err *err)
{
    const char *user = p->user_json != NULL ? p->user_json : p->resolved_json;
    int r = rundir_fence(p->dir, err);

    if (r == 0)
        r = lora_save(p->adapter, p->model, p->spec, p->dir->fd, err);
    if (r == 0)
        r = tokenizer_files_copy(p->spec->model_dir, p->dir->fd, p->dir->path, err);
    if (r == 0)
        r = put(p, "spec.yaml", user, strlen(user), err);
    if (r == 0)
        r = put(p, "spec.resolved.json", p->resolved_json, strlen(p->resolved_json), err);
    if (r == 0)
        r = publish_rows(p, err);
    if (r == 0)
        r = put_log(p, err);
    if (r == 0)
        r = put(p, "trainer_state.json", p->trainer_state->p, p->trainer_state->bytes, err);
    if (r == 0)
        r = rundir_fence(p->dir, err);
    if (r == 0)
        r = put_metrics(p, err);
    return r;
}

bool publish_finished(const char *output_dir, int64_t *ret_step)
{
    const int dir = open(output_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int fd = dir >= 0 ? openat(dir, "metrics.jsonl", O_RDONLY | O_CLOEXEC) : -1;
    struct spool_row *row = malloc(sizeof *row);
    char tail[16384];
    bool done = false;

    if (fd >= 0 && row != NULL) {
        const off_t end = lseek(fd, 0, SEEK_END);
        const off_t at = end > (off_t)sizeof tail ? end - (off_t)sizeof tail : 0;
        const ssize_t n = end > 0 ? pread(fd, tail, sizeof tail, at) : 0;
        const char *last = n > 1 && tail[n - 1] == '\n' ? memrchr(tail, '\n', (size_t)n - 1) : NULL;
        const char *line = last != NULL ? last + 1 : tail;

        if (n > 1 && spool_parse(line, (size_t)(tail + n - 1 - line), row) == 0 &&
            row->kind == SPOOL_SUMMARY) {
            *ret_step = row->global_step;
            done = true;
        }
    }
    free(row);
    if (fd >= 0)
        close(fd);
    if (dir >= 0)
        close(dir);
    return done;
}
