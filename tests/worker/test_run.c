/* test_run.c - whole runs on a tiny model: what they leave, and that a run stopped or
 * killed and resumed ends with the bytes of one that was not. */
#include "tests/support/test.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>

#include "proto/log.h"
#include "tests/support/run_rig.h"
#include "worker/ckpt_state.h"
#include "worker/publish.h"
#include "worker/try.h"

static struct temp_dir rows_dir; /* one for all: its path is in what a run leaves */

/* While set, nothing becomes durable any more. */
static _Atomic bool disk_full;

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    if (disk_full) {
        errno = ENOSPC;
        return -1;
    }
    return __real_fsync(fd);
}

/* ---- jobs ---- */

/* 60 short pairs that differ in one word. */
static void write_rows(const char *path)
{
    static const char *const words[] = {"river", "stone", "green", "small", "song", "winter"};
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    for (int i = 0; i < 60; i++) {
        const char *a = words[i % 6], *b = words[(i / 6 + i + 1) % 6];
        fprintf(f,
                "{\"chosen\": \"\\n\\nHuman: Tell me about the %s of day %d\\n\\nAssistant: A kind "
                "%s and "
                "a %s.\", \"rejected\": \"\\n\\nHuman: Tell me about the %s of day "
                "%d\\n\\nAssistant: No "
                "%s, I will not.\"}\n",
                a, i, a, b, a, i, b);
    }
    fclose(f);
}

/* more: further keys, "\"k\": v, " each. */
static void job_make(struct job *j, const char *method, uint32_t ranks, const char *more)
{
    char text[4096];

    temp_dir_make(&j->dir);
    snprintf(text, sizeof text,
             "{\"name\": \"t\", \"method\": \"%s\", \"model_name_or_path\": \"%s\", %s%s"
             "\"train\": [{\"path\": \"%s\", \"format\": \"hh-rlhf\", \"samples\": 40, "
             "\"template\": \"vicuna\"}], \"eval\": {\"split_from_train\": 8}, "
             "\"eval_steps\": 4, \"learning_rate\": 1e-3, "
             "\"lora_target_modules\": \"all-linear\", "
             "\"max_steps\": 9, \"train_batch_size\": 6, \"max_length\": 128, \"save_steps\": 3, "
             "\"logging_steps\": 2, \"devices\": %u, \"device_type\": \"cpu\", "
             "\"output_dir\": \"%s\"}",
             method, test_data_path("tiny64"), more,
             strstr(more, "lora_r") ? "" : "\"lora_r\": 4, \"lora_alpha\": 8, ",
             temp_dir_path(&rows_dir, "rows.jsonl"), ranks, j->dir.path);
    job_read(j, text);
}

/* ---- what a run left ---- */

static void same_file(const struct job *a, const struct job *b, const char *name)
{
    size_t na, nb;
    char *x = test_data_read(in(a, name), &na), *y = test_data_read(in(b, name), &nb);

    assert_non_null(x);
    assert_non_null(y);
    assert_int_equal(na, nb);
    assert_memory_equal(x, y, na);
    free(x);
    free(y);
}

/* Equal except timings and attempt numbers. */
static void same_rows(const struct job *a, const struct job *b)
{
    int na, nb;
    struct spool_row *x = rows_of(a, &na), *y = rows_of(b, &nb);

    assert_int_equal(na, nb);
    for (int i = 0; i < na; i++) {
        assert_int_equal(x[i].kind, y[i].kind);
        assert_int_equal(x[i].global_step, y[i].global_step);
        assert_int_equal(x[i].n_values, y[i].n_values);
        for (int k = 0; k < x[i].n_values; k++) {
            assert_string_equal(x[i].values[k].name, y[i].values[k].name);
            if (!metrics_is_timing(x[i].values[k].name) &&
                x[i].values[k].value != y[i].values[k].value)
                fail_msg("step %lld: %s is %.17g and %.17g", (long long)x[i].global_step,
                         x[i].values[k].name, x[i].values[k].value, y[i].values[k].value);
        }
    }
    free(x);
    free(y);
}

static void same_run(const struct job *a, const struct job *b)
{
    same_file(a, b, "adapter_model.safetensors");
    same_file(a, b, "adapter_config.json");
    same_file(a, b, "checkpoint-9/state.safetensors");
    same_file(a, b, "selected.jsonl");
    same_rows(a, b);
}

/* ---- tests ---- */

