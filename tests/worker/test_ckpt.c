/* test_ckpt.c - checkpoints: whole or not taken, old or new, never a mixture; fences,
 * links, and the one history of several attempts. */
#include "tests/support/test.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>

#include "tests/support/ckpt_rig.h"
#include "worker/history.h"
#include "worker/tokenizer_files.h"

static void comes_back_to_the_bit(void **state)
{
    struct world *w = *state;
    struct ckpt_state got;
    void *image = NULL;
    struct err err = {""}, note;
    char name[64], link[128] = "";

    save(w, 1, 7, 0);
    assert_int_equal(ckpt_find(w->run_dir.path, 2, &got, &image, name, &note, &err), 1);
    assert_string_equal(name, "attempts/1/checkpoint-7");
    assert_string_equal(note.text, "");
    assert_memory_equal(image, w->image, w->bytes);
    assert_true(moments_shape_equal(&got.adapter, &w->state.adapter) && got.names_optim);
    assert_int_equal(got.global_step, 7);
    assert_int_equal(got.num_tokens, 12345);
    assert_true(got.loss_sum == w->state.loss_sum);
    assert_memory_equal(&got.window, &w->state.window, sizeof got.window);
    assert_string_equal(got.isa, w->state.isa);
    assert_int_equal(got.token_budget, 2048);
    assert_int_equal(got.ranks, 2);
    free(image);
    assert_true(readlink(temp_dir_path(&w->run_dir, "checkpoint-7"), link, sizeof link - 1) > 0);
    assert_string_equal(link, "attempts/1/checkpoint-7");
    assert_true(is_there(w, "checkpoint-7/adapter_model.safetensors"));
    assert_true(is_there(w, "checkpoint-7/adapter_config.json"));
    assert_true(is_there(w, "checkpoint-7/trainer_state.json"));
    /* an attempt does not look at itself or at later ones */
    assert_int_equal(find(w, 1, &note), -1);
}

/* The tokenizer's files of the start, by name, though the model's folder has lost them. */
static void holds_the_tokenizer(void **state)
{
    struct world *w = *state;
    struct err err = {""};
    struct rundir d;
    struct stat kept, got;
    const char *const model_file = temp_dir_path(&w->model_dir, "tokenizer.json");
    size_t bytes;
    char *text;

    save(w, 1, 6, 0); /* none were kept: none there, and no failure */
    assert_false(is_there(w, "checkpoint-6/tokenizer.json"));

    spill(model_file, "{\"a\": 1}", 8);
    spill(temp_dir_path(&w->model_dir, "chat_template.jinja"), "x", 1);
    if (rundir_open(&d, w->run_dir.path, 1, &err) < 0 ||
        tokenizer_files_keep(w->model_dir.path, &d, &err) < 0 ||
        tokenizer_files_keep(w->model_dir.path, &d, &err) < 0)
        fail_msg("%s", err.text);
    rundir_close(&d);
    assert_int_equal(unlink(temp_dir_path(&w->model_dir, "tokenizer.json")), 0);
    save(w, 1, 7, 1); /* and 6 goes */
    text = slurp(temp_dir_path(&w->run_dir, "checkpoint-7/tokenizer.json"), &bytes);
    assert_int_equal(bytes, 8);
    assert_memory_equal(text, "{\"a\": 1}", 8);
    free(text);
    assert_true(is_there(w, "checkpoint-7/chat_template.jinja"));
    assert_false(is_there(w, "checkpoint-7/tokenizer.model"));
    assert_int_equal(stat(temp_dir_path(&w->run_dir, "attempts/1/tokenizer/tokenizer.json"), &kept),
                     0);
    assert_int_equal(stat(temp_dir_path(&w->run_dir, "checkpoint-7/tokenizer.json"), &got), 0);
    assert_true(kept.st_ino == got.st_ino);
    assert_false(is_there(w, "attempts/1/checkpoint-6"));
}

