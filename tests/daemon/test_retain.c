/* test_retain.c - what a long-lived alignd lets go of and still knows. The store's age, which
 * decides, is moved on by hand between two starts. */
#include "tests/support/test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sqlite3.h>

#include "tests/daemon/world.h"

enum { DAY = 86400 };

static sqlite3_int64 sql(struct world *w, const char *text)
{
    char path[192];
    sqlite3_int64 v = -1;
    sqlite3_stmt *q;
    sqlite3 *db;

    snprintf(path, sizeof path, "%s/alignd.db", w->state);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 5000);
    if (sqlite3_prepare_v2(db, text, -1, &q, NULL) != SQLITE_OK)
        fail_msg("%s: %s", text, sqlite3_errmsg(db));
    if (sqlite3_step(q) == SQLITE_ROW)
        v = sqlite3_column_int64(q, 0);
    assert_int_equal(sqlite3_finalize(q), SQLITE_OK);
    sqlite3_close(db);
    return v;
}

/* Killed, `days` go by in the store's own time, started again. */
static void age(struct world *w, int days)
{
    char text[96];

    world_finish(w, SIGKILL);
    snprintf(text, sizeof text, "UPDATE mark SET age_s = age_s + %d", days * DAY);
    sql(w, text);
    world_start(w);
}

static json_t *list(struct world *w, uint64_t after, uint64_t max, bool active, uint64_t *ret_next)
{
    struct msg m = {.type = MSG_T_list};

    m.list.after = after;
    m.list.max = max;
    m.list.active = active;
    struct msg *r = world_ask(w, &m);
    assert_int_equal(r->type, MSG_T_json);
    json_t *o = json_loads(r->json.text, 0, NULL);
    assert_non_null(o);
    if (ret_next)
        *ret_next = r->json.next;
    codec_free(r);
    return o;
}

static void expect_ids(json_t *o, const json_int_t *ids, size_t n)
{
    assert_int_equal(json_array_size(o), n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(world_int_of(json_array_get(o, i), "job"), ids[i]);
    json_decref(o);
}

static void change(struct world *w, const struct msg *m, const char *state)
{
    struct msg *r = world_ask(w, m);

    if (r->type == MSG_T_error)
        fail_msg("%s", r->error.text);
    assert_string_equal(r->done.state, state);
    codec_free(r);
}

static uint64_t ended_ms(struct world *w, uint64_t job)
{
    json_t *o = world_show(w, job);
    const json_int_t ms = world_int_of(o, "ended_ms");

    json_decref(o);
    return (uint64_t)ms;
}

/* How many jobs the newest start took into memory, as its log says. */
static int loaded(struct world *w)
{
    char path[192], line[1024];
    int jobs = -1;
    FILE *f;

    snprintf(path, sizeof path, "%s/alignd.log", w->state);
    f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        const char *at = strstr(line, " ready ") ? strstr(line, " jobs=") : NULL;
        if (at)
            jobs = (int)strtol(at + strlen(" jobs="), NULL, 10);
    }
    fclose(f);
    return jobs;
}

/* A start loads what it needs, not what there ever was; all of it is listed. */
static void thousands(void **state)
{
    struct world *w = *state;
    uint64_t next = 0, n = 0;

    world_submit(w, 1, "one", "{\"play\":{\"steps\":1}}");
    world_wait_for(w, 1, "COMPLETED", 1);
    world_finish(w, SIGKILL);
    sql(w, "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)"
           " INSERT INTO job SELECT i, rev, ord, seq, uid, attempt, devices, type, state, reason,"
           " want, lost, launch_failures, held, published, phase, priority, limit_s, steps, step,"
           " loss, submitted_ms, started_ms, ended_ms, exit_code, exit_signal, first_rank, name,"
           " method, output_dir, error, adapter, ended_s, thin_seq, thin_every, log_cut"
           " FROM job, n WHERE id = 1");
    sql(w, "UPDATE mark SET next_job = 10001");
    world_start(w);
    struct msg m = {.type = MSG_T_devices};
    codec_free(world_ask(w, &m));
    assert_int_equal(loaded(w), 10000);
    age(w, 8);
    codec_free(world_ask(w, &m));
    assert_int_equal(loaded(w), 0);
    do {
        json_t *o = list(w, next, 0, false, &next);
        for (size_t i = 0; i < json_array_size(o); i++)
            assert_int_equal(world_int_of(json_array_get(o, i), "job"), ++n);
        json_decref(o);
    } while (next);
    assert_int_equal(n, 10000);
    assert_int_equal(world_submit(w, 2, "next", "{\"play\":{\"steps\":1}}"), 10001);
}

