/* test_store_tidy.c - what is let go of is what should be, a piece at a time, also when
 * killed between and within pieces; everything else stays as it was. */
#include "tests/support/test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/store_db.h"
#include "daemon/store_tidy.h"
#include "daemon/thin.h"

enum {
    OLD = 1, /* ended long ago: 4 attempts' worth of rows, much output */
    SMALL,   /* ended long ago, few rows                               */
    RECENT,  /* ended a moment ago                                     */
    RUNNING, /* has not ended                                          */
    JOBS = 4,
    ROWS = 6000,
    FEW = 300,
    CHUNK = 60000,
    AGE = 1000000,
    KEEP = 500000,
};

struct world {
    char dir[64];
    struct store *store;
};

static void open_store(struct world *w)
{
    struct err err = {""};

    if (store_open(w->dir, &w->store, &err) < 0)
        fail_msg("%s", err.text);
}

static void commit(struct world *w, struct effects *fx, const struct store_log *logs, size_t n)
{
    struct err err = {""};

    if (store_commit(w->store, fx, logs, n, &err) < 0)
        fail_msg("%s", err.text);
    event_effects_fini(fx);
}

static int rows_of(uint64_t job)
{
    return job == SMALL ? FEW : ROWS;
}

/* Row n of an attempt: a start, evaluations, at last an evaluation and a summary. */
static uint8_t kind_of(uint64_t n, uint64_t last)
{
    if (n == 1)
        return JOB_REPORT_START;
    if (n == last)
        return JOB_REPORT_SUMMARY;
    return n % 100 == 0 || n + 1 == last ? JOB_REPORT_EVAL : JOB_REPORT_TRAIN;
}

static void add_report(struct effects *fx, uint64_t job, uint32_t attempt, uint64_t seq, uint64_t n,
                       uint64_t last)
{
    static const char *const names[] = {"loss", "rewards/margins", "grad_norm"};
    const double values[] = {1.0 / (double)seq, (double)seq, 0.5};
    const struct msg_row row = {.n_values = 3, .names = names, .values = values};
    char packed[256];

    row_pack(&row, packed);
    event_add(fx, FX_REPORT)->report =
        (struct fx_report){.job = job,
                           .seq = seq,
                           .attempt = attempt,
                           .n = n,
                           .kind = kind_of(n, last),
                           .step = (int64_t)n,
                           .wall_ms = 1,
                           .vals = event_copy(fx, packed, row_packed_bytes(&row)),
                           .bytes = row_packed_bytes(&row)};
}

static void put_job(struct effects *fx, uint64_t job, uint64_t seq, uint32_t attempt,
                    int64_t ended_s)
{
    struct effect *e = event_add(fx, FX_JOB);

    e->job = (struct job){.id = job,
                          .rev = job,
                          .seq = seq,
                          .attempt = attempt,
                          .devices = 2,
                          .type = JOB_CPU,
                          .state = ended_s < 0 ? JOB_RUNNING : JOB_COMPLETED,
                          .ended_s = ended_s,
                          .loss = 0.5,
                          .name = "n",
                          .method = "dpo",
                          .output_dir = "/o"};
}

static void put_attempt(struct effects *fx, uint64_t job, uint32_t attempt, uint64_t last)
{
    event_add(fx, FX_ATTEMPT)->attempt = (struct attempt){
        .job = job, .attempt = attempt, .state = JOB_COMPLETED, .last_report = last};
}

/* Two attempts: the second goes back to step 1,000. */
static void put_rows(struct world *w, uint64_t job)
{
    const uint64_t all = (uint64_t)rows_of(job), first = all / 3, second = all - first - 1;
    struct effects fx = {0};

    for (uint64_t n = 1; n <= first; n++)
        add_report(&fx, job, 1, n, n, first);
    event_add(&fx, FX_REWIND)->rewind =
        (struct fx_rewind){.job = job, .seq = first + 1, .attempt = 2, .step = (int64_t)first / 2};
    for (uint64_t n = 1; n <= second; n++)
        add_report(&fx, job, 2, first + 1 + n, n, second);
    put_attempt(&fx, job, 1, first);
    put_attempt(&fx, job, 2, second);
    put_job(&fx, job, all, 2, job == RUNNING ? -1 : job == RECENT ? AGE - 1 : 1000 + (int64_t)job);
    commit(w, &fx, NULL, 0);
}

/* Byte i of a rank's output. */
static char byte_of(uint64_t i)
{
    return (char)('a' + i * 7 % 23);
}