/* Every prefix and every flipped byte of the small file; a sample of the large one. */
static void torn_files_are_not_taken(void **state)
{
    static const char *const files[] = {"state.json", "state.safetensors"};
    struct world *w = *state;
    struct err note;

    save(w, 1, 5, 0);
    save(w, 1, 7, 0);
    for (size_t k = 0; k < ARRAY_LEN(files); k++) {
        char path[320];
        size_t bytes, step;
        char *whole;

        snprintf(path, sizeof path, "%s/attempts/1/checkpoint-7/%s", w->run_dir.path, files[k]);
        whole = slurp(path, &bytes);
        step = k == 0 ? 7 : bytes / 50 + 1;
        for (size_t cut = 0; cut < bytes; cut += step) {
            spill(path, whole, cut);
            assert_int_equal(find(w, 2, &note), 5);
            assert_string_not_equal(note.text, "");
        }
        for (size_t at = 0; at < bytes; at += step) {
            whole[at] ^= 0x20;
            spill(path, whole, bytes);
            assert_int_equal(find(w, 2, &note), 5);
            whole[at] ^= 0x20;
        }
        assert_int_equal(unlink(path), 0);
        assert_int_equal(find(w, 2, &note), 5);
        spill(path, whole, bytes);
        assert_int_equal(find(w, 2, &note), 7);
        free(whole);
    }
}

static void newest_of_all_attempts(void **state)
{
    struct world *w = *state;
    struct err note;

    save(w, 1, 10, 0);
    make_attempt(w, 2);
    save(w, 2, 4, 0); /* went on from an older one, when 10 could not be read */
    make_attempt(w, 3);
    assert_int_equal(find(w, 3, &note), 10);
    assert_int_equal(find(w, 2, &note), 10);
    /* leftovers and strangers are no checkpoints */
    (void)mkdir(temp_dir_path(&w->run_dir, "attempts/1/.checkpoint-99.part"), 0700);
    (void)mkdir(temp_dir_path(&w->run_dir, "attempts/1/checkpoint-x"), 0700);
    (void)mkdir(temp_dir_path(&w->run_dir, "attempts/1/checkpoint-50"), 0700);
    assert_int_equal(find(w, 3, &note), 10);
    assert_non_null(strstr(note.text, "checkpoint-50"));
}

static void limit_keeps_the_newest(void **state)
{
    struct world *w = *state;

    for (int64_t s = 1; s <= 5; s++)
        save(w, 1, s, 2);
    assert_true(is_there(w, "checkpoint-5") && is_there(w, "checkpoint-4"));
    assert_false(is_there(w, "checkpoint-3"));
    assert_false(is_there(w, "attempts/1/checkpoint-3"));
    assert_false(is_there(w, "attempts/1/.checkpoint-3.old"));
}

/* save_total_limit is the run's, not the attempt's. */
static void limit_counts_all_attempts(void **state)
{
    struct world *w = *state;

    for (int64_t s = 1; s <= 3; s++)
        save(w, 1, s, 0);
    make_attempt(w, 2); /* went on from 2: 3 could not be read */
    save(w, 2, 3, 3);
    assert_true(is_there(w, "checkpoint-3/state.json") && is_there(w, "checkpoint-1"));
    assert_false(is_there(w, "attempts/1/checkpoint-3"));
    save(w, 2, 4, 2);
    assert_true(is_there(w, "checkpoint-4/state.json") && is_there(w, "checkpoint-3/state.json"));
    assert_false(is_there(w, "checkpoint-2") || is_there(w, "checkpoint-1"));
    assert_false(is_there(w, "attempts/1/checkpoint-2"));
    assert_false(is_there(w, "attempts/1/checkpoint-1"));
    make_attempt(w, 3); /* went on from 3 */
    save(w, 3, 3, 1);
    assert_true(is_there(w, "checkpoint-3") && is_there(w, "attempts/2/checkpoint-4"));
    assert_false(is_there(w, "attempts/2/checkpoint-3"));
    save(w, 3, 4, 1);
    assert_true(is_there(w, "checkpoint-4/state.json"));
    assert_false(is_there(w, "attempts/2/checkpoint-4") || is_there(w, "checkpoint-3"));
}

