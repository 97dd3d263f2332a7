/* spool.c - see spool.h. Lines are appended with one write, so a reader sees whole ones. */
#include "worker/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *const kind_names[] = {"start", "train", "eval", "summary"};

struct spool {
    int fd;
    uint32_t attempt;
    uint64_t n;     /* of the last row                                            */
    off_t bytes;    /* whole lines                                                */
    int64_t synced; /* CLOCK_MONOTONIC ms of the last fdatasync                   */
    bool dirty;
};

struct spool_tail {
    char *path;
    int fd;
    uint64_t skip; /* rows below this n are passed over                           */
    size_t have;   /* bytes in buf                                                */
    char buf[2 * SPOOL_LINE_BYTES];
};

static int64_t clock_ms(clockid_t id)
{
    struct timespec t;

    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

const char *spool_kind_name(enum spool_kind k)
{
    return (unsigned)k < sizeof kind_names / sizeof kind_names[0] ? kind_names[k] : "?";
}

/* ---- lines ---- */

static bool name_ok(const char *s)
{
    static const char *const ours[] = {"attempt", "n",         "kind",       "global_step",
                                       "wall_ms", "nonfinite", "log_history"};

    if (!*s)
        return false;
    for (const char *p = s; *p; p++)
        if (*p < ' ' || *p == '"' || *p == '\\' || *p == 0x7f)
            return false;
    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
        if (strcmp(s, ours[i]) == 0)
            return false;
    return true;
}

static void format_double(double x, char *buf, size_t size)
{
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(buf, size, "%.*g", digits, x);
        if (strtod(buf, NULL) == x)
            break;
    }
    if (!strpbrk(buf, ".e"))
        strncat(buf, ".0", size - strlen(buf) - 1);
}

size_t spool_format(const struct spool_row *row, char *buf, size_t size)
{
    size_t at = 0;
    bool any = false;
    char number[32];

#define PUT(...) \
    at += (size_t)snprintf(at < size ? buf + at : NULL, at < size ? size - at : 0, __VA_ARGS__)
    PUT("{\"attempt\":%u,\"n\":%llu,\"kind\":\"%s\",\"global_step\":%lld,\"wall_ms\":%lld",
        row->attempt, (unsigned long long)row->n, spool_kind_name(row->kind),
        (long long)row->global_step, (long long)row->wall_ms);
    for (int i = 0; i < row->n_values; i++) {
        const struct spool_value *v = &row->values[i];
        if (isfinite(v->value)) {
            format_double(v->value, number, sizeof number);
            PUT(",\"%s\":%s", v->name, number);
        } else {
            PUT(",\"%s\":null", v->name);
        }
    }
    for (int i = 0; i < row->n_values; i++) {
        if (isfinite(row->values[i].value))
            continue;
        PUT("%s\"%s\"", any ? "," : ",\"nonfinite\":[", row->values[i].name);
        any = true;
    }
    PUT(any ? "]}\n" : "}\n");
#undef PUT
    return at;
}

static int parse_kind(const char *s, enum spool_kind *ret)
{
    for (size_t i = 0; s && i < sizeof kind_names / sizeof kind_names[0]; i++) {
        if (strcmp(s, kind_names[i]) == 0) {
            *ret = (enum spool_kind)i;
            return 0;
        }
    }
    return -EINVAL;
}

static int parse_value(const char *name, const json_t *v, struct spool_row *row)
{
    struct spool_value *to = &row->values[row->n_values];

    if (!json_is_number(v) && !json_is_null(v))
        return -EINVAL;
    if (row->n_values == LIMIT_METRICS || strlen(name) >= sizeof to->name || !name_ok(name))
        return -EINVAL;
    memcpy(to->name, name, strlen(name) + 1);
    to->value = json_is_null(v) ? NAN : json_number_value(v);
    row->n_values++;
    return 0;
}