static void put_output(struct world *w, uint64_t job, uint32_t attempt, uint32_t rank, size_t chunk,
                       size_t n)
{
    struct store_log *logs = calloc(n, sizeof *logs);
    char *data = malloc(chunk * n);
    struct effects fx = {0};

    for (size_t i = 0; i < chunk * n; i++)
        data[i] = byte_of(i);
    for (size_t i = 0; i < n; i++)
        logs[i] = (struct store_log){job, attempt, rank, i * chunk, data + i * chunk, chunk};
    commit(w, &fx, logs, n);
    free(logs);
    free(data);
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);

    snprintf(w->dir, sizeof w->dir, "/tmp/alignd-tidy-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    open_store(w);
    for (uint64_t job = 1; job <= JOBS; job++) {
        put_rows(w, job);
        put_output(w, job, 1, 0, CHUNK, 50); /* 3 MB in large pieces */
        put_output(w, job, 2, 0, 90, 5000);  /* 450 KB, line by line */
        put_output(w, job, 2, 1, 90, 10);    /* little */
    }
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    char command[96];

    store_close(w->store);
    snprintf(command, sizeof command, "rm -rf %s", w->dir);
    assert_int_equal(system(command), 0);
    free(w);
    return 0;
}

static int64_t ask(struct world *w, const char *text)
{
    sqlite3_stmt *q;
    int64_t v = -1;

    if (sqlite3_prepare_v2(store_db(w->store), text, -1, &q, NULL) != SQLITE_OK)
        fail_msg("%s: %s", text, sqlite3_errmsg(store_db(w->store)));
    if (sqlite3_step(q) == SQLITE_ROW)
        v = sqlite3_column_int64(q, 0);
    sqlite3_finalize(q);
    return v;
}

static const struct store_keep keep = {.age_s = AGE, .metrics_s = KEEP, .logs_s = KEEP};

static double seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* Until nothing is left to do. */
static struct store_tidied tidy(struct world *w, const struct store_keep *k, int *ret_pieces,
                                double *ret_worst)
{
    struct store_tidied sum = {0}, part;
    struct err err = {""};
    double worst = 0;
    int pieces = 0;

    do {
        const double begin = seconds();
        if (store_tidy(w->store, k, &part, &err) < 0)
            fail_msg("%s", err.text);
        const double took = seconds() - begin;
        worst = took > worst ? took : worst;
        sum.rows += part.rows;
        sum.log_bytes += part.log_bytes;
        sum.pages += part.pages;
        assert_true(++pieces < 10000);
    } while (part.more);
    if (ret_pieces)
        *ret_pieces = pieces;
    if (ret_worst)
        *ret_worst = worst;
    return sum;
}

/* The rows of a job are those that should be there, with their values. */
static void expect_rows(struct world *w, uint64_t job, bool thinned)
{
    const uint64_t all = (uint64_t)rows_of(job), first = all / 3, second = all - first - 1;
    const uint64_t every = thin_every(all);
    struct store_span span = {.last = 0};
    struct store_reader *r;
    struct err err = {""};
    uint64_t seq = 0, kept = 0;

    if (store_reader_open(store_path(w->store), &r, &err) < 0)
        fail_msg("%s", err.text);
    do {
        struct row_page p = {0};
        assert_int_equal(store_read_rows(r, job, span.last, true, 256, &p, &span), 0);
        for (size_t i = 0; i < p.n; i++) {
            const struct msg_row *row = &p.v[i];
            for (seq++; seq < row->seq; seq++) { /* those that are gone */
                const uint32_t attempt = seq <= first ? 1 : 2;
                const uint64_t n = attempt == 1 ? seq : seq - first - 1;
                const uint64_t last = attempt == 1 ? first : second;
                assert_true(thinned && seq != first + 1);
                assert_false(thin_keeps(kind_of(n, last), n, last, every));
            }
            if (row->kind == MSG_ROW_REWIND) {
                assert_int_equal(row->seq, first + 1);
                continue;
            }
            const uint64_t last = row->attempt == 1 ? first : second;
            assert_int_equal(row->n, row->attempt == 1 ? seq : seq - first - 1);
            assert_int_equal(row->kind, kind_of(row->n, last));
            assert_true(!thinned || thin_keeps((uint8_t)row->kind, row->n, last, every));
            assert_int_equal(row->superseded, row->attempt == 1 && row->n > first / 2);
            assert_string_equal(row->names[1], "rewards/margins");
            assert_true(row->values[1] == (double)row->seq);
            kept++;
        }
        row_page_fini(&p);
    } while (span.more);
    assert_int_equal(seq, all); /* the last is always there */
    assert_int_equal(span.last, all);
    assert_int_equal(span.oldest, 1);
    assert_int_equal(span.thinned, thinned ? all : 0);
    if (!thinned)
        assert_int_equal(kept, all - 1);
    store_reader_close(r);
}