static void later_attempt_fences(void **state)
{
    struct world *w = *state;
    struct err err = {""};

    save(w, 1, 1, 0);
    make_attempt(w, 2);
    assert_int_equal(save_as(w, 1, 2, 0, &err), -ESTALE);
    assert_non_null(strstr(err.text, "attempt 2"));
    assert_false(is_there(w, "attempts/1/checkpoint-2"));
    assert_false(is_there(w, "attempts/1/.checkpoint-2.part"));
    save(w, 2, 2, 0);
}

/* A file that cannot grow stands for a full disk. */
static void failed_write_keeps_the_old_one(void **state)
{
    struct world *w = *state;
    struct rlimit was, low;
    struct err err = {""}, note;

    save(w, 1, 1, 1);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    for (rlim_t most = 0; most < 20000; most += 2500) {
        low = was;
        low.rlim_cur = most;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
        const int r = save_as(w, 1, 2, 1, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
        assert_int_equal(r, -EFBIG);
        assert_int_equal(find(w, 2, &note), 1);
        assert_string_equal(note.text, "");
        assert_false(is_there(w, "attempts/1/.checkpoint-2.part"));
    }
    save(w, 1, 2, 1);
    assert_int_equal(find(w, 2, &note), 2);
}

static void link_never_replaces_a_folder(void **state)
{
    struct world *w = *state;
    struct err err = {""};

    (void)mkdir(temp_dir_path(&w->run_dir, "checkpoint-3"), 0700);
    assert_int_equal(save_as(w, 1, 3, 0, &err), -EEXIST);
}

static void other_runs_do_not_fit(void **state)
{
    struct world *w = *state;
    struct ckpt_state now = w->state;
    struct err err;

    assert_int_equal(ckpt_fits(&w->state, &now, true, &err), 0);
    now.threads = 9; /* bits do not depend on threads */
    assert_int_equal(ckpt_fits(&w->state, &now, true, &err), 0);
    now.ranks = 4;
    assert_int_equal(ckpt_fits(&w->state, &now, true, &err), -EINVAL);
    assert_int_equal(ckpt_fits(&w->state, &now, false, &err), 0);
    now.data_digest[3] ^= 1;
    assert_int_equal(ckpt_fits(&w->state, &now, false, &err), -EINVAL);
    now = w->state;
    now.adapter.n++;
    assert_int_equal(ckpt_fits(&w->state, &now, false, &err), -EINVAL);
    now = w->state;
    snprintf(now.isa, sizeof now.isa, "avx2");
    assert_int_equal(ckpt_fits(&w->state, &now, true, &err), -EINVAL);
}

/* ---- history ---- */

static void spool(const struct world *w, uint32_t attempt, int64_t start, int64_t to, bool end)
{
    char dir[320];
    struct spool *s = NULL;
    struct spool_row *row = calloc(1, sizeof *row);
    struct err err = {""};

    snprintf(dir, sizeof dir, "%s/attempts/%u", w->run_dir.path, attempt);
    assert_int_equal(spool_create(dir, attempt, &s, &err), 0);
    row->global_step = start;
    assert_int_equal(spool_append(s, row, &err), 0);
    for (int64_t i = start + 1; i <= to; i++) {
        *row = (struct spool_row){.kind = SPOOL_TRAIN, .global_step = i};
        metrics_put(row, "", "loss", i == 2 ? NAN : 1.0 / (double)i);
        metrics_put(row, "", "attempt_was", attempt);
        assert_int_equal(spool_append(s, row, &err), 0);
    }
    *row = (struct spool_row){.kind = SPOOL_SUMMARY, .global_step = to};
    if (end)
        assert_int_equal(spool_append(s, row, &err), 0);
    spool_close(s);
    free(row);
}

struct seen {
    int64_t step[64];
    uint32_t attempt[64];
    int n, summaries, starts;
};

static int see(void *arg, const struct spool_row *row, const char *line, size_t bytes)
{
    struct seen *s = arg;

    assert_true(bytes > 2 && line[0] == '{');
    if (row->kind == SPOOL_SUMMARY) {
        s->summaries++;
        return 0;
    }
    if (row->kind == SPOOL_START) {
        s->starts++;
        return 0;
    }
    s->step[s->n] = row->global_step;
    s->attempt[s->n++] = row->attempt;
    return 0;
}

static void one_history_of_many_attempts(void **state)
{
    struct world *w = *state;
    struct seen s = {0};
    struct rundir d;
    struct err err = {""};

    make_attempt(w, 2);
    make_attempt(w, 3);
    make_attempt(w, 4);
    spool(w, 1, 0, 9, true); /* finished, then continued with more steps */
    spool(w, 2, 7, 12, false);
    spool(w, 4, 5, 14, true); /* attempt 3 never came to its first line */
    assert_int_equal(rundir_open(&d, w->run_dir.path, 4, &err), 0);
    assert_int_equal(history_read(&d, 4, -1, see, &s, &err), 0);
    assert_int_equal(s.n, 14);
    assert_int_equal(s.summaries, 1);
    assert_int_equal(s.starts, 2); /* attempt 2's is taken back with its rows */
    for (int i = 0; i < s.n; i++) {
        assert_int_equal(s.step[i], i + 1);
        assert_int_equal(s.attempt[i], i < 5 ? 1 : 4);
    }
    /* as attempt 3 would have seen it, beginning at 10 */
    memset(&s, 0, sizeof s);
    assert_int_equal(history_read(&d, 2, 10, see, &s, &err), 0);
    assert_int_equal(s.n, 10);
    assert_int_equal(s.attempt[6], 1);
    assert_int_equal(s.attempt[7], 2);
    assert_int_equal(s.summaries, 0);
    rundir_close(&d);
}

static void trainer_state_is_json(void **state)
{
    struct world *w = *state;
    struct history h = {0};
    struct text_out out = {0};
    struct rundir d;
    struct err err = {""};
    const struct plan plan = {.steps = 20, .steps_per_epoch = 8, .epochs = 2.5};

    make_attempt(w, 2);
    spool(w, 1, 0, 4, false);
    assert_int_equal(rundir_open(&d, w->run_dir.path, 2, &err), 0);
    assert_int_equal(history_load(&h, &d, 3, &err), 0);
    history_print(&h, &(struct history_state){.spec = &w->spec, .plan = &plan, .global_step = 3},
                  &out);
    text_out_bytes(&out, "", 1);
    assert_int_equal(out.error, 0);
    assert_non_null(strstr(out.p, "\"epoch\": 0.375,"));
    assert_non_null(strstr(out.p, "\"global_step\": 3,"));
    assert_non_null(strstr(out.p, "\"loss\": null,")); /* step 2 */
    assert_non_null(strstr(out.p, "\"step\": 3\n"));
    assert_null(strstr(out.p, "\"step\": 4\n"));
    assert_non_null(strstr(out.p, "\"num_train_epochs\": 3,"));
    text_out_free(&out);
    history_free(&h);
    rundir_close(&d);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(comes_back_to_the_bit),        TEST(holds_the_tokenizer),
        TEST(torn_files_are_not_taken),     TEST(newest_of_all_attempts),
        TEST(limit_keeps_the_newest),       TEST(limit_counts_all_attempts),
        TEST(later_attempt_fences),         TEST(failed_write_keeps_the_old_one),
        TEST(link_never_replaces_a_folder), TEST(other_runs_do_not_fit),
        TEST(one_history_of_many_attempts), TEST(trainer_state_is_json),
    };

    return cmocka_run_group_tests_name("ckpt", tests, NULL, NULL);
}