/* Which of several kinds of "not finite" it was is not kept: NaN. */
static int parse_object(json_t *o, struct spool_row *row)
{
    const char *key, *kind = NULL;
    json_t *v;
    json_int_t attempt = 0, n = 0, step = -1, wall = 0;

    json_object_foreach(o, key, v)
    {
        int r = 0;
        if (strcmp(key, "attempt") == 0)
            attempt = json_integer_value(v);
        else if (strcmp(key, "n") == 0)
            n = json_integer_value(v);
        else if (strcmp(key, "kind") == 0)
            kind = json_string_value(v);
        else if (strcmp(key, "global_step") == 0)
            step = json_integer_value(v);
        else if (strcmp(key, "wall_ms") == 0)
            wall = json_integer_value(v);
        else if (strcmp(key, "nonfinite") != 0)
            r = parse_value(key, v, row);
        if (r < 0)
            return r;
    }
    if (attempt < 1 || attempt > UINT32_MAX || n < 1 || step < 0)
        return -EINVAL;
    row->attempt = (uint32_t)attempt;
    row->n = (uint64_t)n;
    row->global_step = step;
    row->wall_ms = wall;
    return parse_kind(kind, &row->kind);
}

int spool_parse(const char *line, size_t bytes, struct spool_row *ret)
{
    struct spool_row *row;
    json_t *o = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, NULL);
    int r = -EINVAL;

    row = calloc(1, sizeof *row);
    if (row && json_is_object(o))
        r = parse_object(o, row);
    if (r == 0)
        *ret = *row;
    free(row);
    json_decref(o);
    return r;
}

/* ---- writer ---- */

/* Where the last whole line ends and its number; what follows is a crash's. */
static int spool_recover(struct spool *s, const char *dir)
{
    struct spool_tail *t = NULL;
    struct spool_row *row = malloc(sizeof *row);
    char line[SPOOL_LINE_BYTES];
    struct stat st;
    off_t at = 0, end = 0;
    int r = row ? spool_tail_open(dir, &t) : -ENOMEM;

    while (r >= 0 && (r = spool_tail_next(t, row)) == 1)
        s->n = row->n;
    spool_tail_close(t);
    free(row);
    if (r < 0)
        return r;
    if (fstat(s->fd, &st) < 0)
        return -errno;
    while (at < st.st_size) {
        const ssize_t got = pread(s->fd, line, sizeof line, at);
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        const char *nl = memrchr(line, '\n', (size_t)got);
        if (nl)
            end = at + (nl - line) + 1;
        at += got;
    }
    s->bytes = end;
    return ftruncate(s->fd, end) < 0 ? -errno : 0;
}

int spool_create(const char *attempt_dir, uint32_t attempt, struct spool **ret, struct err *err)
{
    struct spool *s = calloc(1, sizeof *s);
    char path[LIMIT_PATH];
    int r = -ENAMETOOLONG;

    if (!s)
        return err_set(err, -ENOMEM, "no memory for the spool");
    s->fd = -1;
    s->attempt = attempt;
    s->synced = clock_ms(CLOCK_MONOTONIC);
    if (snprintf(path, sizeof path, "%s/metrics.jsonl", attempt_dir) >= (int)sizeof path)
        goto fail;
    s->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (s->fd < 0) {
        r = -errno;
        goto fail;
    }
    r = spool_recover(s, attempt_dir);
    if (r < 0)
        goto fail;
    *ret = s;
    return 0;

fail:
    err_set(err, r, "%s/metrics.jsonl: %s", attempt_dir,
            r == -EBADMSG ? "holds a line that is no metrics row" : strerror(-r));
    spool_close(s);
    return r;
}

int spool_sync(struct spool *s, struct err *err)
{
    if (!s->dirty)
        return 0;
    if (fdatasync(s->fd) < 0)
        return err_set(err, -errno, "metrics.jsonl: %s", strerror(errno));
    s->dirty = false;
    s->synced = clock_ms(CLOCK_MONOTONIC);
    return 0;
}

