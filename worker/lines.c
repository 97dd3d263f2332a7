/* lines.c - see lines.h. */
#include "worker/lines.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "proto/limit.h"
#include "worker/text.h"

enum { BLOCK = 1 << 17 };

struct lines {
    char *path;
    struct archive *archive;
    const char *block; /* what libarchive lent, read from `at` on */
    size_t n, at;
    bool end; /* nothing follows this block */
    struct text row;
    int64_t number;
    bool array;
    enum { ARRAY_BEFORE, ARRAY_INSIDE, ARRAY_AFTER } where;
};

/* The next block: 1, 0 at the end, negative. */
static int fill(struct lines *l, struct err *err)
{
    const void *block;
    size_t n;
    la_int64_t offset;

    while (!l->end) {
        const int r = archive_read_data_block(l->archive, &block, &n, &offset);
        if (r == ARCHIVE_EOF) {
            l->end = true;
            break;
        }
        if (r != ARCHIVE_OK) {
            const char *why = archive_error_string(l->archive);
            l->end = true;
            return err_set(err, -EINVAL, "%s: damaged or cut short after row %lld: %s", l->path,
                           (long long)l->number, why ? why : "unreadable");
        }
        if (n > 0) {
            l->block = block;
            l->n = n;
            l->at = 0;
            return 1;
        }
    }
    l->n = l->at = 0;
    return 0;
}

static int grow(struct lines *l, const char *s, size_t n, struct err *err)
{
    if (n > LIMIT_ROW_BYTES - l->row.n)
        return err_set(err, -E2BIG, "%s: row %lld is longer than %d MB", l->path,
                       (long long)l->number + !l->array, LIMIT_ROW_BYTES >> 20);
    return text_add(&l->row, s, n) ? err_set(err, -ENOMEM, "%s: out of memory", l->path) : 0;
}

static bool is_blank(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r' && s[i] != '\n')
            return false;
    return true;
}

/* ---- .jsonl ---- */

/* One physical line, blank or not: 1, 0 at the end, negative. */
static int next_line(struct lines *l, const char **ret, size_t *ret_n, struct err *err)
{
    l->row.n = 0;
    for (;;) {
        if (l->at == l->n) {
            const int r = fill(l, err);
            if (r < 0)
                return r;
            if (r == 0) { /* a last line without a newline */
                *ret = l->row.s;
                *ret_n = l->row.n;
                l->number += l->row.n > 0;
                return l->row.n > 0;
            }
        }
        const char *s = l->block + l->at, *newline = memchr(s, '\n', l->n - l->at);
        const size_t n = newline ? (size_t)(newline - s) : l->n - l->at;
        l->at += n + (newline != NULL);
        const bool whole = newline && l->row.n == 0 && n <= LIMIT_ROW_BYTES;
        if (!whole) {
            const int r = grow(l, s, n, err);
            if (r)
                return r;
        }
        if (newline) {
            *ret = whole ? s : l->row.s;
            *ret_n = whole ? n : l->row.n;
            l->number++;
            return 1;
        }
    }
}

/* ---- a JSON array ---- */

/* Where a scan of one element stands. */
struct scan {
    int64_t depth;
    bool string, escape;
};

/* Takes bytes of an element; returns how many belong to it, and whether it ended. */
static size_t scan_element(struct scan *sc, const char *s, size_t n, bool *ret_done)
{
    *ret_done = false;
    for (size_t i = 0; i < n; i++) {
        const char c = s[i];
        if (sc->string) {
            if (sc->escape)
                sc->escape = false;
            else if (c == '\\')
                sc->escape = true;
            else if (c == '"')
                sc->string = false;
            continue;
        }
        if (sc->depth == 0 && (c == ',' || c == ']')) {
            *ret_done = true;
            return i;
        }
        if (c == '"')
            sc->string = true;
        else if (c == '{' || c == '[')
            sc->depth++;
        else if (c == '}' || c == ']')
            sc->depth--;
        if (sc->depth < 0) { /* '}' without '{': the parser of rows will say so */
            *ret_done = true;
            return i + 1;
        }
    }
    return n;
}

static int after_array(struct lines *l, struct err *err)
{
    for (;;) {
        if (!is_blank(l->block + l->at, l->n - l->at))
            return err_set(err, -EINVAL, "%s: there is more after the array's ']' (row %lld)",
                           l->path, (long long)l->number);
        const int r = fill(l, err);
        if (r <= 0)
            return r;
    }
}

/* Skips to the next element: 1 there is one, 0 the array has ended, negative. */
static int find_element(struct lines *l, struct err *err)
{
    bool comma = l->where == ARRAY_BEFORE;
    for (;;) {
        for (; l->at < l->n; l->at++) {
            const char c = l->block[l->at];
            if (is_blank(&c, 1))
                continue;
            if (c == '[' && l->where == ARRAY_BEFORE) {
                l->where = ARRAY_INSIDE;
            } else if (c == ',' && !comma) {
                comma = true;
            } else if (c == ',' || (c == ']' && comma && l->number > 0)) {
                return err_set(err, -EINVAL, "%s: nothing after the comma that follows row %lld",
                               l->path, (long long)l->number);
            } else if (c == ']') {
                l->where = ARRAY_AFTER;
                l->at++;
                return after_array(l, err);
            } else if (!comma) {
                return err_set(err, -EINVAL, "%s: no comma after row %lld of the array", l->path,
                               (long long)l->number);
            } else {
                return 1;
            }
        }
        const int r = fill(l, err);
        if (r < 0)
            return r;
        if (r == 0)
            return err_set(err, -EINVAL, "%s: cut short: the array has no ']' after row %lld",
                           l->path, (long long)l->number);
    }
}

