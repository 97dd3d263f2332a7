/* process.c - see process.h. */
#include "daemon/process.h"

#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void user_name(uid_t uid, char *to, size_t size)
{
    struct passwd pw, *found = NULL;
    char room[4096];

    if (getpwuid_r(uid, &pw, room, sizeof room, &found) == 0 && found)
        (void)snprintf(to, size, "%s", found->pw_name);
    else
        (void)snprintf(to, size, "%u", (unsigned)uid);
}

/* The name is what the process calls itself: anything, so it is made printable. */
static void plain(const char *from, size_t n, char *to, size_t size)
{
    size_t k = 0;

    for (size_t i = 0; i < n && k + 1 < size; i++)
        to[k++] = from[i] > ' ' && from[i] < 127 ? from[i] : '_';
    to[k] = 0;
}

bool process_look(pid_t pid, struct process *ret)
{
    char path[64], text[512], *open_at, *close_at;
    struct stat st;
    int session = 0;
    ssize_t n;
    int fd;

    if (pid <= 0)
        return false;
    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    n = read(fd, text, sizeof text - 1);
    if (fstat(fd, &st) < 0)
        n = -1;
    close(fd);
    if (n <= 0)
        return false;
    text[n] = 0;
    open_at = strchr(text, '(');
    close_at = strrchr(text, ')');
    if (!open_at || !close_at || close_at < open_at ||
        sscanf(close_at + 1, " %*c %*d %*d %d", &session) != 1)
        return false;
    *ret = (struct process){.pid = pid, .session = session};
    plain(open_at + 1, (size_t)(close_at - open_at - 1), ret->name, sizeof ret->name);
    user_name(st.st_uid, ret->user, sizeof ret->user);
    return true;
}