/* Every verb works on a job that only the store knows. */
static void old_jobs(void **state)
{
    struct world *w = *state;
    struct msg m = {.type = MSG_T_hold}, *r;
    uint64_t next;
    json_t *o;

    assert_int_equal(world_submit(w, 1, "one", "{\"play\":{\"steps\":3}}"), 1);
    world_wait_for(w, 1, "COMPLETED", 3);
    m = world_submission(2, "held", "{\"play\":{\"steps\":3}}");
    m.submit.hold = true;
    codec_free(world_ask(w, &m));
    for (uint8_t k = 3; k <= 5; k++)
        world_submit(w, k, "more", "{\"play\":{\"steps\":2}}");
    for (uint64_t id = 3; id <= 5; id++)
        world_wait_for(w, id, "COMPLETED", 2);
    world_wait_until_gone(w, 5);
    age(w, 8);
    assert_int_equal(world_submit(w, 6, "new", "{\"play\":{\"steps\":1}}"), 6);
    world_wait_for(w, 6, "COMPLETED", 1);

    expect_ids(list(w, 0, 0, false, &next), (const json_int_t[]){1, 2, 3, 4, 5, 6}, 6);
    assert_int_equal(next, 0);
    expect_ids(list(w, 0, 3, false, &next), (const json_int_t[]){1, 2, 3}, 3);
    expect_ids(list(w, next, 3, false, &next), (const json_int_t[]){4, 5, 6}, 3);
    expect_ids(list(w, 1, 1, false, &next), (const json_int_t[]){2}, 1);
    expect_ids(list(w, 0, 0, true, &next), (const json_int_t[]){2}, 1);

    m = (struct msg){.type = MSG_T_list, .list.ended_after_ms = ended_ms(w, 6)};
    r = world_ask(w, &m);
    assert_int_equal(r->json.hidden, 4);
    expect_ids(json_loads(r->json.text, 0, NULL), (const json_int_t[]){2, 6}, 2);
    codec_free(r);

    o = world_show(w, 1);
    assert_string_equal(world_text_of(o, "state"), "COMPLETED");
    assert_string_equal(world_text_of(o, "output_dir"), "/nowhere/one-1");
    assert_string_equal(world_text_of(o, "adapter"), "/a/b");
    assert_int_equal(json_array_size(json_object_get(o, "attempts")), 1);
    json_decref(o);
    world_expect_rows(w, 3, 4);
    world_expect_log(w, 4, "hello from rank 0\ndone\n");
    m = (struct msg){.type = MSG_T_spec, .spec.job = 5};
    r = world_ask(w, &m);
    assert_int_equal(r->type, MSG_T_specs);
    assert_string_equal(r->specs.resolved, "{\"play\":{\"steps\":2}}");
    codec_free(r);
    m = (struct msg){.type = MSG_T_show, .show.job = 7};
    world_expect_error(w, &m, MSG_NOT_FOUND);
    m = (struct msg){.type = MSG_T_cancel, .cancel = {.key = world_key(20), .job = 7}};
    world_expect_error(w, &m, MSG_NOT_FOUND);
    m = (struct msg){.type = MSG_T_cancel, .cancel = {.key = world_key(21), .job = 5}};
    change(w, &m, "COMPLETED");
    m = (struct msg){.type = MSG_T_resume, .resume = {.key = world_key(22), .job = 4}};
    world_expect_error(w, &m, MSG_REFUSED); /* all its steps are done */
}

