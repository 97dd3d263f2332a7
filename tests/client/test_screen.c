/* test_screen.c - the watched job: rows, rewinds, the screen at every size, JSON lines. */
#include "tests/support/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/curve.h"
#include "client/format.h"
#include "client/rowjson.h"
#include "client/screen.h"

static const char *const train_names[] = {"loss", "rewards/accuracies", "rewards/margins",
                                          "tokens_per_second", "grad_norm"};
static const char *const eval_names[] = {"eval_loss", "eval_rewards/accuracies"};

static void add(struct curve *c, enum msg_kind kind, uint32_t attempt, int64_t step, double loss)
{
    double values[] = {loss, 0.75, 0.5, 12345, 1.5};
    struct msg_row row = {.seq = 1,
                          .attempt = attempt,
                          .n = 1,
                          .step = step,
                          .wall_ms = 1000 * step,
                          .kind = kind,
                          .n_values = kind == MSG_ROW_TRAIN  ? 5
                                      : kind == MSG_ROW_EVAL ? 2
                                                             : 0,
                          .names = kind == MSG_ROW_EVAL ? eval_names : train_names,
                          .values = values};
    curve_add(c, &row);
}

static void test_curve(void **state)
{
    (void)state;
    struct curve c;
    curve_init(&c);
    assert_true(isnan(curve_step_seconds(&c)));
    for (int i = 1; i <= 30; i++)
        add(&c, MSG_ROW_TRAIN, 1, i, 1.0 / i);
    assert_int_equal(c.step, 30);
    assert_float_equal(curve_step_seconds(&c), 1.0, 1e-9);
    assert_float_equal(curve_train(&c, "loss"), 1.0 / 30, 0);
    assert_true(isnan(curve_train(&c, "nothing")));
    add(&c, MSG_ROW_EVAL, 1, 30, 0.25);
    assert_float_equal(curve_eval(&c, "eval_loss"), 0.25, 0);
    /* attempt 2 goes back to 20 */
    add(&c, MSG_ROW_REWIND, 2, 20, 0);
    assert_int_equal(c.n, 20);
    assert_int_equal(c.step, 20);
    assert_int_equal(c.rewinds, 1);
    for (int i = 21; i <= 40; i++)
        add(&c, MSG_ROW_TRAIN, 2, i, 2);
    assert_int_equal(c.n, 40);
    assert_int_equal(c.v[20].attempt, 2);
    add(&c, MSG_ROW_REWIND, 3, 40, 0); /* nothing taken back */
    assert_int_equal(c.rewinds, 1);
    struct msg_row old = {.kind = MSG_ROW_TRAIN, .step = 99, .superseded = true};
    curve_add(&c, &old);
    assert_int_equal(c.step, 40);
    curve_fini(&c);
}

static json_t *job(const char *state, int steps)
{
    return json_pack("{s:i,s:s,s:s,s:s,s:s,s:s,s:i,s:i,s:i,s:i,s:s,s:[s,s],s:i,s:i,s:n}", "job", 7,
                     "name", "harmless-dpo", "state", state, "method", "dpo", "reason", "Resources",
                     "reason_text", "2 of 4 cpu devices are free", "attempt", 1, "devices", 2,
                     "step", 3, "steps", steps, "phase", "training", "device_names", "cpu:0",
                     "cpu:1", "started_ms", 1000, "ended_ms", 0, "loss");
}

/* What does not fit on a line goes on the next one. */
static void test_values_are_whole(void **state)
{
    (void)state;
    struct curve c;
    curve_init(&c);
    for (int i = 1; i <= 30; i++)
        add(&c, MSG_ROW_TRAIN, 1, i, 1.0 / i);
    json_t *j = job("RUNNING", 1000), *waits = job("PENDING", 1000);
    for (size_t columns = 30; columns < 120; columns++) {
        struct buf b = {.max = 1 << 20};
        struct screen s = {.job = j,
                           .curve = &c,
                           .columns = columns,
                           .rows = 24,
                           .connected = true,
                           .now_ms = 99000};
        screen_draw(&s, &b);
        static const char *const whole[] = {"loss 0.03333",        "rewards/accuracies 0.75",
                                            "rewards/margins 0.5", "grad_norm 1.5",
                                            "tokens/s 12,345",     "s/step 1"};
        for (size_t i = 0; i < ARRAY_LEN(whole); i++)
            if (!strstr(b.data, whole[i]))
                fail_msg("%zu columns without %s: %s", columns, whole[i], b.data);
        buf_free(&b);
    }
    curve_fini(&c);
    curve_init(&c);
    struct buf b = {.max = 1 << 20};
    struct screen s = {
        .job = waits, .curve = &c, .columns = 80, .rows = 24, .connected = true, .now_ms = 99000};
    screen_draw(&s, &b);
    assert_null(strstr(b.data, "\n\n"));
    assert_non_null(strstr(b.data, "waits on in the queue"));
    buf_free(&b);
    curve_fini(&c);
    json_decref(j);
    json_decref(waits);
}

