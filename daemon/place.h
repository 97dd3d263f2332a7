/* place.h - the devices of this machine, and which of them a gang gets.
 *
 * A gang is placed whole or not at all. Devices of one type are equal; the
 * lowest numbers go first, so that a run's devices are easy to predict, in whatever
 * order they became known (a restart hears of those in use first). */
#ifndef DAEMON_PLACE_H
#define DAEMON_PLACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/job.h"
#include "proto/limit.h"

enum { PLACE_NAME = 64, PLACE_TEXT = 160 };

struct place_device {
    char name[PLACE_NAME];
    uint8_t type;   /* enum job_type                                                   */
    uint16_t order; /* GPUs: of their PCI addresses; goes before the name              */
    bool gone, foreign, fenced, drained;
    bool unfit;            /* its driver does not answer, or the like                      */
    uint32_t fault;        /* its hardware failed: the code; 0: it did not                 */
    int64_t clean_ns;      /* foreign: since when nobody else is on it; 0: somebody is     */
    char note[PLACE_TEXT]; /* foreign, unfit: why                                          */
    uint64_t job;          /* whose gang holds it; 0: nobody's                             */
    uint32_t strays;       /* gangs that nobody knows and that are still on it             */
};

/* How the devices of one type are, each counted once. */
struct place_count {
    uint32_t all; /* but those that are gone; faulty ones will be back               */
    uint32_t free, used, foreign, fenced, drained;
};

struct place_count place_count(const struct place_device *d, size_t n, int type);

/* <, =, > 0: a is before b, "cpu:2" before "cpu:10". Of one type. */
int place_order(const char *a, const char *b);
int place_before(const struct place_device *a, const struct place_device *b); /* < 0: a is */

/* Fills ret[0..want) with indices of free devices and returns true, or returns
 * false and leaves ret alone. */
bool place_pick(const struct place_device *d, size_t n, int type, uint32_t want, uint16_t *ret);

/* Why `want` of them cannot be had now: NONE if they can; RESOURCES if they could
 * once those in use come back; else the first of foreign, fenced, drained that, with
 * what comes before it, would do; else MISSING. */
enum job_reason place_reason(const struct place_count *c, uint32_t want);

bool place_is_free(const struct place_device *d);
bool place_is_fenced(const struct place_device *d); /* for whatever cause */

#endif