/* The same request gets the same answer, however old; a failed job goes on. */
static void old_requests(void **state)
{
    struct world *w = *state;
    struct msg m = world_submission(1, "fails", "{\"play\":{\"steps\":3,\"end\":\"fail\"}}"), *r;
    const struct msg again = m;

    codec_free(world_ask(w, &m));
    world_wait_for(w, 1, "FAILED", 0);
    world_wait_until_gone(w, 1);
    const json_int_t rows = (json_int_t)sql(w, "SELECT count(*) FROM report");
    age(w, 400);
    r = world_ask(w, &again);
    assert_int_equal(r->type, MSG_T_submitted);
    assert_int_equal(r->submitted.job, 1);
    assert_string_equal(r->submitted.output_dir, "/nowhere/fails-1");
    codec_free(r);
    m.submit.priority = 7;
    world_expect_error(w, &m, MSG_CONFLICT);
    age(w, 1);
    m = (struct msg){.type = MSG_T_show}; /* the newest of mine */
    r = world_ask(w, &m);
    assert_int_equal(r->type, MSG_T_json);
    assert_non_null(strstr(r->json.text, "\"job\":1,"));
    codec_free(r);
    age(w, 1);
    m = (struct msg){.type = MSG_T_resume, .resume = {.key = world_key(9), .job = 1}};
    m.resume.user_spec = "{\"name\":\"x\"}";
    m.resume.resolved = "{\"play\":{\"steps\":6}}";
    m.resume.steps = 6;
    change(w, &m, "CONFIGURING");
    world_wait_for(w, 1, "COMPLETED", 6);
    json_t *o = world_show(w, 1);
    assert_int_equal(json_array_size(json_object_get(o, "attempts")), 2);
    json_decref(o);
    r = world_metrics(w, 1, true);
    assert_true((json_int_t)r->page.rows.n > rows);
    for (size_t i = 0; i < r->page.rows.n; i++)
        assert_int_equal(r->page.rows.v[i].seq, i + 1);
    codec_free(r);
    assert_int_equal(world_submit(w, 1, "fails", "{\"play\":{\"steps\":3,\"end\":\"fail\"}}"), 1);
}