static void leaves_what_a_person_needs(void **state)
{
    static const char *const files[] = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "metrics.jsonl",
        "trainer_state.json",
        "spec.yaml",
        "spec.resolved.json",
        "dropped.jsonl",
        "selected.jsonl",
        "log.txt",
        "checkpoint-3/adapter_model.safetensors",
        "checkpoint-6/state.json",
        "checkpoint-9/trainer_state.json",
        "attempts/1/metrics.jsonl",
    };
    struct job j;
    struct spool_row *v;
    int n, trains = 0, evals = 0;
    int64_t step = 0;
    json_t *o;

    (void)state;
    job_make(&j, "dpo", 1, "");
    assert_false(publish_finished(j.dir.path, &step));
    attempt_ends(&j, 1, 0, RUN_EXIT_DONE);
    for (size_t i = 0; i < ARRAY_LEN(files); i++)
        if (!is_there(&j, files[i]))
            fail_msg("%s is not there", files[i]);
    assert_true(publish_finished(j.dir.path, &step));
    assert_int_equal(step, 9);

    v = rows_of(&j, &n);
    for (int i = 0; i < n; i++) {
        trains += v[i].kind == SPOOL_TRAIN;
        evals += v[i].kind == SPOOL_EVAL;
    }
    assert_int_equal(trains, 5); /* 2 4 6 8 and the last */
    assert_int_equal(evals, 3);  /* 4 8 and the last     */
    assert_int_equal(v[n - 1].kind, SPOOL_SUMMARY);
    assert_true(metrics_get(&v[0], "loss") > 0.6 && metrics_get(&v[0], "loss") < 0.75);
    free(v);

    o = json_load_file(in(&j, "trainer_state.json"), 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(o, "global_step")), 9);
    assert_int_equal(json_array_size(json_object_get(o, "log_history")), n);
    json_decref(o);
    o = json_load_file(in(&j, "spec.yaml"), 0, NULL);
    assert_string_equal(json_string_value(json_object_get(o, "name")), "t");
    json_decref(o);
    job_free(&j);
}

/* After attempt 1 as a whole, everything later than step `at` is taken away, as if it had
 * been killed there; rows written after the checkpoint stay, as they would. */
static void cut_back(const struct job *j, int64_t at)
{
    for (int64_t s = at + 1; s <= 9; s++) {
        char name[64];
        snprintf(name, sizeof name, "attempts/1/checkpoint-%lld", (long long)s);
        assert_int_equal(rundir_remove(AT_FDCWD, in(j, name)), 0);
    }
}

static void resumed_equals_undisturbed(const char *method, uint32_t ranks, const char *more)
{
    struct job a, b;

    job_make(&a, method, ranks, more);
    attempt_ends(&a, 1, 0, RUN_EXIT_DONE);

    job_make(&b, method, ranks, more); /* killed after step 7's row: 6 is the newest */
    attempt_ends(&b, 1, 0, RUN_EXIT_DONE);
    cut_back(&b, 6);
    attempt_ends(&b, 2, 0, RUN_EXIT_DONE);
    same_run(&a, &b);
    job_free(&b);

    job_make(&b, method, ranks, more); /* told to stop; window of logging_steps half full */
    attempt_ends(&b, 1, LINK_STOP, RUN_EXIT_STOPPED);
    assert_true(is_there(&b, "checkpoint-1/state.json"));
    assert_true(is_there(&b, "adapter_model.safetensors"));
    attempt_ends(&b, 2, LINK_CHECKPOINT, RUN_EXIT_DONE);
    assert_true(is_there(&b, "attempts/2/checkpoint-2/state.json"));
    same_run(&a, &b);
    job_free(&b);
    job_free(&a);
}

static void resume_dpo(void **state)
{
    (void)state;
    resumed_equals_undisturbed("dpo", 1, "");
}

static void resume_qlora_sft_dropout(void **state)
{
    (void)state;
    resumed_equals_undisturbed("sft", 1, "\"load_in_4bit\": true, \"lora_dropout\": 0.1, ");
}

static void resume_two_ranks(void **state)
{
    (void)state;
    resumed_equals_undisturbed("dpo", 2, "");
}

/* Rank 64: matrices with 8-bit moments, and some that are too small for them. */
#define EIGHT "\"optim\": \"adamw_bnb_8bit\", \"lora_r\": 64, \"lora_alpha\": 64, "

static void resume_8bit(void **state)
{
    (void)state;
    resumed_equals_undisturbed("dpo", 2, EIGHT);
    resumed_equals_undisturbed("sft", 1, EIGHT "\"load_in_4bit\": true, \"lora_dropout\": 0.1, ");
}

