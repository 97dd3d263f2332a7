/* process.h - who a process is: its user's name, its own, its session. */
#ifndef DAEMON_PROCESS_H
#define DAEMON_PROCESS_H

#include <stdbool.h>
#include <sys/types.h>

struct process {
    pid_t pid, session;
    char user[32], name[32];
};

/* false: no such process, as far as this namespace shows. May ask a user directory, so
 * not for the loop's thread. */
bool process_look(pid_t pid, struct process *ret);

#endif
