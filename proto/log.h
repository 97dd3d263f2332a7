/* log.h - one line per fact to standard error.
 *
 * log_info("job_move", "job=%llu from=%s to=%s", ...): a fixed event name, then
 * key=value. Libraries return; programs log. Thread-safe, one write per line. */
#ifndef PROTO_LOG_H
#define PROTO_LOG_H

enum log_level { LOG_ERROR = 3, LOG_WARN = 4, LOG_INFO = 6, LOG_DEBUG = 7 };

/* Lines above this level are dropped. Initially LOG_INFO. */
void log_set_level(enum log_level level);
/* -EINVAL unless error, warn, info or debug. */
int log_level_parse(const char *s, enum log_level *ret);
/* Tests: every line goes here instead. NULL: back to standard error. */
void log_capture(void (*fn)(void *arg, enum log_level level, const char *line), void *arg);

void log_write(enum log_level level, const char *event, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)

#endif