static void expect_output(struct world *w, uint64_t job, uint32_t attempt, uint32_t rank,
                          size_t size, bool cut)
{
    static char to[4 << 20];
    uint64_t at, end;
    size_t n, got = 0;
    struct store_reader *r;

    assert_int_equal(store_reader_open(store_path(w->store), &r, NULL), 0);
    assert_int_equal(store_read_log(r, job, attempt, rank, 0, to, sizeof to, &n, &at, &end), 0);
    assert_int_equal(end, size);
    if (!cut || size <= STORE_TIDY_LOG)
        assert_int_equal(at, 0);
    else
        assert_true(at > 0 && size - at >= STORE_TIDY_LOG && size - at <= STORE_TIDY_LOG + CHUNK);
    for (got = 0; got < n; got++)
        assert_int_equal(to[got], byte_of(at + got));
    assert_int_equal(at + n, size);
    assert_int_equal(store_read_log(r, job, attempt, rank, -20, to, 20, &n, &at, &end), 0);
    assert_int_equal(n, 20);
    assert_int_equal(at, size - 20);
    store_reader_close(r);
}

static void expect_all(struct world *w, bool done)
{
    expect_rows(w, OLD, done);
    expect_rows(w, SMALL, false);
    expect_rows(w, RECENT, false);
    expect_rows(w, RUNNING, false);
    for (uint64_t job = 1; job <= JOBS; job++) {
        const bool cut = done && (job == OLD || job == SMALL);
        expect_output(w, job, 1, 0, (size_t)CHUNK * 50, cut);
        expect_output(w, job, 2, 0, 90 * 5000, cut);
        expect_output(w, job, 2, 1, 90 * 10, cut);
    }
}

/* ---- tests ---- */

static void the_rule(void **state)
{
    (void)state;
    assert_int_equal(thin_every(0), 1);
    assert_int_equal(thin_every(THIN_ROWS), 1);
    assert_int_equal(thin_every(THIN_ROWS + 1), 2);
    assert_int_equal(thin_every(1000000), 1954);
    for (uint64_t all = 4; all < 20000; all = all * 3 / 2) {
        const uint64_t every = thin_every(all);
        uint64_t kept = 0;
        for (uint64_t n = 1; n <= all; n++)
            kept += thin_keeps(JOB_REPORT_TRAIN, n, all, every);
        assert_true(kept >= (all < THIN_ROWS ? all : THIN_ROWS / 2) && kept <= THIN_ROWS + 5);
    }
    for (uint8_t kind = 0; kind < 6; kind++)
        assert_int_equal(thin_keeps(kind, 777, 10000, 1000), kind != JOB_REPORT_TRAIN);
}

static void nothing_is_due(void **state)
{
    struct world *w = *state;
    struct store_keep k = keep;
    struct store_tidied sum;

    k.metrics_s = k.logs_s = INT64_MAX / 4;
    sum = tidy(w, &k, NULL, NULL);
    assert_int_equal(sum.rows + sum.log_bytes, 0);
    k.metrics_s = k.logs_s = AGE - 1000; /* to the second: OLD ended at 1001 */
    sum = tidy(w, &k, NULL, NULL);
    assert_int_equal(sum.rows + sum.log_bytes, 0);
    expect_all(w, false);
    k.age_s++;
    sum = tidy(w, &k, NULL, NULL);
    assert_true(sum.rows > 0 && sum.log_bytes > 0);
}