/* An old job is watched to its end at once. */
static void old_watched(void **state)
{
    struct world *w = *state;
    struct msg m = {.type = MSG_T_watch_job}, *r;
    uint64_t rows = 0;

    world_submit(w, 1, "seen", "{\"play\":{\"steps\":3}}");
    world_wait_for(w, 1, "COMPLETED", 3);
    world_wait_until_gone(w, 1);
    age(w, 8);
    world_wait_until_gone(w, 999); /* it serves again */
    assert_int_equal(wire_dial(w->watch_url, 0, &w->watch, NULL), 0);
    m.watch_job.job = 1;
    for (bool over = false; !over;) {
        r = world_ask_on(w->watch, &m);
        assert_int_equal(r->type, MSG_T_job_news);
        rows += r->job_news.rows.n;
        m.watch_job.since = r->job_news.last;
        m.watch_job.rev = r->job_news.rev;
        over = r->job_news.over;
        codec_free(r);
    }
    assert_int_equal(rows, 5);
    m = (struct msg){.type = MSG_T_watch_log, .watch_log.job = 1};
    r = world_ask_on(w->watch, &m);
    assert_int_equal(r->type, MSG_T_chunk);
    assert_true(r->chunk.over);
    codec_free(r);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

enum { SUBMITS = 150 };

/* How long submits take, one after the other. */
static void time_submits(struct world *w, uint8_t from, const char *what)
{
    static double took[SUBMITS];

    for (int i = 0; i < SUBMITS; i++) {
        struct msg m = world_submission(from, "held", "{\"play\":{\"steps\":1}}");
        m.submit.hold = true;
        memcpy(m.submit.key.b, &i, sizeof i);
        const double begin = seconds();
        struct msg *r = world_ask(w, &m);
        took[i] = seconds() - begin;
        assert_int_equal(r->type, MSG_T_submitted);
        codec_free(r);
        usleep(5000);
    }
    qsort(took, SUBMITS, sizeof took[0], by_value);
    print_message("submits %s: median %.1f ms, 95 of 100 within %.1f ms, longest %.1f ms\n", what,
                  took[SUBMITS / 2] * 1e3, took[SUBMITS * 95 / 100] * 1e3, took[SUBMITS - 1] * 1e3);
}

/* Rows of an old job are thinned and its output is cut while alignd serves; those who come
 * late see gaps, not errors; it can go on. */
static void thinned(void **state)
{
    struct world *w = *state;
    const uint64_t all = 1502; /* a start, 1,500 steps, a summary */
    struct msg m = {.type = MSG_T_metrics, .metrics.job = 1}, *r;
    uint64_t last = 0, rows = 0;

    world_submit(w, 1, "long", "{\"play\":{\"steps\":1500}}");
    world_wait_for(w, 1, "COMPLETED", 1500);
    world_wait_until_gone(w, 1);
    time_submits(w, 2, "without tidying");
    sql(w, "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 199)"
           " INSERT INTO log SELECT 1, 1, 0, 23 + i * 50000, zeroblob(50000) FROM n");
    const sqlite3_int64 pages = sql(w, "PRAGMA page_count");
    age(w, 31);
    while (sql(w, "SELECT thin_seq FROM job WHERE id = 1") == 0)
        usleep(5000);
    time_submits(w, 3, "while tidying");
    for (int i = 0; sql(w, "SELECT log_cut FROM job WHERE id = 1") == 0 ||
                    sql(w, "PRAGMA freelist_count") > 256;
         i++) {
        assert_true(i < 3000);
        usleep(10000);
    }
    assert_true(sql(w, "PRAGMA page_count") < pages - 2000);
    time_submits(w, 4, "after it, each with a look for an old answer");

    for (bool more = true; more;) {
        m.metrics.since = last;
        r = world_ask(w, &m);
        assert_int_equal(r->type, MSG_T_page);
        assert_int_equal(r->page.thinned, all);
        for (size_t i = 0; i < r->page.rows.n; i++) {
            const struct msg_row *row = &r->page.rows.v[i];
            assert_true(row->seq > last && row->n == row->seq);
            assert_true(row->kind != MSG_ROW_TRAIN || row->values[0] == 1.0 / (double)row->step);
            last = row->seq;
            rows++;
        }
        more = r->page.more;
        codec_free(r);
    }
    assert_int_equal(last, all);
    assert_true(rows > 256 && rows < all / 2);
    m = (struct msg){.type = MSG_T_logs, .logs.job = 1};
    r = world_ask(w, &m);
    assert_int_equal(r->type, MSG_T_chunk);
    assert_true(r->chunk.offset > 9000000 && r->chunk.size == 23 + 200 * 50000);
    codec_free(r);

    m = (struct msg){.type = MSG_T_watch_job, .watch_job.job = 1};
    world_wait_until_gone(w, 999);
    assert_int_equal(wire_dial(w->watch_url, 0, &w->watch, NULL), 0);
    for (bool over = false; !over;) {
        r = world_ask_on(w->watch, &m);
        assert_int_equal(r->type, MSG_T_job_news);
        rows -= r->job_news.rows.n;
        assert_int_equal(r->job_news.thinned, all);
        m.watch_job.since = r->job_news.last;
        m.watch_job.rev = r->job_news.rev;
        over = r->job_news.over;
        codec_free(r);
    }
    assert_int_equal(rows, 0);
    assert_int_equal(m.watch_job.since, all);

    m = (struct msg){.type = MSG_T_resume, .resume = {.key = world_key(9), .job = 1}};
    m.resume.user_spec = "{\"name\":\"x\"}";
    m.resume.resolved = "{\"play\":{\"steps\":1600}}";
    m.resume.steps = 1600;
    change(w, &m, "CONFIGURING");
    world_wait_for(w, 1, "COMPLETED", 1600);
    assert_int_equal(sql(w, "SELECT min(seq) FROM report WHERE job = 1 AND attempt = 2"), all + 1);
    assert_int_equal(sql(w, "SELECT max(n) FROM report WHERE job = 1 AND attempt = 2"), 1602);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(old_jobs, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(thousands, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(old_requests, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(old_watched, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(thinned, world_setup, world_teardown),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
