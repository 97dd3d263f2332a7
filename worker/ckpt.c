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
#include "worker/tokenizer_files.h"

static int write_state(int fd, const struct ckpt_save *s)
{
    struct moments_part part[MOMENTS_PARTS];
    struct safetensors_tensor t[MOMENTS_PARTS];
    const int n = moments_parts(&s->state->adapter, part);
    uint8_t digest[SHA256_BYTES];
    struct text_out json = {0};
    int r;

    for (int i = 0; i < n; i++)
        t[i] = (struct safetensors_tensor){.name = part[i].name,
                                           .dtype = part[i].dtype,
                                           .n_dims = 1,
                                           .shape = {part[i].n},
                                           .data = (const char *)s->image + part[i].at};
    r = safetensors_replace(fd, CKPT_STATE_TENSORS,
                            &(struct safetensors_write){.tensors = t, .n = (size_t)n});
    if (r < 0)
        return r;
    sha256_of(s->image, moments_image_bytes(&s->state->adapter), digest);
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
    r = tokenizer_files_link(s->dir, fd);
    if (r == 0)
        r = atomic_file_replace(fd, "trainer_state.json",
                                &(struct span){s->trainer_state, s->trainer_state_bytes}, 1);
    if (r == 0)
        r = write_state(fd, s);
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    return r < 0 ? err_set(err, r, "%s", strerror(-r)) : 0;
}

/* Renamed first: what is being removed must never look whole. A failure here costs room on
 * the disk, not the run. */
static void remove_one(const struct rundir *d, const struct ckpt_place *p)
{
    char folder[32], name[64], hidden[80];
    int fd;

    snprintf(folder, sizeof folder, "attempts/%u", p->attempt);
    snprintf(name, sizeof name, "checkpoint-%lld", (long long)p->step);
    snprintf(hidden, sizeof hidden, ".%s.old", name);
    fd = openat(d->fd, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (renameat(fd, name, fd, hidden) == 0)
        (void)rundir_remove(fd, hidden);
    close(fd);
}

/* The run's newest checkpoints stay, whichever attempt wrote them; the earlier attempts are
 * gone (service.md 15). One beyond this step was passed over when this attempt began: it
 * counts for nothing, and stays until its step comes again. */
static void rotate(const struct ckpt_save *s)
{
    struct ckpt_place *v = NULL;
    size_t n = 0;
    int64_t kept = 0, last = -1;
    char name[64];

    if (s->keep <= 0 || ckpt_list(s->dir->path, s->dir->attempt, &v, &n) < 0)
        return;
    for (size_t i = 0; i < n; i++) {
        if (v[i].step > s->state->global_step)
            continue;
        if (v[i].step != last && kept < s->keep) {
            kept++;
            last = v[i].step;
            continue;
        }
        if (v[i].step != last) { /* the link is that step's newest one's */
            snprintf(name, sizeof name, "checkpoint-%lld", (long long)v[i].step);
            (void)unlinkat(s->dir->fd, name, 0);
        }
        remove_one(s->dir, &v[i]);
    }
    free(v);
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
    if (r == 0 && mkdirat(s->dir->attempt_fd, part, 0777) < 0)
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
