/* host.h - what of this machine is ours to use. */
#ifndef WORKER_HOST_H
#define WORKER_HOST_H

/* Cores by affinity, control group and Slurm (SLURM_CPUS_PER_TASK); at least 1. */
int host_cores(void);
/* Threads of one of n ranks; asked > 0 wins. */
int host_threads(int asked, int n);
/* Threads that wait give their core to others soon. Before a backend is opened, or before a
 * process that will do so is started: it sets the environment. */
void host_calm_threads(void);
/* How often the kernel has killed a process of our control group because its memory ran
 * out; -1: not known. _in: of one file, memory.events or memory.oom_control. */
long host_oom_kills(void);
long host_oom_kills_in(const char *path);
/* GPUs that a driver shows, whether or not this build can use them. */
int host_gpus(void);

#endif