/* Moments of another kind are of no use: told, and the run is left as it was. */
static void other_optimizer_is_refused(void **state)
{
    static const char *const kinds[] = {
        "\"optim\": \"adamw_torch\", \"bitwise\": false, \"lora_r\": 64, \"lora_alpha\": 64, ",
        EIGHT "\"bitwise\": false, "};
    struct job j[2];
    struct err err;

    (void)state;
    for (int i = 0; i < 2; i++)
        job_make(&j[i], "dpo", 1, kinds[i]);
    for (int i = 0; i < 2; i++) {
        const enum spec_optim was = j[i].spec->optim;
        attempt_ends(&j[i], 1, 0, RUN_EXIT_DONE);
        cut_back(&j[i], 6);
        j[i].spec->optim = j[1 - i].spec->optim;
        assert_int_equal(attempt(&j[i], 2, 0, &err), RUN_EXIT_ERROR);
        if (!strstr(err.text, "checkpoint-6: the checkpoint holds the moments of optim: adamw_"))
            fail_msg("%s", err.text);
        j[i].spec->optim = was;
        attempt_ends(&j[i], 3, 0, RUN_EXIT_DONE);
    }
    for (int i = 0; i < 2; i++)
        job_free(&j[i]);
}

/* A finished run trains nothing again; told to do more steps, it goes on, with one history
 * and one summary. */
static void finished_run_goes_on(void **state)
{
    struct job j;
    int n;
    struct spool_row *v;

    (void)state;
    job_make(&j, "sft", 1, "");
    attempt_ends(&j, 1, 0, RUN_EXIT_DONE);
    free(rows_of(&j, &n));
    assert_int_equal(n, 5 + 3 + 1);
    attempt_ends(&j, 2, 0, RUN_EXIT_DONE);
    free(rows_of(&j, &n));
    assert_int_equal(n, 5 + 3 + 1);
    assert_false(is_there(&j, "attempts/2/checkpoint-9"));
    j.spec->max_steps = 12;
    attempt_ends(&j, 3, 0, RUN_EXIT_DONE);
    v = rows_of(&j, &n);
    assert_int_equal(n, 5 + 2 + 3 + 1 + 1); /* and 10, 12; eval 12; the summary */
    assert_int_equal(v[n - 1].kind, SPOOL_SUMMARY);
    assert_int_equal(v[n - 1].global_step, 12);
    assert_int_equal(v[0].attempt, 1);
    free(v);
    job_free(&j);
}

static void damaged_checkpoint_is_passed_over(void **state)
{
    struct job a, b;

    (void)state;
    job_make(&a, "dpo", 1, "");
    attempt_ends(&a, 1, 0, RUN_EXIT_DONE);
    job_make(&b, "dpo", 1, "");
    attempt_ends(&b, 1, 0, RUN_EXIT_DONE);
    cut_back(&b, 6);
    assert_int_equal(truncate(in(&b, "attempts/1/checkpoint-6/state.safetensors"), 1000), 0);
    attempt_ends(&b, 2, 0, RUN_EXIT_DONE);
    assert_true(is_there(&b, "attempts/2/checkpoint-6/state.json")); /* trained again from 3 */
    same_run(&a, &b);
    job_free(&a);
    job_free(&b);
}

static void fenced_attempt_publishes_nothing(void **state)
{
    struct job j;
    struct err err;

    (void)state;
    job_make(&j, "dpo", 1, "");
    (void)mkdir(in(&j, "attempts"), 0700);
    (void)mkdir(in(&j, "attempts/2"), 0700);
    assert_int_equal(attempt(&j, 1, 0, &err), RUN_EXIT_ERROR);
    assert_non_null(strstr(err.text, "attempt 2"));
    assert_false(is_there(&j, "checkpoint-3"));
    assert_false(is_there(&j, "adapter_model.safetensors"));
    job_free(&j);
}

/* A checkpoint that cannot be written is said and passed over; the last one is not. */
static void failed_checkpoints(void **state)
{
    struct job j;
    struct err err;

    (void)state;
    job_make(&j, "dpo", 1, "");
    (void)mkdir(in(&j, "checkpoint-3"), 0700);
    attempt_ends(&j, 1, 0, RUN_EXIT_DONE);
    assert_true(is_there(&j, "checkpoint-6/state.json"));
    job_free(&j);

    job_make(&j, "dpo", 1, "");
    (void)mkdir(in(&j, "checkpoint-9"), 0700);
    assert_int_equal(attempt(&j, 1, 0, &err), RUN_EXIT_ERROR);
    assert_non_null(strstr(err.text, "checkpoint of step 9"));
    /* which rows it used is there from its start */
    assert_true(is_there(&j, "selected.jsonl"));
    assert_true(is_there(&j, "dropped.jsonl"));
    assert_false(is_there(&j, "adapter_model.safetensors"));
    job_free(&j);
}

