/* claim.h - GPUs for a process that no daemon gave any: taken by the locks that alignd takes
 * too, so that the two never train on one GPU. */
#ifndef WORKER_CLAIM_H
#define WORKER_CLAIM_H

#include "worker/device.h"

struct claim {
    int fd[LIMIT_RANKS]; /* children inherit them                                    */
    int n;
};

/* The first `want` GPUs of the set that nobody has; they become its first ones. -EBUSY: there
 * are not so many, err says who has one. Nothing on the CPU, whose cores can be shared. */
int claim_take(struct claim *c, struct device_set *set, int want, struct err *err);
void claim_release(struct claim *c);

#endif
