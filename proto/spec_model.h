/* spec_model.h - finds a model folder: a path, or org/name in the Hugging Face
 * cache, offline. */
#ifndef PROTO_SPEC_MODEL_H
#define PROTO_SPEC_MODEL_H

#include "proto/err.h"

/* Makes `path` absolute against base_dir (or $HOME for ~/). malloc'ed, or NULL. */
char *spec_path_absolute(const char *base_dir, const char *path);

/* Looks for `name`: a folder (absolute, or relative to base_dir), else org/name in
 * HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub or
 * ~/.cache/huggingface/hub, where `revision` is a branch, a tag or a commit.
 *
 * Returns 0, *ret_dir (absolute) and *ret_commit ("" for a folder), both
 * malloc'ed; -ENOENT with the sentence; -ENOMEM. */
int spec_model_find(const char *name, const char *base_dir, const char *revision, char **ret_dir,
                    char **ret_commit, struct err *err);

#endif
