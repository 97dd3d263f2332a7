/* gang.c - see gang.h. */
#include "worker/gang.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/atomic_file.h"
#include "proto/proc.h"
#include "worker/json_text.h"

enum { FILE_MAX = 4 * LIMIT_SPEC_BYTES };

/* A whole small file as text, malloc'ed. */
static int read_text(int dir_fd, const char *name, char **ret, size_t *ret_bytes)
{
    struct stat st;
    char *text = NULL;
    size_t have = 0;
    int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC), r;

    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) < 0) {
        r = -errno;
        goto fail;
    }
    r = S_ISREG(st.st_mode) && st.st_size <= FILE_MAX ? 0 : -EFBIG;
    if (r < 0)
        goto fail;
    text = malloc((size_t)st.st_size + 1);
    r = text ? 0 : -ENOMEM;
    while (r == 0 && have < (size_t)st.st_size) {
        const ssize_t n = read(fd, text + have, (size_t)st.st_size - have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            r = n < 0 ? -errno : -EIO;
            break;
        }
        have += (size_t)n;
    }
    if (r < 0)
        goto fail;
    text[have] = '\0';
    close(fd);
    *ret = text;
    *ret_bytes = have;
    return 0;

fail:
    free(text);
    close(fd);
    return r;
}

static char *take_string(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? strdup(s) : NULL;
}

static char *take_json(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);

    return json_is_object(v) ? json_text(v, JSON_INDENT(2)) : NULL;
}

static int64_t take_ms(const json_t *o, const char *key, int64_t otherwise)
{
    const json_int_t v = json_integer_value(json_object_get(o, key));

    return v > 0 ? v : otherwise;
}

static int take_devices(const json_t *v, struct gang *g)
{
    if (json_array_size(v) < 1 || json_array_size(v) > LIMIT_RANKS)
        return -EINVAL;
    for (size_t i = 0; i < json_array_size(v); i++) {
        const char *s = json_string_value(json_array_get(v, i));
        if (!s || !(g->devices[i] = strdup(s)))
            return s ? -ENOMEM : -EINVAL;
        g->n_devices++;
    }
    return 0;
}

static int gang_take(const json_t *o, struct gang *g)
{
    const json_int_t job = json_integer_value(json_object_get(o, "job"));
    const json_int_t attempt = json_integer_value(json_object_get(o, "attempt"));
    const json_int_t threads = json_integer_value(json_object_get(o, "threads_per_device"));
    const json_t *mask = json_object_get(o, "umask");

    if (json_integer_value(json_object_get(o, "v")) != 1 || job < 0 || attempt < 1 ||
        attempt > UINT32_MAX || threads < 0 || threads > 4096)
        return -EINVAL;
    g->job = (uint64_t)job;
    g->attempt = (uint32_t)attempt;
    g->threads_per_device = (int)threads;
    g->umask = json_is_integer(mask) ? (int)json_integer_value(mask) & 0777 : -1;
    g->output_dir = take_string(o, "output_dir");
    g->device_type = take_string(o, "device_type");
    g->worker_url = take_string(o, "worker_url");
    g->worker = take_string(o, "worker");
    g->spec = take_json(o, "spec");
    g->user_spec = take_json(o, "user_spec");
    g->overwrite = json_is_true(json_object_get(o, "overwrite"));
    g->beat_ms = take_ms(o, "beat_ms", 5000);
    g->silence_ms = take_ms(o, "silence_ms", 30000);
    g->stall_ms = take_ms(o, "stall_ms", 300000);
    g->grace_ms = take_ms(o, "grace_ms", 10000);
    if (!g->worker_url)
        g->worker_url = strdup("");
    if (!g->output_dir || g->output_dir[0] != '/' || !g->device_type || !g->spec || !g->worker_url)
        return -EINVAL;
    return take_devices(json_object_get(o, "devices"), g);
}

int gang_read(int dir_fd, struct gang **ret, struct err *err)
{
    struct gang *g = NULL;
    char *text = NULL;
    size_t bytes = 0;
    json_error_t at;
    json_t *o = NULL;
    int r = read_text(dir_fd, "gang.json", &text, &bytes);

    if (r < 0)
        return err_set(err, r, "gang.json: %s", strerror(-r));
    o = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &at);
    free(text);
    if (!o)
        return err_set(err, -EINVAL, "gang.json, line %d: %s", at.line, at.text);
    g = calloc(1, sizeof *g);
    r = g ? gang_take(o, g) : -ENOMEM;
    json_decref(o);
    if (r < 0) {
        gang_free(g);
        return err_set(err, r, "gang.json: %s",
                       r == -EINVAL ? "not what docs/PROCESSES.md describes" : strerror(-r));
    }
    *ret = g;
    return 0;
}

