/* dropped.c - see dropped.h. */
#include "client/dropped.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/limit.h"

enum { LINES_MAX = 10000000 };

static void count(json_t *counts, const char *line, size_t bytes)
{
    json_t *row = json_loadb(line, bytes, 0, NULL);
    const char *reason = json_string_value(json_object_get(row, "reason"));
    if (reason)
        json_object_set_new(counts, reason,
                            json_integer(json_integer_value(json_object_get(counts, reason)) + 1));
    json_decref(row);
}

json_t *dropped_count(const char *output_dir)
{
    char path[LIMIT_PATH + 32];
    struct stat st;
    char *line = NULL;
    size_t room = 0, lines = 0;
    ssize_t n;

    (void)snprintf(path, sizeof path, "%s/dropped.jsonl", output_dir);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return NULL;
    FILE *f = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? fdopen(fd, "r") : NULL;
    if (!f) {
        (void)close(fd);
        return NULL;
    }
    json_t *counts = json_object();
    while (counts && lines++ < LINES_MAX && (n = getline(&line, &room, f)) > 0)
        count(counts, line, (size_t)n);
    free(line);
    (void)fclose(f);
    return counts;
}