int spool_append(struct spool *s, struct spool_row *row, struct err *err)
{
    char line[SPOOL_LINE_BYTES];
    size_t bytes;
    ssize_t got;

    if (row->n_values < 0 || row->n_values > LIMIT_METRICS || row->global_step < 0)
        return err_set(err, -EINVAL, "metrics.jsonl: a row of %d values at step %lld",
                       row->n_values, (long long)row->global_step);
    for (int i = 0; i < row->n_values; i++)
        if (!name_ok(row->values[i].name))
            return err_set(err, -EINVAL, "metrics.jsonl: no name for a value: %s",
                           row->values[i].name);
    row->attempt = s->attempt;
    row->n = s->n + 1;
    row->wall_ms = clock_ms(CLOCK_REALTIME);
    bytes = spool_format(row, line, sizeof line);
    if (bytes >= sizeof line)
        return err_set(err, -EMSGSIZE, "metrics.jsonl: a row of %zu bytes", bytes);
    do
        got = write(s->fd, line, bytes);
    while (got < 0 && errno == EINTR);
    if (got != (ssize_t)bytes) {
        const int r = got < 0 ? -errno : -ENOSPC;
        (void)!ftruncate(s->fd, s->bytes); /* a part of a line, should it stay, has no newline */
        return err_set(err, r, "metrics.jsonl: %s", strerror(-r));
    }
    s->n = row->n;
    s->bytes += (off_t)bytes;
    s->dirty = true;
    if (row->kind != SPOOL_TRAIN || clock_ms(CLOCK_MONOTONIC) - s->synced >= 1000)
        (void)spool_sync(s, NULL); /* still dirty after a failure: the next one says it */
    return 0;
}

void spool_close(struct spool *s)
{
    if (!s)
        return;
    if (s->fd >= 0) {
        (void)spool_sync(s, NULL);
        close(s->fd);
    }
    free(s);
}

/* ---- reader ---- */

int spool_tail_open(const char *attempt_dir, struct spool_tail **ret)
{
    struct spool_tail *t = calloc(1, sizeof *t);

    if (!t)
        return -ENOMEM;
    t->fd = -1;
    if (asprintf(&t->path, "%s/metrics.jsonl", attempt_dir) < 0) {
        free(t);
        return -ENOMEM;
    }
    *ret = t;
    return 0;
}

/* A line into *ret if buf holds a whole one: 1, 0, -EBADMSG. */
static int tail_line(struct spool_tail *t, struct spool_row *ret)
{
    const char *nl = memchr(t->buf, '\n', t->have);
    const size_t bytes = nl ? (size_t)(nl - t->buf) : 0;
    int r;

    if (!nl)
        return t->have >= SPOOL_LINE_BYTES ? -EBADMSG : 0;
    r = spool_parse(t->buf, bytes, ret);
    t->have -= bytes + 1;
    memmove(t->buf, t->buf + bytes + 1, t->have);
    return r < 0 ? -EBADMSG : 1;
}

int spool_tail_next(struct spool_tail *t, struct spool_row *ret)
{
    if (t->fd < 0) {
        t->fd = open(t->path, O_RDONLY | O_CLOEXEC);
        if (t->fd < 0)
            return errno == ENOENT ? 0 : -errno;
    }
    for (;;) {
        int r = tail_line(t, ret);
        if (r == 1 && ret->n < t->skip)
            continue;
        if (r != 0)
            return r;
        const ssize_t got = read(t->fd, t->buf + t->have, sizeof t->buf - t->have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : 0;
        t->have += (size_t)got;
    }
}

void spool_tail_seek(struct spool_tail *t, uint64_t n)
{
    t->skip = n;
    t->have = 0;
    if (t->fd >= 0)
        (void)lseek(t->fd, 0, SEEK_SET);
}

void spool_tail_close(struct spool_tail *t)
{
    if (!t)
        return;
    if (t->fd >= 0)
        close(t->fd);
    free(t->path);
    free(t);
}
