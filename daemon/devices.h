/* devices.h - which devices this machine has. A CPU device is a slot: a share of the usable
 * cores. Who has them: proto/device_lock.h. */
#ifndef DAEMON_DEVICES_H
#define DAEMON_DEVICES_H

#include <stdbool.h>

#include "proto/device_lock.h"

enum { DEVICES_NAME = DEVICE_LOCK_NAME };

/* Cores this process may run on (affinity, then the cgroup's quota, rounded up). */
int devices_usable_cores(void);
/* GPUs of NVIDIA's driver: device files, whether or not we can use them. */
int devices_gpus_seen(void);
/* The worker will find its module for GPUs. */
bool devices_gpu_module(const char *worker);

#endif
