/* log.c - see log.h. */
#include "proto/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static _Atomic int level_max = LOG_INFO;
static pthread_mutex_t capture_lock = PTHREAD_MUTEX_INITIALIZER;
static void (*capture_fn)(void *arg, enum log_level level, const char *line);
static void *capture_arg;

static const char *level_name(enum log_level level)
{
    switch (level) {
    case LOG_ERROR:
        return "error";
    case LOG_WARN:
        return "warn";
    case LOG_INFO:
        return "info";
    case LOG_DEBUG:
        break;
    }
    return "debug";
}

void log_set_level(enum log_level level)
{
    atomic_store(&level_max, (int)level);
}

int log_level_parse(const char *s, enum log_level *ret)
{
    static const enum log_level all[] = {LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG};

    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (!strcmp(s, level_name(all[i]))) {
            *ret = all[i];
            return 0;
        }
    }
    return -EINVAL;
}

void log_capture(void (*fn)(void *arg, enum log_level level, const char *line), void *arg)
{
    pthread_mutex_lock(&capture_lock);
    capture_fn = fn;
    capture_arg = arg;
    pthread_mutex_unlock(&capture_lock);
}

/* journald reads "<3>" at the start of a line as its priority; people and files
 * get a time instead. JOURNAL_STREAM is set exactly when stderr is the journal's. */
static int prefix(char *line, size_t size, enum log_level level)
{
    struct timespec ts;
    struct tm tm;
    size_t n;

    if (getenv("JOURNAL_STREAM"))
        return snprintf(line, size, "<%d>", (int)level);
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    n = strftime(line, size, "%Y-%m-%dT%H:%M:%S", &tm);
    return (int)n +
           snprintf(line + n, size - n, ".%03ldZ %-5s ", ts.tv_nsec / 1000000, level_name(level));
}

void log_write(enum log_level level, const char *event, const char *fmt, ...)
{
    char line[2048];
    va_list ap;
    size_t n;

    if ((int)level > atomic_load(&level_max))
        return;
    n = (size_t)prefix(line, sizeof line, level);
    n += (size_t)snprintf(line + n, sizeof line - n, "%s ", event);
    va_start(ap, fmt);
    n += (size_t)vsnprintf(line + n, sizeof line - n, fmt, ap);
    va_end(ap);
    if (n > sizeof line - 2)
        n = sizeof line - 2;
    for (size_t i = 0; i < n; i++) /* one line stays one line */
        if ((unsigned char)line[i] < 0x20)
            line[i] = ' ';
    line[n] = 0;
    pthread_mutex_lock(&capture_lock);
    if (capture_fn) {
        capture_fn(capture_arg, level, line);
    } else {
        line[n] = '\n';
        if (write(STDERR_FILENO, line, n + 1) < 0) {
            /* nobody is left to be told */
        }
    }
    pthread_mutex_unlock(&capture_lock);
}
