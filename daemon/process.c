/* process.c - see process.h. */
#include "daemon/process.h"

#include <pwd.h>
#include <stdio.h>
#include <string.h>

#include "proto/proc.h"

static void user_name(uid_t uid, char *to, size_t size)
{
    struct passwd pw, *found = NULL;
    char room[4096];

    if (getpwuid_r(uid, &pw, room, sizeof room, &found) == 0 && found)
        (void)snprintf(to, size, "%s", found->pw_name);
    else
        (void)snprintf(to, size, "%u", (unsigned)uid);
}

bool process_look(pid_t pid, struct process *ret)
{
    struct proc_who who;

    if (!proc_look(pid, &who))
        return false;
    *ret = (struct process){.pid = pid, .session = who.session};
    memcpy(ret->name, who.name, sizeof ret->name);
    user_name(who.uid, ret->user, sizeof ret->user);
    return true;
}