/* Every size: never more lines than there are, never a line wider than the screen. */
static void test_sizes(void **state)
{
    (void)state;
    static const char *const states[] = {"PENDING", "RUNNING", "COMPLETED"};
    struct curve c;
    curve_init(&c);
    for (int i = 1; i <= 300; i++)
        add(&c, MSG_ROW_TRAIN, 1, i, i == 5 ? NAN : 1.0 / i);
    add(&c, MSG_ROW_EVAL, 1, 300, 0.3);
    add(&c, MSG_ROW_REWIND, 2, 290, 0);
    for (size_t k = 0; k < ARRAY_LEN(states); k++) {
        json_t *j = job(states[k], 1000);
        for (size_t rows = 1; rows < 60; rows++) {
            for (size_t columns = 20; columns < 200; columns += 9) {
                struct buf b = {.max = 1 << 20};
                struct screen s = {.job = j,
                                   .curve = &c,
                                   .columns = columns,
                                   .rows = rows,
                                   .utf8 = rows % 2,
                                   .connected = rows % 3,
                                   .now_ms = 99000};
                screen_draw(&s, &b);
                assert_int_equal(b.r, 0);
                size_t n = 0;
                for (char *p = b.data; *p; n++) {
                    char *end = strchr(p, '\n');
                    assert_non_null(end);
                    *end = '\0';
                    if (format_width(p) > columns)
                        fail_msg("%zu x %zu: %s", columns, rows, p);
                    p = end + 1;
                }
                assert_true(n <= rows);
                buf_free(&b);
            }
        }
        json_decref(j);
    }
    curve_fini(&c);
}

static void test_words(void **state)
{
    (void)state;
    struct curve c;
    struct buf b = {.max = 1 << 20};
    curve_init(&c);
    for (int i = 1; i <= 50; i++)
        add(&c, MSG_ROW_TRAIN, 1, i, 0.6);
    json_t *j = job("RUNNING", 100);
    struct screen s = {.job = j, .curve = &c, .columns = 120, .rows = 30, .connected = true};
    screen_draw(&s, &b);
    json_object_set_new(j, "gpus",
                        json_pack("[{s:i,s:s,s:s,s:I,s:I,s:i,s:i},{s:i,s:s,s:s,s:n}]", "rank", 0,
                                  "device", "GPU-8f3aabcd-1111", "name", "NVIDIA H100",
                                  "memory_used", (json_int_t)50 << 30, "memory_total",
                                  (json_int_t)80 << 30, "utilisation", 98, "temperature", 71,
                                  "rank", 1, "device", "GPU-00000000", "name", "", "temperature"));
    json_object_set_new(j, "host_memory",
                        json_pack("{s:i,s:i}", "now_kb", 262144, "peak_kb", 300000));
    buf_clear(&b);
    screen_draw(&s, &b);
    static const char *const words[] = {"job 7 harmless-dpo",
                                        "rank 0  GPU-8f3aabcd  util  98 %  mem 50.0/80.0 GiB  71 C "
                                        " NVIDIA H100",
                                        "rank 1  GPU-00000000\n",
                                        "host memory 268 MB, at most 307 MB",
                                        "50/100",
                                        "50 %",
                                        "ETA 50 s",
                                        "loss 0.6",
                                        "rewards/accuracies 0.75",
                                        "rewards/margins 0.5",
                                        "tokens/s 12,345",
                                        "cpu:0,cpu:1",
                                        "Ctrl-C leaves; the job trains on"};
    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        if (!strstr(b.data, words[i]))
            fail_msg("%s is not in\n%s", words[i], b.data);
    assert_null(strstr(b.data, "does not answer"));
    s.connected = false;
    buf_clear(&b);
    screen_draw(&s, &b);
    assert_non_null(strstr(b.data, "alignd does not answer; the job trains on"));
    s.columns = 30; /* values would fill a screen as low as this */
    for (s.rows = 3; s.rows < 12; s.rows++) {
        buf_clear(&b);
        screen_draw(&s, &b);
        size_t lines = 0;
        for (const char *p = b.data; (p = strchr(p, '\n')); p++)
            lines++;
        assert_in_range(lines, 3, s.rows);
        assert_non_null(strstr(b.data, "Ctrl-C leaves"));
    }
    s.job = NULL;
    buf_clear(&b);
    screen_draw(&s, &b);
    assert_string_equal(b.data, "waiting for alignd\n");
    json_decref(j);
    buf_free(&b);
    curve_fini(&c);
}

static void test_rows(void **state)
{
    (void)state;
    static const double values[] = {0.5, NAN, INFINITY};
    static const char *const names[] = {"loss", "grad_norm", "odd\"name"};
    struct msg_row row = {.seq = 3,
                          .attempt = 2,
                          .n = 9,
                          .step = 8,
                          .wall_ms = 77,
                          .kind = MSG_ROW_TRAIN,
                          .n_values = 3,
                          .names = names,
                          .values = values};
    struct buf b = {.max = 1 << 16};
    rowjson_add(&row, &b);
    json_t *j = json_loads(b.data, 0, NULL);
    assert_non_null(j);
    assert_int_equal(json_integer_value(json_object_get(j, "seq")), 3);
    assert_int_equal(json_integer_value(json_object_get(j, "attempt")), 2);
    assert_int_equal(json_integer_value(json_object_get(j, "global_step")), 8);
    assert_string_equal(json_string_value(json_object_get(j, "kind")), "train");
    assert_float_equal(json_number_value(json_object_get(j, "loss")), 0.5, 0);
    assert_true(json_is_null(json_object_get(j, "grad_norm")));
    assert_int_equal(json_array_size(json_object_get(j, "nonfinite")), 2);
    json_decref(j);
    buf_clear(&b);
    json_t *k = job("RUNNING", 100);
    screen_line(k, &row, &b);
    assert_string_equal(b.data, "step 8/100  loss 0.5  grad_norm nan\n");
    row.kind = MSG_ROW_REWIND;
    buf_clear(&b);
    screen_line(k, &row, &b);
    assert_string_equal(b.data, "went back to step 8\n");
    json_decref(k);
    buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_curve), cmocka_unit_test(test_values_are_whole),
        cmocka_unit_test(test_sizes), cmocka_unit_test(test_words),
        cmocka_unit_test(test_rows),
    };
    return cmocka_run_group_tests_name("screen", tests, NULL, NULL);
}