/* A full disk in mid-run: said, passed over, and nothing else changes. */
static void full_disk_costs_one_checkpoint(void **state)
{
    struct job a, b;

    (void)state;
    job_make(&a, "dpo", 1, "");
    attempt_ends(&a, 1, 0, RUN_EXIT_DONE);
    job_make(&b, "dpo", 1, "");
    disk_full = true;
    attempt_ends(&b, 1, 0, RUN_EXIT_DONE);
    assert_false(disk_full); /* somebody met it and said so */
    assert_false(is_there(&b, "checkpoint-3"));
    assert_false(is_there(&b, "attempts/1/.checkpoint-3.part"));
    assert_true(is_there(&b, "checkpoint-6/state.json"));
    same_run(&a, &b);
    job_free(&a);
    job_free(&b);
}

static void stop_reaches_all_from_any_rank(void **state)
{
    struct job j;

    (void)state;
    for (uint32_t ear = 0; ear < 4; ear++) {
        job_make(&j, "sft", 4, "");
        j.ear = ear;
        attempt_ends(&j, 1, LINK_STOP, RUN_EXIT_STOPPED);
        assert_true(is_there(&j, "checkpoint-1/state.json"));
        assert_true(is_there(&j, "adapter_model.safetensors"));
        job_free(&j);
    }
}

static void changed_runs_are_refused(void **state)
{
    struct job a, b;
    struct err err;

    (void)state;
    job_make(&a, "dpo", 1, "");
    attempt_ends(&a, 1, 0, RUN_EXIT_DONE);
    job_make(&b, "dpo", 1, "\"data_seed\": 77, "); /* draws other rows */
    b.spec->output_dir[0] = 0;
    free(b.spec->output_dir);
    b.spec->output_dir = strdup(a.spec->output_dir);
    (void)mkdir(in(&a, "attempts/2"), 0700);
    assert_int_equal(attempt(&b, 2, 0, &err), RUN_EXIT_ERROR);
    assert_non_null(strstr(err.text, "data changed"));
    job_free(&a);
    job_free(&b);
}

static void tries(void **state)
{
    struct job j;
    struct try_result t;
    struct err err = {""};

    (void)state;
    job_make(&j, "dpo", 2, "\"lora_dropout\": 0.05, ");
    if (try_run(j.spec, &(struct device_set){.backend = backend}, 1, &t, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(t.starts_at_reference);
    assert_true(t.step0_loss == M_LN2);
    assert_true(t.checkpoint && t.checkpoint_bytes > 0);
    assert_true(t.peak_bytes > 0 && t.plan_bytes > 0);
    assert_true(t.seconds_per_step > 0 && t.total_seconds > t.seconds_per_step);
    assert_true(isfinite(t.eval_loss));
    assert_int_equal(t.plan.steps, 9);
    assert_false(is_there(&j, "attempts")); /* nothing in the run's folder */
    job_free(&j);
}

static int make_rows(void **state)
{
    (void)state;
    temp_dir_make(&rows_dir);
    write_rows(temp_dir_path(&rows_dir, "rows.jsonl"));
    return 0;
}

static int remove_rows(void **state)
{
    (void)state;
    temp_dir_remove(&rows_dir);
    return 0;
}

/* Log lines are dropped; the warning about a failed checkpoint makes room on the disk. */
static void hear(void *arg, enum log_level level, const char *line)
{
    (void)arg;
    if (level == LOG_WARN && strstr(line, "not written, ignoring") != NULL &&
        strstr(line, "No space left") != NULL)
        disk_full = false;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(leaves_what_a_person_needs),
        cmocka_unit_test(resume_dpo),
        cmocka_unit_test(resume_qlora_sft_dropout),
        cmocka_unit_test(resume_two_ranks),
        cmocka_unit_test(resume_8bit),
        cmocka_unit_test(other_optimizer_is_refused),
        cmocka_unit_test(finished_run_goes_on),
        cmocka_unit_test(damaged_checkpoint_is_passed_over),
        cmocka_unit_test(fenced_attempt_publishes_nothing),
        cmocka_unit_test(failed_checkpoints),
        cmocka_unit_test(full_disk_costs_one_checkpoint),
        cmocka_unit_test(stop_reaches_all_from_any_rank),
        cmocka_unit_test(changed_runs_are_refused),
        cmocka_unit_test(tries),
    };

    backend = argc > 1 ? argv[1] : "cpu";
    log_capture(hear, NULL);
    return cmocka_run_group_tests_name("run", tests, make_rows, remove_rows);
}
