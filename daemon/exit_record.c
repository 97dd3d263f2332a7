/* exit_record.c - see exit_record.h. */
#include "daemon/exit_record.h"

#include <errno.h>
#include <string.h>

#include <jansson.h>

static int get_int(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *ret,
                   struct err *err)
{
    const json_t *v = json_object_get(o, key);

    if (!json_is_integer(v) || json_integer_value(v) < lo || json_integer_value(v) > hi)
        return err_set(err, -EBADMSG, "exit record: %s must be a whole number from %lld to %lld",
                       key, (long long)lo, (long long)hi);
    *ret = json_integer_value(v);
    return 0;
}

/* Texts are for people: too long is cut, missing is "". */
static int get_text(const json_t *o, const char *key, char *to, size_t size, struct err *err)
{
    const json_t *v = json_object_get(o, key);
    size_t n;

    to[0] = 0;
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_string(v))
        return err_set(err, -EBADMSG, "exit record: %s must be a string", key);
    n = json_string_length(v);
    if (n >= size) {
        n = size - 1;
        while (n > 0 && ((unsigned char)json_string_value(v)[n] & 0xc0) == 0x80)
            n--; /* not in the middle of a character */
    }
    memcpy(to, json_string_value(v), n);
    to[n] = 0;
    return 0;
}

static int get_all(const json_t *o, uint64_t job, uint32_t attempt, struct exit_record *x,
                   struct err *err)
{
    int64_t v, was_job, was_attempt, code, signal, rank, step, rss;

    if (get_int(o, "v", 1, INT32_MAX, &v, err) < 0 ||
        get_int(o, "job", 0, INT64_MAX, &was_job, err) < 0 ||
        get_int(o, "attempt", 0, UINT32_MAX, &was_attempt, err) < 0 ||
        get_int(o, "code", 0, 255, &code, err) < 0 ||
        get_int(o, "signal", 0, 64, &signal, err) < 0 ||
        get_int(o, "first_rank", -1, LIMIT_RANKS - 1, &rank, err) < 0 ||
        get_int(o, "step", -1, INT64_MAX, &step, err) < 0 ||
        get_int(o, "peak_rss_kb", 0, INT64_MAX, &rss, err) < 0 ||
        get_text(o, "error", x->error, sizeof x->error, err) < 0 ||
        get_text(o, "adapter", x->adapter, sizeof x->adapter, err) < 0)
        return -EBADMSG;
    if ((uint64_t)was_job != job || (uint64_t)was_attempt != attempt)
        return err_set(err, -EBADMSG, "exit record: of job %lld, attempt %lld", (long long)was_job,
                       (long long)was_attempt);
    x->exit = (struct event_exit){.code = (int32_t)code,
                                  .signal = (int32_t)signal,
                                  .first_rank = (int32_t)rank,
                                  .step = step,
                                  .peak_rss_kb = rss,
                                  .error = x->error[0] ? x->error : NULL,
                                  .adapter = x->adapter[0] ? x->adapter : NULL};
    return 0;
}

int exit_record_parse(const char *text, size_t bytes, uint64_t job, uint32_t attempt,
                      struct exit_record *ret, struct err *err)
{
    json_error_t je;
    json_t *o;
    int r;

    if (bytes > LIMIT_RDV_BYTES)
        return err_set(err, -EBADMSG, "exit record: larger than %d bytes", LIMIT_RDV_BYTES);
    o = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &je);
    if (!json_is_object(o)) {
        r = err_set(err, -EBADMSG, "exit record: %s", o ? "not an object" : je.text);
        json_decref(o);
        return r;
    }
    r = get_all(o, job, attempt, ret, err);
    json_decref(o);
    return r;
}
