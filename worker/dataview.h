/* dataview.h - a data set for people: what `data --show`, `--check` and the run's
 * dropped.jsonl and selected.jsonl say. Texts are appended to a struct text (starts
 * as {0}, text_free). All return 0 or -ENOMEM. */
#ifndef WORKER_DATAVIEW_H
#define WORKER_DATAVIEW_H

#include <stdint.h>

#include "proto/spec.h"
#include "worker/dataset.h"
#include "worker/text.h"
#include "worker/tokenizer.h"

/* One JSON object, without its newline:
 *   sources   [{"path", "set": "train"|"eval", "format", "template", "rows", "usable",
 *               "selected"}]
 *   train, eval, cut, longest    counts
 *   dropped   {"reason": count}, only reasons that occurred
 *   lengths   {"prompt"|"chosen"|"rejected"|"completion"|"pair": {"p50", "p95", "max"}}
 *             tokens over train and eval; pair: the prompt once
 * It is the data part of `--check`. */
int dataview_summary(const struct dataset *d, const struct spec *spec, struct text *out);

/* The summary's object with "rows", the first n training examples:
 *   {"source": path, "row", "ordinal", "cut": [bool, bool],
 *    "prompt": [token ...], "chosen": [...], "rejected": [...]}   (SFT: "completion")
 * token = [id, text, trained, kind]; kind is "bos", "prompt", "reply" or "eos". Bytes
 * that are no whole character are written <0xNN>. */
int dataview_show(const struct dataset *d, const struct spec *spec, const struct tokenizer *tok,
                  int64_t n, struct text *out);

/* dropped.jsonl: {"source": path, "set", "row", "reason"}, a line each. */
int dataview_dropped(const struct dataset *d, const struct spec *spec, struct text *out);
/* selected.jsonl: {"source": path, "set", "row"}, a line each, in order of examples. */
int dataview_selected(const struct dataset *d, const struct spec *spec, struct text *out);

#endif
