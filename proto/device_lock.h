/* device_lock.h - who has a device of this machine: one lock file per device in one sticky
 * folder of all users.
 *
 * alignd's gangs and `align-worker run` hold the locks of their devices, by inheritance,
 * until the last of their processes is gone. */
#ifndef PROTO_DEVICE_LOCK_H
#define PROTO_DEVICE_LOCK_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/err.h"

enum { DEVICE_LOCK_NAME = 64, DEVICE_LOCK_WHO = 128 };

/* $ALIGND_DEVICES_DIR, or the folder of everybody. */
const char *device_lock_folder(void);
/* Makes the folder (mode 1777) or finds it. -EACCES: it is another's and not sticky. */
int device_lock_prepare(const char *dir, struct err *err);
/* A descriptor that holds the device, or -EBUSY: somebody else does, and err says who. */
int device_lock_take(const char *dir, const char *name, struct err *err);
/* Somebody holds it. */
bool device_lock_held(const char *dir, const char *name);
/* Who took it, as far as the kernel says: "align-worker of user bob, process 4711", or
 * "another program" (it has ended and left the lock to its children, or is another
 * container's). */
void device_lock_who(const char *dir, const char *name, char *ret, size_t size);

#endif