static int next_element(struct lines *l, const char **ret, size_t *ret_n, struct err *err)
{
    struct scan sc = {0};
    bool done = false;

    if (l->where == ARRAY_AFTER)
        return 0;
    l->row.n = 0;
    int r = find_element(l, err);
    if (r <= 0)
        return r;
    l->number++;
    while (!done) {
        const size_t n = scan_element(&sc, l->block + l->at, l->n - l->at, &done);
        r = grow(l, l->block + l->at, n, err);
        if (r)
            return r;
        l->at += n;
        if (done)
            break;
        r = fill(l, err);
        if (r < 0)
            return r;
        if (r == 0)
            return err_set(err, -EINVAL, "%s: cut short inside row %lld", l->path,
                           (long long)l->number);
    }
    *ret = l->row.s;
    *ret_n = l->row.n;
    return 1;
}

/* ---- opening ---- */

static bool ends_with(const char *s, const char *end)
{
    const size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcasecmp(s + n - k, end);
}

static int refuse_kind(const char *path, const char *kind, const char *reader, struct err *err)
{
    return err_set(err, -EINVAL,
                   "%s: %s is not read; convert it once: python3 -c \"import pandas as pd; "
                   "pd.%s('%s').to_json('%s.jsonl', orient='records', lines=True, "
                   "force_ascii=False)\"",
                   path, kind, reader, path, path);
}

static int check_name(const char *path, struct err *err)
{
    struct stat st;
    if (stat(path, &st))
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return err_set(err, -EINVAL, "%s: not a file", path);
    if (ends_with(path, ".parquet"))
        return refuse_kind(path, "Parquet", "read_parquet", err);
    if (ends_with(path, ".arrow") || ends_with(path, ".feather"))
        return refuse_kind(path, "Arrow", "read_feather", err);
    if (ends_with(path, ".csv") || ends_with(path, ".csv.gz"))
        return refuse_kind(path, "CSV", "read_csv", err);
    return 0;
}

static int open_archive(struct lines *l, struct err *err)
{
    struct archive_entry *entry;
    struct archive *a = l->archive = archive_read_new();

    if (!a)
        return -ENOMEM;
    /* Not filter_all: it has filters that start programs. */
    (void)archive_read_support_filter_gzip(a);
    (void)archive_read_support_filter_xz(a);
    (void)archive_read_support_filter_zstd(a);
    (void)archive_read_support_filter_bzip2(a);
    (void)archive_read_support_format_raw(a);
    (void)archive_read_support_format_empty(a);
    int r = archive_read_open_filename(a, l->path, BLOCK);
    if (r == ARCHIVE_OK)
        r = archive_read_next_header(a, &entry);
    if (r == ARCHIVE_EOF) {
        l->end = true;
        return 0;
    }
    if (r != ARCHIVE_OK)
        return err_set(err, -EINVAL, "%s: damaged or cut short after row 0: %s", l->path,
                       archive_error_string(a) ? archive_error_string(a) : "unknown reason");
    return 0;
}

/* What the first block says: a byte order mark, an array, Parquet. */
static int look(struct lines *l, struct err *err)
{
    const int r = fill(l, err);
    if (r <= 0)
        return r;
    if (l->n >= 4 && !memcmp(l->block, "PAR1", 4))
        return refuse_kind(l->path, "Parquet", "read_parquet", err);
    if (l->n >= 3 && !memcmp(l->block, "\xef\xbb\xbf", 3))
        l->at = 3;
    size_t i = l->at;
    while (i < l->n && is_blank(l->block + i, 1))
        i++;
    l->array = i < l->n && l->block[i] == '[';
    return 0;
}

int lines_open(const char *path, struct lines **ret, struct err *err)
{
    int r = check_name(path, err);
    if (r)
        return r;
    struct lines *l = calloc(1, sizeof *l);
    if (!l || !(l->path = strdup(path))) {
        lines_close(l);
        return err_set(err, -ENOMEM, "%s: out of memory", path);
    }
    r = open_archive(l, err);
    if (!r)
        r = look(l, err);
    if (r) {
        lines_close(l);
        return r;
    }
    *ret = l;
    return 0;
}

void lines_close(struct lines *l)
{
    if (!l)
        return;
    if (l->archive)
        (void)archive_read_free(l->archive);
    text_free(&l->row);
    free(l->path);
    free(l);
}

int lines_next(struct lines *l, const char **ret, size_t *ret_n, int64_t *ret_row, struct err *err)
{
    int r;
    do
        r = l->array ? next_element(l, ret, ret_n, err) : next_line(l, ret, ret_n, err);
    while (r == 1 && !l->array && is_blank(*ret, *ret_n));
    if (r == 1)
        *ret_row = l->number;
    return r;
}
