/* dataview.h - a data set for people: what `align-worker data --show` is made of. */
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
 *   rows      the first n training examples:
 *             {"source": path, "row", "ordinal", "cut": [bool, bool],
 *              "prompt": [token ...], "chosen": [...], "rejected": [...]}
 *             (SFT: "completion")
 * token = [id, text, trained, kind]; kind is "bos", "prompt", "reply" or "eos". Bytes
 * that are no whole character are written <0xNN>. Appended to *out, which starts as
 * {0} (text_free). Returns 0 or -ENOMEM. */
int dataview_show(const struct dataset *d, const struct spec *spec, const struct tokenizer *tok,
                  int64_t n, struct text *out);

#endif
