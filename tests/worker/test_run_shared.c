/* test_run_shared.c - QLoRA DPO and SFT of a real trained model on real preference data:
 * stories260K and HH-RLHF's harmless test rows. */
#include "tests/support/test.h"

#include <math.h>

#include "proto/log.h"
#include "tests/support/run_rig.h"

static void make(struct job *j, const char *method, int ranks)
{
    char text[4096];

    temp_dir_make(&j->dir);
    snprintf(text, sizeof text,
             "{\"name\": \"shared\", \"method\": \"%s\", \"model_name_or_path\": \"%s\", "
             "\"load_in_4bit\": true, \"bnb_4bit_use_double_quant\": true, \"train\": [{\"path\": "
             "\"%s\", \"format\": \"hh-rlhf\", \"samples\": 40, \"template\": \"vicuna\"}], "
             "\"eval\": {\"split_from_train\": 8}, \"lora_target_modules\": \"all-linear\", "
             "\"max_steps\": 3, \"train_batch_size\": 6, \"max_length\": 256, \"logging_steps\": "
             "1, \"learning_rate\": 1e-3, \"devices\": %d, \"device_type\": \"cpu\", "
             "\"output_dir\": \"%s\"}",
             method, test_data_shared("models/stories260K-hf"),
             test_data_shared("hh-rlhf/harmless-base.test.jsonl.gz"), ranks, j->dir.path);
    job_read(j, text);
}

/* The first row to the bit (nothing is trained yet), the rest within numerics.md 20. */
static void ranks_agree(const char *method)
{
    struct job j[2];
    struct spool_row *v[2];
    int n[2];

    for (int i = 0; i < 2; i++) {
        make(&j[i], method, i + 1);
        attempt_ends(&j[i], 1, 0, RUN_EXIT_DONE);
        v[i] = rows_of(&j[i], &n[i]);
        assert_int_equal(n[i], 3 + 1 + 1);
    }
    if (strcmp(method, "dpo") == 0)
        assert_true(metrics_get(&v[0][0], "loss") == M_LN2);
    for (int k = 0; k < 3; k++) {
        const double a = metrics_get(&v[0][k], "loss"), b = metrics_get(&v[1][k], "loss");
        assert_true(k == 0 ? a == b : fabs(a - b) <= 1e-4 * fabs(a));
    }
    assert_true(metrics_get(&v[0][2], "loss") < metrics_get(&v[0][0], "loss") + 0.2);
    assert_true(isfinite(metrics_get(&v[0][3], "eval_loss")));
    for (int i = 0; i < 2; i++) {
        free(v[i]);
        job_free(&j[i]);
    }
}

static void qlora_dpo(void **state)
{
    (void)state;
    ranks_agree("dpo");
}

static void qlora_sft(void **state)
{
    (void)state;
    ranks_agree("sft");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qlora_dpo),
        cmocka_unit_test(qlora_sft),
    };

    test_data_need_shared();
    log_set_level(LOG_ERROR);
    return cmocka_run_group_tests_name("run_shared", tests, NULL, NULL);
}
