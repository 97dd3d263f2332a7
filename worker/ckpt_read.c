/* ckpt_read.c - see ckpt.h. Reading: nothing is taken that does not prove itself whole. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/sha256.h"
#include "proto/spec_key.h"
#include "worker/ckpt_state.h"
#include "worker/safetensors.h"

enum { STATE_JSON_MOST = 1 << 20 };

/* Every part is there and has its bytes. */
static int check_parts(const struct safetensors *file, const struct moments_part *part, int n,
                       const char *path, struct err *err)
{
    for (int i = 0; i < n; i++) {
        const struct safetensors_tensor *t = safetensors_find(file, part[i].name);
        if (t == NULL || t->dtype != part[i].dtype || t->bytes != part[i].bytes)
            return err_set(err, -EBADMSG, "%s: \"%s\" is not the %lld %s values state.json says",
                           path, part[i].name, (long long)part[i].n,
                           safetensors_dtype_name(part[i].dtype));
    }
    if (safetensors_count(file) != (size_t)n)
        return err_set(err, -EBADMSG, "%s: holds %zu tensors, not the %d state.json says", path,
                       safetensors_count(file), n);
    return 0;
}

static int load_tensors(const char *dir, const struct ckpt_state *s, const uint8_t want[32],
                        void **ret, struct err *err)
{
    struct moments_part part[MOMENTS_PARTS];
    const int n = moments_parts(&s->adapter, part);
    const size_t bytes = moments_image_bytes(&s->adapter);
    struct safetensors *file = NULL;
    uint8_t digest[SHA256_BYTES];
    char path[PATH_MAX], *image = NULL;
    int r;

    if (snprintf(path, sizeof path, "%s/" CKPT_STATE_TENSORS, dir) >= (int)sizeof path)
        return err_set(err, -ENAMETOOLONG, "%s: name too long", dir);
    r = safetensors_open(path, &file, err);
    if (r < 0)
        return r;
    r = check_parts(file, part, n, path, err);
    if (r == 0) {
        image = malloc(bytes);
        r = image ? 0 : err_set(err, -ENOMEM, "%s: out of memory", path);
    }
    for (int i = 0; r == 0 && i < n; i++)
        memcpy(image + part[i].at, safetensors_find(file, part[i].name)->data, part[i].bytes);
    safetensors_close(file);
    if (r == 0) {
        sha256_of(image, bytes, digest);
        if (memcmp(digest, want, sizeof digest) != 0)
            r = err_set(err, -EBADMSG, "%s: the bytes do not have the checksum in state.json",
                        path);
        else if (!moments_image_valid(&s->adapter, image))
            r = err_set(err, -EBADMSG, "%s: a scale is below 0 or not finite", path);
    }
    if (r < 0) {
        free(image);
        return r;
    }
    *ret = image;
    return 0;
}

int ckpt_load(const char *dir, struct ckpt_state *state, void **ret_image, struct err *err)
{
    const int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    uint8_t tensors[32];
    char *text = NULL;
    size_t bytes = 0;
    int r;

    if (fd < 0)
        return err_set(err, -errno, "%s: %s", dir, strerror(errno));
    r = rundir_read(fd, CKPT_STATE_JSON, STATE_JSON_MOST, &text, &bytes);
    close(fd);
    if (r == 0)
        r = ckpt_state_parse(text, bytes, state, tensors);
    free(text);
    if (r < 0)
        return err_set(err, r, "%s/" CKPT_STATE_JSON ": %s", dir,
                       r == -EBADMSG ? "cut short, damaged, or of another version" : strerror(-r));
    return load_tensors(dir, state, tensors, ret_image, err);
}

int ckpt_find(const char *output_dir, uint32_t attempt, struct ckpt_state *state, void **ret_image,
              char name[64], struct err *note, struct err *err)
{
    struct ckpt_place *v = NULL;
    size_t n = 0;
    int r = ckpt_list(output_dir, attempt - 1, &v, &n), found = 0;

    note->text[0] = 0;
    if (r < 0)
        return err_set(err, r, "looking for checkpoints in %s/attempts: %s", output_dir,
                       strerror(-r));
    for (size_t i = 0; found == 0 && i < n; i++) {
        char path[PATH_MAX];
        snprintf(name, 64, "attempts/%u/checkpoint-%lld", v[i].attempt, (long long)v[i].step);
        if (snprintf(path, sizeof path, "%s/%s", output_dir, name) >= (int)sizeof path)
            continue;
        if (ckpt_load(path, state, ret_image, note) < 0)
            continue;
        found = state->global_step == v[i].step;
        if (!found) { /* renamed by hand */
            err_set(note, -EBADMSG, "%s holds step %lld", path, (long long)state->global_step);
            free(*ret_image);
        }
    }
    free(v);
    return found;
}

static const char *optim_name(enum spec_optim optim)
{
    return spec_word_text(spec_optim_words, optim);
}

int ckpt_fits(const struct ckpt_state *found, const struct ckpt_state *now, bool bitwise,
              struct err *err)
{
    if (found->adapter.optim != now->adapter.optim)
        return err_set(
            err, -EINVAL,
            "the checkpoint holds the moments of optim: %s, this job has optim: %s; start "
            "a new run for another optimizer",
            optim_name(found->adapter.optim), optim_name(now->adapter.optim));
    if (!moments_shape_equal(&found->adapter, &now->adapter))
        return err_set(err, -EINVAL,
                       "the checkpoint holds an adapter of %lld parameters, this job's has %lld: "
                       "lora_r or lora_target_modules changed; start a new run for that",
                       (long long)found->adapter.n, (long long)now->adapter.n);
    if (memcmp(found->model_digest, now->model_digest, 32) != 0)
        return err_set(err, -EINVAL,
                       "the base model's files changed since the checkpoint was "
                       "written; start a new run for another model");
    if (memcmp(found->data_digest, now->data_digest, 32) != 0)
        return err_set(err, -EINVAL,
                       "the training or evaluation data changed since the checkpoint "
                       "was written; start a new run for other data");
    if (!bitwise)
        return 0;
    if (found->ranks != now->ranks)
        return err_set(
            err, -EINVAL,
            "the first attempt ran on %u rank%s, this one has %u: the numbers would differ "
            "in their last bits; set bitwise: false to go on all the same",
            found->ranks, found->ranks == 1 ? "" : "s", now->ranks);
    if (strcmp(found->backend, now->backend) != 0 || strcmp(found->isa, now->isa) != 0)
        return err_set(err, -EINVAL,
                       "the first attempt ran on backend %s (%s), this one on %s (%s): the numbers "
                       "would differ in their last bits; set bitwise: false to go on all the same",
                       found->backend, found->isa, now->backend, now->isa);
    return 0;
}
