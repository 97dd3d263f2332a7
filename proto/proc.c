/* proc.c - see proc.h. */
#include "proto/proc.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The beginning of a small file of /proc as text; "" when it cannot be read. */
static void read_text(const char *path, char *to, size_t size)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const ssize_t n = fd < 0 ? -1 : read(fd, to, size - 1);

    to[n > 0 ? n : 0] = '\0';
    if (fd >= 0)
        close(fd);
}

void proc_boot_text(char ret[PROC_BOOT_TEXT])
{
    read_text("/proc/sys/kernel/random/boot_id", ret, PROC_BOOT_TEXT);
    ret[strcspn(ret, "\n")] = '\0';
}

static int digit(char c)
{
    static const char digits[] = "0123456789abcdef";
    const char *at = c ? strchr(digits, c) : NULL;

    return at ? (int)(at - digits) : -1;
}

void proc_boot_bytes(uint8_t ret[PROC_BOOT_BYTES])
{
    char text[PROC_BOOT_TEXT];
    size_t n = 0;

    memset(ret, 0, PROC_BOOT_BYTES);
    proc_boot_text(text);
    for (const char *p = text; *p && n < 2 * PROC_BOOT_BYTES; p++) {
        if (digit(*p) < 0) /* a dash */
            continue;
        ret[n / 2] = (uint8_t)(ret[n / 2] << 4 | digit(*p));
        n++;
    }
}

uint64_t proc_start(pid_t pid)
{
    char path[64], text[1024];
    unsigned long long start;
    const char *p;

    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    read_text(path, text, sizeof text);
    p = strrchr(text, ')'); /* the command before it may hold anything; " S ..." follows */
    if (!p || strlen(p) < 4 || p[2] == 'Z' || p[2] == 'X')
        return 0;
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    start = p ? strtoull(p + 1, NULL, 10) : 0;
    return start;
}
