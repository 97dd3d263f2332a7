/* proc.h - what the kernel says of this boot and of a process: what tells a process
 * apart from another that got its number later. */
#ifndef PROTO_PROC_H
#define PROTO_PROC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { PROC_BOOT_TEXT = 37, PROC_BOOT_BYTES = 16 };

/* This boot's id as the kernel writes it, a UUID; "" when it does not say. */
void proc_boot_text(char ret[PROC_BOOT_TEXT]);
/* The same as bytes; zeros when it does not say. */
void proc_boot_bytes(uint8_t ret[PROC_BOOT_BYTES]);

/* This process numbers processes as the machine does, not as a container. */
bool proc_whole_machine(void);

/* Field 22 of /proc/PID/stat, proc(5): when it started, in clock ticks since the
 * boot. 0: there is no such process, or only its unreaped remains. */
uint64_t proc_start(pid_t pid);

struct proc_who {
    pid_t session;
    uid_t uid;
    char name[32]; /* what it calls itself, made printable                             */
};
/* false: this namespace shows no such process, or only its remains. */
bool proc_look(pid_t pid, struct proc_who *ret);

struct proc_memory {
    uint64_t rss_kb, peak_kb; /* resident, what it shares included; the most so far     */
};
/* VmRSS and VmHWM of /proc/PID/status; false: there is no such process. */
bool proc_memory(pid_t pid, struct proc_memory *ret);

#endif