void gang_free(struct gang *g)
{
    if (!g)
        return;
    for (int i = 0; i < g->n_devices; i++)
        free(g->devices[i]);
    free(g->output_dir);
    free(g->device_type);
    free(g->worker_url);
    free(g->worker);
    free(g->spec);
    free(g->user_spec);
    free(g);
}

/* o's text into the file `name`; takes o. ret_text may be NULL. */
static int write_json(int dir_fd, const char *name, json_t *o, char **ret_text)
{
    char *text = o ? json_text(o, JSON_COMPACT) : NULL;
    struct span part = {text, text ? strlen(text) : 0};
    int r = text ? atomic_file_replace(dir_fd, name, &part, 1) : -ENOMEM;

    json_decref(o);
    if (ret_text)
        *ret_text = text;
    else
        free(text);
    return r;
}

int gang_write_pids(int dir_fd, const struct gang *g, const struct gang_process *ranks, int n)
{
    json_t *list = json_array();
    char boot[PROC_BOOT_TEXT];

    proc_boot_text(boot);
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_pack("{s:i,s:I,s:s}", "pid", (int)ranks[i].pid, "start",
                                              (json_int_t)ranks[i].start, "device", g->devices[i]));
    return write_json(dir_fd, "pids.json",
                      json_pack("{s:i,s:s,s:{s:i,s:I},s:o}", "v", 1, "boot_id", boot, "supervisor",
                                "pid", (int)getpid(), "start", (json_int_t)proc_start(getpid()),
                                "ranks", list),
                      NULL);
}

/* Text that another program wrote, as jansson takes it. */
static json_t *string_of(const char *s)
{
    json_t *o = json_string(s);

    return o ? o : json_string("(not UTF-8)");
}

int gang_write_exit(int dir_fd, const struct gang *g, const struct gang_exit *e, char **ret_text)
{
    json_t *list = json_array();

    for (int i = 0; i < e->n_ranks; i++)
        json_array_append_new(list,
                              json_pack("{s:i,s:i,s:I}", "code", e->ranks[i].code, "signal",
                                        e->ranks[i].signal, "step", (json_int_t)e->ranks[i].step));
    return write_json(dir_fd, "exit.json",
                      json_pack("{s:i,s:I,s:I,s:i,s:i,s:i,s:o,s:I,s:I,s:f,s:f,s:f,s:o,s:o}", "v", 1,
                                "job", (json_int_t)g->job, "attempt", (json_int_t)g->attempt,
                                "code", e->code, "signal", e->signal, "first_rank", e->first_rank,
                                "error", string_of(e->error), "step", (json_int_t)e->step,
                                "peak_rss_kb", (json_int_t)e->peak_rss_kb, "user_s", e->user_s,
                                "system_s", e->system_s, "wall_s", e->wall_s, "adapter",
                                string_of(e->adapter), "ranks", list),
                      ret_text);
}

int gang_read_exit(int dir_fd, char **ret_text, struct gang_exit *ret)
{
    char *text = NULL;
    size_t bytes = 0;
    json_t *o;
    int r = read_text(dir_fd, "exit.json", &text, &bytes);

    if (r < 0)
        return r;
    o = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(o) || !json_is_integer(json_object_get(o, "code"))) {
        json_decref(o);
        free(text);
        return -EBADMSG;
    }
    memset(ret, 0, sizeof *ret);
    ret->code = (int)json_integer_value(json_object_get(o, "code"));
    ret->signal = (int)json_integer_value(json_object_get(o, "signal"));
    ret->first_rank = (int)json_integer_value(json_object_get(o, "first_rank"));
    ret->step = json_integer_value(json_object_get(o, "step"));
    const char *error = json_string_value(json_object_get(o, "error"));
    const char *adapter = json_string_value(json_object_get(o, "adapter"));
    snprintf(ret->error, sizeof ret->error, "%s", error ? error : "");
    snprintf(ret->adapter, sizeof ret->adapter, "%s", adapter ? adapter : "");
    json_decref(o);
    *ret_text = text;
    return 0;
}