static void thinned_and_cut(void **state)
{
    struct world *w = *state;
    char path[96];
    struct stat before, after;
    struct store_tidied sum;
    double worst;
    int pieces;

    assert_int_equal(
        sqlite3_wal_checkpoint_v2(store_db(w->store), NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL),
        SQLITE_OK);
    snprintf(path, sizeof path, "%s/alignd.db", w->dir);
    assert_int_equal(stat(path, &before), 0);
    sum = tidy(w, &keep, &pieces, &worst);
    assert_int_equal(
        sqlite3_wal_checkpoint_v2(store_db(w->store), NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL),
        SQLITE_OK);
    assert_int_equal(stat(path, &after), 0);
    print_message("%d pieces, the longest %.1f ms; %llu rows, %llu bytes of output; file %lld KB, "
                  "then %lld KB\n",
                  pieces, worst * 1e3, (unsigned long long)sum.rows,
                  (unsigned long long)sum.log_bytes, (long long)before.st_size / 1024,
                  (long long)after.st_size / 1024);
    expect_all(w, true);
    assert_true(after.st_size < before.st_size - 4 * 1024 * 1024);
    assert_true(ask(w, "PRAGMA freelist_count") <= 256);
    sum = tidy(w, &keep, &pieces, NULL);
    assert_int_equal(sum.rows + sum.log_bytes + sum.pages, 0);
    assert_int_equal(pieces, 1);
    store_close(w->store); /* the same after a start */
    open_store(w);
    sum = tidy(w, &keep, NULL, NULL);
    assert_int_equal(sum.rows + sum.log_bytes, 0);
    expect_all(w, true);
}

/* kill -9 at any moment: in the end it is as if nothing had happened. */
static void killed(void **state)
{
    struct world *w = *state;
    int kills = 0;

    store_close(w->store);
    w->store = NULL;
    for (bool done = false; !done;) {
        const pid_t pid = fork();
        int status;
        if (pid == 0) {
            open_store(w);
            (void)tidy(w, &keep, NULL, NULL);
            _exit(0);
        }
        usleep(1000 + 1500 * (unsigned)kills);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        done = WIFEXITED(status);
        kills += !done;
        assert_true(kills < 1000);
    }
    print_message("%d kills\n", kills);
    open_store(w);
    expect_all(w, true);
    sqlite3_stmt *q;
    assert_int_equal(sqlite3_prepare_v2(store_db(w->store), "PRAGMA integrity_check", -1, &q, NULL),
                     SQLITE_OK);
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    assert_string_equal((const char *)sqlite3_column_text(q, 0), "ok");
    sqlite3_finalize(q);
}

/* A thinned job goes on: its new rows are whole until it has ended for long enough again,
 * and what stayed the first time stays. */
static void resumed(void **state)
{
    struct world *w = *state;
    const uint64_t more = 4000;
    struct store_keep k = keep;
    struct effects fx = {0};
    char text[160];

    (void)tidy(w, &keep, NULL, NULL);
    const int64_t kept = ask(w, "SELECT count(*) FROM report WHERE job = 1");
    put_job(&fx, OLD, ROWS, 3, -1);
    event_add(&fx, FX_REWIND)->rewind =
        (struct fx_rewind){.job = OLD, .seq = ROWS + 1, .attempt = 3, .step = 2000};
    for (uint64_t n = 1; n <= more; n++)
        add_report(&fx, OLD, 3, ROWS + 1 + n, n, more);
    put_attempt(&fx, OLD, 3, more);
    put_job(&fx, OLD, ROWS + 1 + more, 3, -1);
    commit(w, &fx, NULL, 0);
    put_output(w, OLD, 3, 0, CHUNK, 10);
    (void)tidy(w, &keep, NULL, NULL);
    snprintf(text, sizeof text, "SELECT count(*) FROM report WHERE job = 1 AND seq > %d", ROWS);
    assert_int_equal(ask(w, text), 1 + more);
    assert_int_equal(ask(w, "SELECT count(*) FROM report WHERE job = 1 AND attempt = 2 AND"
                            " step > 2000 AND superseded = 0"),
                     0);
    put_job(&fx, OLD, ROWS + 1 + more, 3, AGE);
    commit(w, &fx, NULL, 0);
    (void)tidy(w, &keep, NULL, NULL);
    assert_int_equal(ask(w, text), 1 + more);
    expect_output(w, OLD, 3, 0, (size_t)CHUNK * 10, false);
    k.age_s = AGE + KEEP;
    (void)tidy(w, &k, NULL, NULL);
    assert_true(ask(w, text) < (int64_t)more / 4);
    assert_int_equal(ask(w, "SELECT max(seq) FROM report WHERE job = 1"), ROWS + 1 + more);
    snprintf(text, sizeof text, "SELECT count(*) FROM report WHERE job = 1 AND seq <= %d", ROWS);
    assert_int_equal(ask(w, text), kept);
    expect_output(w, OLD, 3, 0, (size_t)CHUNK * 10, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_rule),
        cmocka_unit_test_setup_teardown(nothing_is_due, setup, teardown),
        cmocka_unit_test_setup_teardown(thinned_and_cut, setup, teardown),
        cmocka_unit_test_setup_teardown(killed, setup, teardown),
        cmocka_unit_test_setup_teardown(resumed, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
