/* publish.h - what a person finds at the top of output_dir when a run ends or stops.
 *
 * Every file by rename: a reader sees the old or the new one, whole. */
#ifndef WORKER_PUBLISH_H
#define WORKER_PUBLISH_H

#include <stdbool.h>

#include "proto/spec.h"
#include "worker/dataset.h"
#include "worker/lora.h"
#include "worker/model.h"
#include "worker/rundir.h"
#include "worker/text_out.h"

struct publish {
    const struct rundir *dir;
    const struct spec *spec;
    const char *resolved_json; /* spec.resolved.json                                 */
    const char *user_json;     /* spec.yaml (JSON is YAML); NULL: the resolved one    */
    const struct dataset *data;
    const struct adapter *adapter;
    const struct model *model;
    const struct text_out *trainer_state;
};

/* Adapter, tokenizer files, spec, dropped and selected rows, log, trainer state and, last
 * of all, metrics.jsonl. -ESTALE: a later attempt has begun. */
int publish_run(const struct publish *p, struct err *err);

/* Of these the dropped and selected rows alone: known, and wanted, from the start. */
int publish_rows(const struct publish *p, struct err *err);

/* Whether the top of a run's folder is that of a run that trained to its end: the last
 * row of its metrics.jsonl is a summary. *ret_step: its step. */
bool publish_finished(const char *output_dir, int64_t *ret_step);

/* The rows that were not used, and those that were, a line each. */
void publish_dropped(const struct spec *spec, const struct dataset *d, struct text_out *out);
void publish_selected(const struct spec *spec, const struct dataset *d, struct text_out *out);

#endif
