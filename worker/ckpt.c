/* ckpt.c - see ckpt.h. Writing; ckpt_read.c has the other half. */
#include "worker/ckpt.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/atomic_file.h"
#include "proto/sha256.h"
#include "worker/ckpt_state.h"
#include "worker/safetensors.h"

static int write_state(int fd, const struct ckpt_save *s)
{
    static const char *const names[] = {"p", "m", "v"};
    struct safetensors_tensor t[3];
    uint8_t digest[SHA256_BYTES];
    struct text_out json = {0};
    const size_t bytes = 3 * (size_t)s->state->n * sizeof *s->pmv;
    int r;

    for (int i = 0; i < 3; i++)
        t[i] = (struct safetensors_tensor){.name = names[i],
                                           .dtype = SAFETENSORS_F32,
                                           .n_dims = 1,
                                           .shape = {s->state->n},
                                           .data = s->pmv + (size_t)i * (size_t)s->state->n};
    r = safetensors_replace(fd, CKPT_STATE_TENSORS,
                            &(struct safetensors_write){.tensors = t, .n = 3});
    if (r < 0)
        return r;
    sha256_of(s->pmv, bytes, digest);
    ckpt_state_print(s->state, digest, &json);
    r = json.error;
    if (r == 0)
        r = atomic_file_replace(fd, CKPT_STATE_JSON, &(struct span){json.p, json.bytes}, 1);
    text_out_free(&json);
    return r;
}

static int write_all(int fd, const struct ckpt_save *s, struct err *err)
{
    int r = lora_save(s->adapter, s->model, s->spec, fd, err);

    if (r < 0)
        return r;
    r = atomic_file_replace(fd, "trainer_state.json",
                            &(struct span){s->trainer_state, s->trainer_state_bytes}, 1);
    if (r == 0)
        r = write_state(fd, s);
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    return r < 0 ? err_set(err, r, "%s", strerror(-r)) : 0;
}

/* Steps of the checkpoints of this attempt, newest first. */
static int newest_first(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return x > y ? -1 : x < y;
}

static void rotate(const struct ckpt_save *s)
{
    int64_t *steps = NULL;
    size_t n = 0;
    char name[64], hidden[80];

    if (s->keep <= 0 || ckpt_list(s->dir->attempt_fd, &steps, &n) < 0)
        return;
    qsort(steps, n, sizeof *steps, newest_first);
    /* Renamed first: what is being removed must never look whole. A failure here costs
     * room on the disk, not the run. */
    for (size_t i = (size_t)s->keep; i < n; i++) {
        snprintf(name, sizeof name, "checkpoint-%lld", (long long)steps[i]);
        snprintf(hidden, sizeof hidden, ".%s.old", name);
        (void)unlinkat(s->dir->fd, name, 0);
        if (renameat(s->dir->attempt_fd, name, s->dir->attempt_fd, hidden) == 0)
            (void)rundir_remove(s->dir->attempt_fd, hidden);
    }
    free(steps);
}

int ckpt_save(const struct ckpt_save *s, struct err *err)
{
    const long long step = (long long)s->state->global_step;
    char name[64], part[80], target[128];
    int fd = -1, r;

    snprintf(name, sizeof name, "checkpoint-%lld", step);
    snprintf(part, sizeof part, ".%s.part", name);
    snprintf(target, sizeof target, "attempts/%u/%s", s->dir->attempt, name);
    r = rundir_remove(s->dir->attempt_fd, part);
    if (r == 0 && mkdirat(s->dir->attempt_fd, part, 0750) < 0)
        r = -errno;
    if (r == 0) {
        fd = openat(s->dir->attempt_fd, part, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        r = fd < 0 ? -errno : 0;
    }
    if (r < 0) {
        err_set(err, r, "%s", strerror(-r));
        goto fail;
    }
    r = write_all(fd, s, err);
    if (r == 0)
        r = rundir_sync(s->dir->attempt_fd, "metrics.jsonl"); /* its rows lead up to here */
    if (r < 0)
        goto fail;
    r = rundir_fence(s->dir, err);
    if (r < 0)
        goto fail;
    r = renameat(s->dir->attempt_fd, part, s->dir->attempt_fd, name) < 0 ? -errno : 0;
    if (r == 0 && fsync(s->dir->attempt_fd) < 0)
        r = -errno;
    if (r == 0)
        r = rundir_link(s->dir->fd, target, name);
    if (r < 0) {
        err_set(err, r, "%s", strerror(-r));
        goto fail;
    }
    close(fd);
    rotate(s);
    return 0;

fail:
    if (fd >= 0)
        close(fd);
    (void)rundir_remove(s->dir->attempt_fd, part);
    return err_prefix(err, r, "checkpoint of step %lld in %s/attempts/%u", step, s->dir->path,
                      s->dir->attempt);
}
