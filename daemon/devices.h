/* devices.h - which devices this machine has, and who has them.
 *
 * A CPU device is a slot: a share of the usable cores. Two alignds on one machine
 * are kept apart by a lock file per device in one sticky folder: a gang's processes
 * hold its devices' locks, by inheritance, until the last of them is gone. */
#ifndef DAEMON_DEVICES_H
#define DAEMON_DEVICES_H

#include <stdbool.h>

#include "proto/err.h"

enum { DEVICES_NAME = 64 };

/* Cores this process may run on (affinity, then the cgroup's quota, rounded up). */
int devices_usable_cores(void);
/* GPUs of NVIDIA's driver: device files, whether or not we can use them. */
int devices_gpus_seen(void);
/* The worker will find its module for GPUs. */
bool devices_gpu_module(const char *worker);

/* Makes the folder (mode 1777) or finds it. -EACCES: it is another's and not sticky. */
int devices_prepare(const char *dir, struct err *err);
/* A descriptor that holds the device, or -EBUSY: somebody else does. */
int devices_lock(const char *dir, const char *name, struct err *err);
/* Somebody holds it. */
bool devices_held(const char *dir, const char *name);

#endif
