/* claim.c - see claim.h. */
#include "worker/claim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/device_lock.h"

enum { FD_BASE = 16 }; /* above the numbers that ranks begin with (child.h) */

/* Inherited, unlike what it is made of. */
static int raised(int fd, struct err *err)
{
    const int up = fcntl(fd, F_DUPFD, FD_BASE);
    const int r = up < 0 ? -errno : up;

    close(fd);
    return r < 0 ? err_set(err, r, "a device's lock: %s", strerror(-r)) : r;
}

/* Simulated GPUs are each process's own: a test that shares them names the folder. */
static bool shared(const struct device_set *set)
{
    return set->gpu && (strcmp(set->backend, "sim") != 0 || getenv("ALIGND_DEVICES_DIR"));
}

int claim_take(struct claim *c, struct device_set *set, int want, struct err *err)
{
    const char *dir = device_lock_folder();
    struct err why = {""}, first = {""};
    int r = 0;

    *c = (struct claim){.n = 0};
    if (!shared(set))
        return 0;
    r = device_lock_prepare(dir, err);
    for (int i = 0; r == 0 && i < set->n && c->n < want; i++) {
        int fd = device_lock_take(dir, set->v[i].uuid, &why);
        if (fd == -EBUSY) {
            first = first.text[0] ? first : why;
            continue;
        }
        if (fd >= 0)
            fd = raised(fd, &why);
        if (fd < 0) {
            r = err_set(err, fd, "%s", why.text);
            break;
        }
        const struct kn_device mine = set->v[i];
        memmove(&set->v[c->n + 1], &set->v[c->n], (size_t)(i - c->n) * sizeof mine);
        set->v[c->n] = mine;
        c->fd[c->n++] = fd;
    }
    if (r == 0 && c->n < want)
        r = err_set(err, -EBUSY, "devices: %d, but only %d of the %d GPU%s here %s free: %s", want,
                    c->n, set->n, set->n == 1 ? "" : "s", c->n == 1 ? "is" : "are", first.text);
    if (r < 0)
        claim_release(c);
    return r;
}

void claim_release(struct claim *c)
{
    while (c->n > 0)
        close(c->fd[--c->n]);
}
