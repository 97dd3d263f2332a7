/* proc.c - see proc.h. */
#include "proto/proc.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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

bool proc_whole_machine(void)
{
    static const char first[] = "pid:[4026531836]"; /* PROC_PID_INIT_INO, since Linux 3.8 */
    char text[64];
    const ssize_t n = readlink("/proc/self/ns/pid", text, sizeof text);

    return n < 0 || ((size_t)n == sizeof first - 1 && memcmp(text, first, sizeof first - 1) == 0);
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

/* Its stat file, and where its fields after the command begin: " S ..."; NULL: there is
 * none. The command may hold anything. */
static char *read_stat(pid_t pid, char *text, size_t size)
{
    char path[64];

    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    read_text(path, text, size);
    return strrchr(text, ')');
}

/* Field n > 2 of it. */
static const char *field(const char *command_end, int n)
{
    const char *p = command_end;

    for (int at = 2; p && at < n; at++)
        p = strchr(p + 1, ' ');
    return p ? p + 1 : NULL;
}

uint64_t proc_start(pid_t pid)
{
    char text[1024];
    const char *end = read_stat(pid, text, sizeof text);
    const char *start = end ? field(end, 22) : NULL;

    if (!start || end[2] == 'Z' || end[2] == 'X')
        return 0;
    return strtoull(start, NULL, 10);
}

bool proc_look(pid_t pid, struct proc_who *ret)
{
    char text[1024], path[64], *end;
    const char *session, *name;
    struct stat st;
    size_t n = 0;

    if (pid <= 0)
        return false;
    end = read_stat(pid, text, sizeof text);
    name = strchr(text, '(');
    session = end ? field(end, 6) : NULL;
    (void)snprintf(path, sizeof path, "/proc/%d", (int)pid);
    if (!name || !session || name > end || end[2] == 'Z' || end[2] == 'X' || stat(path, &st) < 0)
        return false;
    *ret = (struct proc_who){.session = (pid_t)strtol(session, NULL, 10), .uid = st.st_uid};
    for (const char *p = name + 1; p < end && n + 1 < sizeof ret->name; p++)
        ret->name[n++] = *p > ' ' && *p < 127 ? *p : '_';
    return true;
}

/* The number behind `name` at the beginning of a line. */
static bool status_number(const char *text, const char *name, uint64_t *ret)
{
    const char *at = strstr(text, name);

    if (!at)
        return false;
    *ret = strtoull(at + strlen(name), NULL, 10);
    return true;
}

bool proc_memory(pid_t pid, struct proc_memory *ret)
{
    char text[4096], path[64];

    if (pid <= 0)
        return false;
    (void)snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    read_text(path, text, sizeof text);
    return status_number(text, "\nVmRSS:", &ret->rss_kb) &&
           status_number(text, "\nVmHWM:", &ret->peak_kb);
}
