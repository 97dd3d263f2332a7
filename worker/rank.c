/* rank.c - see rank.h. Everything comes by descriptor: the line and the gang folder. */
#include "worker/rank.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/log.h"
#include "proto/spec.h"
#include "worker/child.h"
#include "worker/coll.h"
#include "worker/device.h"
#include "worker/gang.h"
#include "worker/host.h"
#include "worker/link.h"
#include "worker/run.h"

enum { COLL_TIMEOUT_MS = 30 * 60 * 1000 }; /* service.md 19; hangs are found sooner */

struct rank {
    uint32_t rank;
    struct gang *gang;
    struct spec *spec;
    struct link *link;
    struct coll *coll;
};

/* The resolved spec, in the folder that the daemon gave it. */
static int read_spec(struct rank *k, struct err *err)
{
    const int r = spec_from_resolved(k->gang->spec, strlen(k->gang->spec), &k->spec, err);
    char *dir;

    if (r < 0)
        return r;
    dir = strdup(k->gang->output_dir);
    if (!dir)
        return err_set(err, -ENOMEM, "no memory");
    free(k->spec->output_dir);
    k->spec->output_dir = dir;
    return 0;
}

/* An instance of a GPU (MIG). */
static bool is_part(const char *device)
{
    return strncmp(device, "MIG-", 4) == 0;
}

/* Devices are joined by NCCL where there is one, and where it can: not instances of a GPU.
 * ALIGND_COLL=gloo: through the hosts. */
static const char *collectives(const struct rank *k)
{
    const char *asked = getenv("ALIGND_COLL");

    for (int i = 0; i < k->gang->n_devices; i++)
        if (is_part(k->gang->devices[i]))
            return "gloo";
    if (asked && *asked)
        return asked;
    return strcmp(k->gang->device_type, "gpu") == 0 ? "nccl" : "gloo";
}

static bool peer_ended(void *link)
{
    return (link_flags(link) & LINK_PEER) != 0;
}

static int join(struct rank *k, struct err *err)
{
    const struct coll_store store = link_store(k->link);
    const struct coll_opts o = {.backend = collectives(k),
                                .rank = k->rank,
                                .ranks = (uint32_t)k->gang->n_devices,
                                .store = &store,
                                .timeout_ms = COLL_TIMEOUT_MS,
                                .lost = peer_ended,
                                .lost_arg = k->link};

    return coll_open(&o, &k->coll, err);
}

static int exit_code(int r)
{
    if (r == -ECONNRESET)
        return RUN_EXIT_PEER;
    return r == -ENOMEM ? RUN_EXIT_OOM : RUN_EXIT_ERROR;
}

static int train(struct rank *k, struct err *err)
{
    const struct gang *g = k->gang;
    const bool gpu = strcmp(g->device_type, "gpu") == 0;
    const char *backend = device_backend(gpu), *device = g->devices[k->rank];

    if (!backend)
        return exit_code(err_set(err, -ENODEV, "ALIGND_BACKEND names a backend of the CPU"));
    if (gpu && strncmp(device, "GPU-", 4) != 0 && !is_part(device))
        return exit_code(err_set(
            err, -EINVAL, "gang.json: device %s: a GPU is named by its UUID (GPU-...)", device));
    if (is_part(device)) /* CUDA shows only the instance that is named before it begins */
        (void)setenv("CUDA_VISIBLE_DEVICES", device, 1);
    device_settle(k->spec, gpu);
    const struct run_opts o = {.spec = k->spec,
                               .resolved_json = g->spec,
                               .user_json = g->user_spec,
                               .attempt = g->attempt,
                               .rank = k->rank,
                               .ranks = (uint32_t)g->n_devices,
                               .backend = backend,
                               .uuid = gpu ? device : NULL,
                               .threads = host_threads(g->threads_per_device, g->n_devices),
                               .coll = k->coll,
                               .link = k->link};

    return run_train(&o, err);
}

int rank_run(int rank, pid_t supervisor)
{
    struct rank k = {.rank = (uint32_t)rank};
    struct err err = {""};
    int r = child_begin(supervisor), code = RUN_EXIT_ERROR;

    signal(SIGPIPE, SIG_IGN); /* gloo */
    signal(SIGINT, SIG_IGN);  /* Ctrl-C and a closed terminal are the supervisor's */
    signal(SIGHUP, SIG_IGN);
    if (r == 0)
        r = gang_read(CHILD_GANG_FD, &k.gang, &err);
    if (r == 0 && (rank < 0 || rank >= k.gang->n_devices))
        r = err_set(&err, -EINVAL, "no rank %d in this gang", rank);
    if (r == 0)
        r = link_open(CHILD_LINK_FD, &k.link);
    if (r < 0) {
        log_error("rank", "rank=%d error=\"%s\"", rank, err.text[0] ? err.text : strerror(-r));
        goto fail;
    }
    link_signals(k.link);
    link_beat_every(k.link, k.gang->beat_ms);
    r = read_spec(&k, &err);
    if (r == 0)
        r = join(&k, &err);
    code = r == 0 ? train(&k, &err) : exit_code(r);
    if (code != RUN_EXIT_DONE && code != RUN_EXIT_STOPPED) {
        log_error("rank", "rank=%d code=%d error=\"%s\"", rank, code, err.text);
        link_error(k.link, err.text);
    }

fail:
    coll_close(k.coll);
    spec_free(k.spec);
    link_close(k.link);
    gang_free(k.gang);
    return code;
}
