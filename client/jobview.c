/* jobview.c - see jobview.h. */
#include "client/jobview.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static const struct {
    const char *state, *letters;
    bool over;
} states[] = {
    {"PENDING", "PD", false},       {"CONFIGURING", "CF", false}, {"RUNNING", "R", false},
    {"COMPLETING", "CG", false},    {"COMPLETED", "CD", true},    {"FAILED", "F", true},
    {"CANCELLED", "CA", true},      {"TIMEOUT", "TO", true},      {"PREEMPTED", "PR", false},
    {"OUT_OF_MEMORY", "OOM", true}, {"NODE_FAIL", "NF", true},
};
enum { N_STATES = sizeof states / sizeof states[0] };

const char *jobview_text(const json_t *job, const char *key)
{
    const char *s = json_string_value(json_object_get(job, key));
    return s ? s : "";
}

int64_t jobview_int(const json_t *job, const char *key)
{
    return json_integer_value(json_object_get(job, key));
}

double jobview_number(const json_t *job, const char *key)
{
    const json_t *v = json_object_get(job, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

bool jobview_over(const json_t *job)
{
    const char *s = jobview_text(job, "state");
    for (size_t i = 0; i < N_STATES; i++)
        if (strcmp(states[i].state, s) == 0)
            return states[i].over;
    return false;
}

bool jobview_completed(const json_t *job)
{
    return strcmp(jobview_text(job, "state"), "COMPLETED") == 0;
}

const char *jobview_short(const char *state)
{
    for (size_t i = 0; i < N_STATES; i++)
        if (strcmp(states[i].state, state) == 0)
            return states[i].letters;
    return state;
}

const char *jobview_step(format_buf b, const json_t *job)
{
    int64_t step = jobview_int(job, "step"), steps = jobview_int(job, "steps");
    if (steps > 0)
        (void)snprintf(b, FORMAT_ROOM, "%lld/%lld", (long long)step, (long long)steps);
    else
        (void)snprintf(b, FORMAT_ROOM, "%lld/-", (long long)step);
    return b;
}

double jobview_seconds(const json_t *job, int64_t now_ms)
{
    int64_t from = jobview_int(job, "started_ms"), to = jobview_int(job, "ended_ms");
    if (from <= 0)
        return 0;
    if (!jobview_over(job) || to < from)
        to = now_ms;
    return to > from ? (double)(to - from) / 1000 : 0;
}

/* A UUID by its first 12 bytes, which also name it to alignd. */
const char *jobview_device(const char *name, format_buf b)
{
    const bool uuid = strncmp(name, "GPU-", 4) == 0 || strncmp(name, "MIG-", 4) == 0;
    (void)snprintf(b, sizeof(format_buf), "%.*s", uuid ? 12 : FORMAT_ROOM - 1, name);
    return b;
}

const char *jobview_gpu(const json_t *gpu, char *buf, size_t room)
{
    const json_t *used = json_object_get(gpu, "memory_used"),
                 *total = json_object_get(gpu, "memory_total"),
                 *load = json_object_get(gpu, "utilisation"),
                 *heat = json_object_get(gpu, "temperature");
    format_buf name;
    size_t n = (size_t)snprintf(buf, room, "rank %lld  %s", (long long)jobview_int(gpu, "rank"),
                                jobview_device(jobview_text(gpu, "device"), name));
    if (json_is_number(load) && n < room)
        n += (size_t)snprintf(buf + n, room - n, "  util %3lld %%",
                              (long long)json_integer_value(load));
    if (json_is_number(used) && json_is_number(total) && n < room)
        n += (size_t)snprintf(buf + n, room - n, "  mem %.1f/%.1f GiB",
                              json_number_value(used) / (1 << 30),
                              json_number_value(total) / (1 << 30));
    if (json_is_number(heat) && n < room)
        n += (size_t)snprintf(buf + n, room - n, "  %lld C", (long long)json_integer_value(heat));
    if (*jobview_text(gpu, "name") && n < room)
        (void)snprintf(buf + n, room - n, "  %s", jobview_text(gpu, "name"));
    return buf;
}

const char *jobview_devices(const json_t *job, char *buf, size_t room)
{
    const json_t *names = json_object_get(job, "device_names");
    size_t n = json_array_size(names), used = 0;
    buf[0] = '\0';
    if (n == 0)
        (void)snprintf(buf, room, "%lld", (long long)jobview_int(job, "devices"));
    for (size_t i = 0; i < n && used < room; i++) {
        const char *s = json_string_value(json_array_get(names, i));
        format_buf b;
        used += (size_t)snprintf(buf + used, room - used, "%s%s", i ? "," : "",
                                 jobview_device(s ? s : "?", b));
    }
    return buf;
}

const char *jobview_reason(const json_t *job, char *buf, size_t room)
{
    const char *reason = jobview_text(job, "reason"), *text = jobview_text(job, "reason_text");
    const char *error = jobview_text(job, "error");
    bool none = strcmp(reason, "None") == 0 || !*reason;
    if (jobview_over(job) && !jobview_completed(job) && *error)
        text = error;
    if (none && !*text)
        (void)snprintf(buf, room, "None");
    else if (*text)
        (void)snprintf(buf, room, "%s%s%s", none ? "" : reason, none ? "" : ": ", text);
    else
        (void)snprintf(buf, room, "%s", reason);
    return buf;
}

const char *jobview_goes_on(const json_t *job)
{
    const char *s = jobview_text(job, "state");
    if (strcmp(s, "PENDING") == 0 || strcmp(s, "PREEMPTED") == 0)
        return "waits on in the queue";
    if (strcmp(s, "CONFIGURING") == 0)
        return "goes on starting";
    if (strcmp(s, "COMPLETING") == 0)
        return "goes on stopping";
    return strcmp(s, "RUNNING") == 0 ? "trains on" : "is as it was";
}

int64_t jobview_now_ms(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}
