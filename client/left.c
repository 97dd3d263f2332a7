/* left.c - see left.h. */
#include "client/left.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/jobview.h"
#include "proto/limit.h"

/* N of "checkpoint-N", or -1. */
static long long step_of(const char *name)
{
    static const char prefix[] = "checkpoint-";
    const char *digits = name + sizeof prefix - 1;
    char *end;
    if (strncmp(name, prefix, sizeof prefix - 1) != 0 || *digits < '0' || *digits > '9')
        return -1;
    errno = 0;
    long long step = strtoll(digits, &end, 10);
    return *end || errno ? -1 : step;
}

const char *left_adapter(const json_t *job, char *buf, size_t room)
{
    const char *out = jobview_text(job, "output_dir");
    char path[LIMIT_PATH + 80];
    long long best = -1;
    struct dirent *e;

    (void)snprintf(buf, room, "%s", jobview_text(job, "adapter"));
    DIR *d = *buf || *out != '/' || jobview_int(job, "attempt") < 1 ? NULL : opendir(out);
    while (d && (e = readdir(d))) {
        long long step = step_of(e->d_name);
        (void)snprintf(path, sizeof path, "%s/%s/adapter_config.json", out, e->d_name);
        if (step > best && access(path, R_OK) == 0)
            best = step;
    }
    if (d)
        (void)closedir(d);
    if (best >= 0)
        (void)snprintf(buf, room, "%s/checkpoint-%lld", out, best);
    return buf;
}
