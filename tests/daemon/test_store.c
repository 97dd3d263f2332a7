/* test_store.c - what is committed is there after a reopen, whole; a full disk loses nothing. */
#include "tests/support/test.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/core.h"
#include "daemon/schema.h"
#include "daemon/store.h"
#include "daemon/store_db.h"

struct world {
    char dir[64];
    struct store *store;
    struct core *core;
    int64_t ns;
};

static struct core *new_core(void)
{
    const struct core_opts o = {.boot_id = "boot", .boottime_ns = 1};
    struct core *c;

    assert_int_equal(core_new(&o, &c), 0);
    return c;
}

static void close_all(struct world *w)
{
    core_free(w->core);
    store_close(w->store);
    w->core = NULL;
    w->store = NULL;
}

static void step(struct world *w, struct event *ev, struct effects *fx)
{
    assert_int_equal(core_step(w->core, w->ns += 1000000, 1700000000000, ev, fx), 0);
}

static void commit(struct world *w, struct effects *fx, const struct store_log *logs, size_t n)
{
    struct err err = {""};

    if (store_commit(w->store, fx, logs, n, &err) < 0)
        fail_msg("%s", err.text);
    event_effects_fini(fx);
}

static void submit(struct world *w, uint8_t id, const char *name, struct effects *fx)
{
    struct event ev = {.kind = EV_SUBMIT, .client = 1};

    ev.req.uid = 1000;
    memset(ev.req.id, id, sizeof ev.req.id);
    ev.submit = (struct event_submit){.name = name,
                                      .method = "dpo",
                                      .output_dir = "/out/{name}-{id}",
                                      .devices = 2,
                                      .type = JOB_CPU,
                                      .steps = 100,
                                      .user_spec = "{\"u\":1}",
                                      .resolved_spec = "{\"r\":1}",
                                      .user_bytes = 7,
                                      .resolved_bytes = 7};
    step(w, &ev, fx);
}

/* Devices, then the queue moves: the first job gets a gang. */
static void serve(struct world *w, struct effects *fx)
{
    for (int i = 0; i < 2; i++) {
        struct event ev = {.kind = EV_DEVICE};
        ev.device = (struct event_device){.name = i ? "cpu:1" : "cpu:0", .type = JOB_CPU};
        step(w, &ev, fx);
    }
    step(w, &(struct event){.kind = EV_RECONCILED}, fx);
}

static void open_all(struct world *w)
{
    struct effects fx = {0};
    struct err err = {""};

    if (store_open(w->dir, &w->store, &err) < 0)
        fail_msg("%s", err.text);
    w->core = new_core();
    if (store_restore(w->store, w->core, &err) < 0)
        fail_msg("%s", err.text);
    serve(w, &fx);
    commit(w, &fx, NULL, 0);
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);

    snprintf(w->dir, sizeof w->dir, "/tmp/alignd-store-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    open_all(w);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    static const char *const names[] = {"alignd.db", "alignd.db-wal", "alignd.db-shm", "ballast"};
    struct world *w = *state;

    close_all(w);
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char path[96];
        snprintf(path, sizeof path, "%s/%s", w->dir, names[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(w->dir), 0);
    free(w);
    return 0;
}

static void report(struct world *w, uint64_t first, uint32_t n, struct effects *fx)
{
    static const char *const names[] = {"loss", "x"};
    struct event_row rows[8] = {{0}};
    char packed[8][256];
    struct event ev = {.kind = EV_REPORT, .client = 2, .worker = {1, 1, true}};

    for (uint32_t i = 0; i < n; i++) {
        const double values[] = {first + i == 3 ? NAN : 1.0 / (double)(first + i), -INFINITY};
        struct msg_row r = {.n_values = first + i == 1 ? 0 : 2};
        r.names = names;
        r.values = values;
        row_pack(&r, packed[i]);
        rows[i] = (struct event_row){.kind = first + i == 1 ? JOB_REPORT_START : JOB_REPORT_TRAIN,
                                     .step = (int64_t)(first + i) - 1,
                                     .wall_ms = 5,
                                     .loss = values[0],
                                     .vals = packed[i],
                                     .bytes = row_packed_bytes(&r)};
    }
    ev.report = (struct event_report){
        .first_n = first, .n = n, .rows = rows, .phase = JOB_PHASE_TRAINING, .step = 1};
    step(w, &ev, fx);
}

static struct store_reader *reader(struct world *w)
{
    struct store_reader *r;
    struct err err = {""};

    if (store_reader_open(store_path(w->store), &r, &err) < 0)
        fail_msg("%s", err.text);
    return r;
}

/* ---- tests ---- */

static void reopened(void **state)
{
    struct world *w = *state;
    struct effects fx = {0};
    char uuid[STORE_UUID];
    uint8_t key[STORE_KEY];
    struct core_gang g;

    snprintf(uuid, sizeof uuid, "%s", store_uuid(w->store));
    memcpy(key, store_token_key(w->store), sizeof key);
    submit(w, 1, "first", &fx);
    submit(w, 2, "second", &fx);
    commit(w, &fx, NULL, 0);
    report(w, 1, 4, &fx);
    commit(w, &fx, NULL, 0);
    assert_int_equal(core_job(w->core, 1)->state, JOB_RUNNING);
    const struct job was = *core_job(w->core, 1);

    close_all(w);
    open_all(w);
    assert_string_equal(store_uuid(w->store), uuid);
    assert_memory_equal(store_token_key(w->store), key, sizeof key);
    assert_int_equal(core_n_jobs(w->core), 2);
    const struct job *j = core_job(w->core, 1);
    assert_int_equal(j->state, JOB_RUNNING);
    assert_int_equal(j->rev, was.rev);
    assert_int_equal(j->seq, was.seq);
    assert_int_equal(j->uid, 1000);
    assert_int_equal(j->attempt, 1);
    assert_int_equal(j->steps, 100);
    assert_string_equal(j->name, "first");
    assert_string_equal(j->output_dir, "/out/first-1");
    assert_true(core_gang(w->core, 1, 1, &g));
    assert_int_equal(g.n_devices, 2);
    assert_string_equal(g.devices[1], "cpu:1");
    assert_int_equal(core_last_report(w->core, 1, 1), 4);
    assert_int_equal(core_job(w->core, 2)->state, JOB_PENDING);

    /* The same request again finds its answer; the next job has the next id. */
    submit(w, 2, "second", &fx);
    assert_int_equal(fx.rows, 0);
    event_effects_fini(&fx);
    submit(w, 3, "third", &fx);
    commit(w, &fx, NULL, 0);
    assert_int_equal(core_job_at(w->core, 2)->id, 3);
}

static void rows(void **state)
{
    struct world *w = *state;
    struct effects fx = {0};
    struct store_reader *r;
    struct row_page p = {0};
    struct store_span span;

    submit(w, 1, "first", &fx);
    report(w, 1, 4, &fx);
    report(w, 5, 2, &fx);
    commit(w, &fx, NULL, 0);
    r = reader(w);
    assert_int_equal(store_read_rows(r, 1, 0, false, 256, &p, &span), 0);
    assert_int_equal(p.n, 6);
    assert_int_equal(span.last, 6);
    assert_int_equal(span.oldest, 1);
    assert_false(span.more);
    assert_int_equal(p.v[0].kind, MSG_ROW_START);
    assert_int_equal(p.v[0].n_values, 0);
    assert_int_equal(p.v[1].n_values, 2);
    assert_string_equal(p.v[5].names[1], "x");
    assert_true(p.v[1].values[0] == 0.5 && isinf(p.v[1].values[1]) && isnan(p.v[2].values[0]));
    assert_ptr_equal(p.v[5].names, p.v[1].names);
    row_page_fini(&p);

    assert_int_equal(store_read_rows(r, 1, 2, false, 3, &p, &span), 0);
    assert_int_equal(p.n, 3);
    assert_int_equal(p.v[0].seq, 3);
    assert_int_equal(span.last, 5);
    assert_true(span.more);
    row_page_fini(&p);
    assert_int_equal(store_read_rows(r, 9, 0, false, 3, &p, &span), 0);
    assert_int_equal(p.n, 0);
    assert_int_equal(span.oldest, 0);
    store_reader_close(r);

    fx = (struct effects){0};
    event_add(&fx, FX_REWIND)->rewind =
        (struct fx_rewind){.job = 1, .seq = 7, .attempt = 2, .step = 3};
    commit(w, &fx, NULL, 0);
    r = reader(w);
    assert_int_equal(store_read_rows(r, 1, 0, false, 256, &p, &span), 0);
    assert_int_equal(p.n, 5); /* steps 0..3 and the rewind */
    assert_int_equal(p.v[4].kind, MSG_ROW_REWIND);
    row_page_fini(&p);
    assert_int_equal(store_read_rows(r, 1, 0, true, 256, &p, &span), 0);
    assert_int_equal(p.n, 7);
    assert_true(p.v[5].superseded && !p.v[3].superseded);
    row_page_fini(&p);
    store_reader_close(r);
}

static void many_names(void **state)
{
    struct world *w = *state;
    struct effects fx = {0};
    struct row_page p = {0};
    struct store_span span;
    struct store_reader *r;

    for (int i = 0; i < 100; i++) { /* more lists of names than are remembered */
        char name[16];
        const char *const names[] = {name};
        const double value = i;
        struct msg_row row = {.n_values = 1, .names = names, .values = &value};
        struct effect *e;
        snprintf(name, sizeof name, "name%d", i % 70);
        void *packed = malloc(row_packed_bytes(&row));
        row_pack(&row, packed);
        e = event_add(&fx, FX_REPORT);
        e->report = (struct fx_report){.job = 1 + (uint64_t)i % 2,
                                       .seq = (uint64_t)i + 1,
                                       .attempt = 1,
                                       .n = 1,
                                       .kind = JOB_REPORT_TRAIN,
                                       .vals = event_copy(&fx, packed, row_packed_bytes(&row)),
                                       .bytes = row_packed_bytes(&row)};
        free(packed);
    }
    commit(w, &fx, NULL, 0);
    r = reader(w);
    assert_int_equal(store_read_rows(r, 2, 0, false, 256, &p, &span), 0);
    assert_int_equal(p.n, 50);
    for (size_t i = 0; i < p.n; i++) {
        char name[16];
        snprintf(name, sizeof name, "name%zu", (2 * i + 1) % 70);
        assert_string_equal(p.v[i].names[0], name);
        assert_true(p.v[i].values[0] == (double)(2 * i + 1));
    }
    row_page_fini(&p);
    store_reader_close(r);
}

static void logs(void **state)
{
    struct world *w = *state;
    const struct store_log l[] = {
        {1, 1, 0, 0, "hello ", 6}, {1, 1, 0, 6, "world", 5}, {1, 1, 1, 0, "other", 5}};
    struct effects fx = {0};
    struct store_reader *r;
    char to[64];
    size_t n;
    uint64_t at, size;

    commit(w, &fx, l, ARRAY_LEN(l));
    r = reader(w);
    assert_int_equal(store_read_log(r, 1, 1, 0, 0, to, sizeof to, &n, &at, &size), 0);
    assert_int_equal(n, 11);
    assert_memory_equal(to, "hello world", 11);
    assert_int_equal(size, 11);
    assert_int_equal(store_read_log(r, 1, 1, 0, 4, to, 4, &n, &at, &size), 0);
    assert_int_equal(n, 4);
    assert_int_equal(at, 4);
    assert_memory_equal(to, "o wo", 4);
    assert_int_equal(store_read_log(r, 1, 1, 0, -3, to, sizeof to, &n, &at, &size), 0);
    assert_int_equal(n, 3);
    assert_memory_equal(to, "rld", 3);
    assert_int_equal(store_read_log(r, 1, 1, 0, 11, to, sizeof to, &n, &at, &size), 0);
    assert_int_equal(n, 0);
    assert_int_equal(at, 11);
    assert_int_equal(store_read_log(r, 1, 1, 0, -100, to, sizeof to, &n, &at, &size), 0);
    assert_int_equal(n, 11);
    assert_int_equal(store_read_log(r, 1, 2, 0, 0, to, sizeof to, &n, &at, &size), 0);
    assert_int_equal(n, 0);
    store_reader_close(r);
}

static void specs(void **state)
{
    struct world *w = *state;
    struct effects fx = {0};
    struct store_reader *r;
    char *user, *resolved;
    bool overwrite;

    submit(w, 1, "first", &fx);
    event_add(&fx, FX_RESPEC)->spec = (struct fx_spec){.job = 1,
                                                       .from_attempt = 3,
                                                       .user = "{\"u\":2}",
                                                       .resolved = "{\"r\":2}",
                                                       .user_bytes = 7,
                                                       .resolved_bytes = 7};
    commit(w, &fx, NULL, 0);
    r = reader(w);
    for (uint32_t a = 0; a < 5; a++) {
        assert_int_equal(store_read_spec(r, 1, a, &user, &resolved, &overwrite), 0);
        assert_string_equal(resolved, a == 0 || a >= 3 ? "{\"r\":2}" : "{\"r\":1}");
        assert_false(overwrite);
        free(user);
        free(resolved);
    }
    assert_int_equal(store_read_spec(r, 2, 0, &user, &resolved, &overwrite), -ENOENT);
    store_reader_close(r);
}

/* A full disk: nothing is written, the ballast goes, the same batch goes through later. */
static void full(void **state)
{
    struct world *w = *state;
    struct effects fx = {0};
    struct err err = {""};
    char *big = malloc(1 << 20), text[64], ballast[96];
    struct stat st;
    const struct store_log l = {1, 1, 0, 0, big, 1 << 20};

    snprintf(ballast, sizeof ballast, "%s/ballast", w->dir);
    assert_int_equal(stat(ballast, &st), 0);
    assert_int_equal(st.st_size, 16 << 20);
    memset(big, 'x', 1 << 20);
    assert_int_equal(
        sqlite3_exec(store_db(w->store), "PRAGMA max_page_count = 1", NULL, NULL, NULL),
        SQLITE_OK); /* = no more than there are */
    submit(w, 1, "first", &fx);
    assert_int_equal(store_commit(w->store, &fx, &l, 1, &err), -ENOSPC);
    assert_true(err.text[0] != 0);
    assert_int_equal(stat(ballast, &st), -1);
    assert_int_equal(store_commit(w->store, &fx, &l, 1, &err), -ENOSPC);
    snprintf(text, sizeof text, "PRAGMA max_page_count = %d", 1 << 20);
    assert_int_equal(sqlite3_exec(store_db(w->store), text, NULL, NULL, NULL), SQLITE_OK);
    commit(w, &fx, &l, 1);
    free(big);
    close_all(w);
    open_all(w);
    assert_int_equal(core_n_jobs(w->core), 1);
}

/* A batch that cannot be written for another reason says so, and nothing of it is there. */
static void collision(void **state)
{
    struct world *w = *state;
    const struct store_log l[] = {{1, 1, 0, 0, "a", 1}, {1, 1, 0, 0, "b", 1}};
    struct effects fx = {0};
    struct err err = {""};

    submit(w, 1, "first", &fx);
    assert_true(store_commit(w->store, &fx, l, 2, &err) < 0);
    event_effects_fini(&fx);
    close_all(w);
    open_all(w);
    assert_int_equal(core_n_jobs(w->core), 0);
}

static void not_ours(void **state)
{
    struct world *w = *state;
    struct store *s;
    struct err err = {""};
    char dir[] = "/tmp/alignd-store-XXXXXX", path[64];
    sqlite3 *db;
    int fd;

    (void)w;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/alignd.db", dir);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "CREATE TABLE t(x)", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    assert_int_equal(store_open(dir, &s, &err), -EINVAL);
    assert_non_null(strstr(err.text, "not alignd's"));
    unlink(path);

    fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, "this is no database at all, it only has its name", 48), 48);
    close(fd);
    assert_true(store_open(dir, &s, &err) < 0);
    unlink(path);

    assert_int_equal(store_open(dir, &s, &err), 0);
    assert_int_equal(sqlite3_exec(store_db(s), "PRAGMA user_version = 99", NULL, NULL, NULL),
                     SQLITE_OK);
    store_close(s);
    assert_int_equal(store_open(dir, &s, &err), -EINVAL);
    assert_non_null(strstr(err.text, "newer"));
    unlink(path);
    snprintf(path, sizeof path, "%s/ballast", dir);
    unlink(path);
    assert_int_equal(rmdir(dir), 0);
}

static int64_t ask(sqlite3 *db, const char *text)
{
    sqlite3_stmt *q;
    int64_t v = -1;

    if (sqlite3_prepare_v2(db, text, -1, &q, NULL) != SQLITE_OK)
        fail_msg("%s: %s", text, sqlite3_errmsg(db));
    if (sqlite3_step(q) == SQLITE_ROW && sqlite3_column_type(q, 0) != SQLITE_NULL)
        v = sqlite3_column_int64(q, 0);
    sqlite3_finalize(q);
    return v;
}

/* A store of the first version: jobs that ended count as ended now. */
static void first_version(void **state)
{
    struct world *w = *state;
    char text[512];

    sqlite3 *db = store_db(w->store);
    assert_int_equal(sqlite3_exec(db, "DROP TABLE job; DROP INDEX request_age", NULL, NULL, NULL),
                     SQLITE_OK);
    const char *table = strstr(schema_steps[0], "CREATE TABLE job(");
    char *whole = strndup(table, (size_t)(strchr(table, ';') - table));
    assert_int_equal(sqlite3_exec(db, whole, NULL, NULL, NULL), SQLITE_OK);
    free(whole);
    for (int state_no = 1; state_no <= 11; state_no++) {
        snprintf(text, sizeof text,
                 "INSERT INTO job VALUES(%d,%d,1,0,1000,1,1,1,%d,0,0,0,0,0,0,0,0,0,10,1,NULL,1,1,1,"
                 "0,0,-1,'n','dpo','/o/%d',NULL,NULL)",
                 state_no, state_no, state_no, state_no);
        if (job_has_gang((enum job_state)state_no))
            continue;
        assert_int_equal(sqlite3_exec(db, text, NULL, NULL, NULL), SQLITE_OK);
    }
    assert_int_equal(sqlite3_exec(db,
                                  "UPDATE mark SET next_job = 12, rev = 12, age_s = 5000000;"
                                  "PRAGMA user_version = 1",
                                  NULL, NULL, NULL),
                     SQLITE_OK);
    close_all(w);
    open_all(w);
    for (uint64_t id = 1; id <= 11; id++) {
        const struct job *j = core_job(w->core, id);
        if (!j)
            assert_true(job_has_gang((enum job_state)id));
        else
            assert_int_equal(j->ended_s, job_is_over((enum job_state)j->state) ? 5000000 : -1);
    }
    assert_int_equal(ask(store_db(w->store), "PRAGMA user_version"), SCHEMA_VERSION);
}

/* What leaves the memory stays in the store, is not loaded at the start, and comes back
 * with all that the core knew. */
static void recalled(void **state)
{
    struct world *w = *state;
    struct effects fx = {0};
    struct store_recall got;
    struct store_jobs page;
    struct store_reader *r;
    uint64_t id;
    uint8_t key[EVENT_ID_BYTES];

    for (uint8_t i = 1; i <= 3; i++)
        submit(w, i, "some", &fx);
    report(w, 1, 4, &fx);
    struct event ev = {.kind = EV_EXIT_RECORD, .client = 3, .worker = {1, 1, true}};
    ev.exit_record = (struct event_exit){.code = 1, .error = "it broke", .first_rank = 1};
    step(w, &ev, &fx);
    commit(w, &fx, NULL, 0);
    const struct job was = *core_job(w->core, 1);
    assert_int_equal(was.state, JOB_FAILED);
    assert_int_equal(
        sqlite3_exec(store_db(w->store), "UPDATE mark SET age_s = 864000", NULL, NULL, NULL),
        SQLITE_OK);
    close_all(w);
    open_all(w);
    assert_int_equal(core_n_jobs(w->core), 2);
    assert_true(core_forgotten(w->core, 1));

    r = reader(w);
    memset(key, 1, sizeof key);
    assert_int_equal(store_read_recall(r, 0, 1000, key, &got), 0);
    assert_true(got.has_request && got.has_job);
    assert_int_equal(got.request.job, 1);
    assert_int_equal(got.job.ended_s, was.ended_s);
    assert_string_equal(got.job.error, "it broke");
    assert_int_equal(got.n_attempts, 1);
    assert_int_equal(got.attempts[0].last_report, 4);
    fx = (struct effects){0};
    ev = (struct event){.kind = EV_RECALL,
                        .recall = {&got.job, got.attempts, got.n_attempts, &got.request}};
    step(w, &ev, &fx);
    store_recall_fini(&got);
    const struct job *j = core_job(w->core, 1);
    assert_int_equal(j->rev, was.rev);
    assert_int_equal(j->seq, was.seq);
    assert_string_equal(j->error, "it broke");
    assert_string_equal(j->output_dir, "/out/some-1");
    assert_int_equal(core_last_report(w->core, 1, 1), 4);
    event_effects_fini(&fx);
    submit(w, 1, "some", &fx); /* that request again */
    assert_int_equal(fx.rows, 0);
    event_effects_fini(&fx);

    assert_int_equal(store_read_recall(r, 77, 1001, key, &got), 0);
    assert_false(got.has_request || got.has_job);
    assert_int_equal(store_read_newest(r, 1000, &id), 0);
    assert_int_equal(id, 3);
    assert_int_equal(store_read_newest(r, 1001, &id), 0);
    assert_int_equal(id, 0);
    assert_int_equal(store_read_jobs(r, 0, -1, 0, 10, &page), 0);
    assert_int_equal(page.n, 1); /* the ended ones */
    assert_false(page.more);
    assert_string_equal(page.v[0].name, "some");
    store_jobs_fini(&page);
    assert_int_equal(store_read_jobs(r, 0, -1, INT64_MAX, 10, &page), 0);
    assert_int_equal(page.n, 0);
    assert_int_equal(page.hidden, 1);
    store_jobs_fini(&page);
    assert_int_equal(store_read_jobs(r, 0, 1001, 0, 10, &page), 0);
    assert_int_equal(page.n, 0);
    store_jobs_fini(&page);
    assert_int_equal(store_read_jobs(r, 1, -1, 0, 10, &page), 0);
    assert_int_equal(page.n, 0);
    store_jobs_fini(&page);
    store_reader_close(r);
}

/* The start's queries use the indexes: it does not look at what it does not load. */
static void plans(void **state)
{
    struct world *w = *state;
    static const char *const queries[] = {
        "SELECT id FROM job WHERE ended_s IS NULL OR ended_s > 5 ORDER BY +id",
        "SELECT job FROM attempt WHERE job IN (SELECT id FROM job WHERE ended_s IS NULL OR"
        " ended_s > 5) ORDER BY job, attempt",
        "SELECT uid FROM request WHERE age_s > 5",
    };

    for (size_t i = 0; i < ARRAY_LEN(queries); i++) {
        char text[512];
        sqlite3_stmt *q;
        snprintf(text, sizeof text, "EXPLAIN QUERY PLAN %s", queries[i]);
        assert_int_equal(sqlite3_prepare_v2(store_db(w->store), text, -1, &q, NULL), SQLITE_OK);
        while (sqlite3_step(q) == SQLITE_ROW) {
            const char *what = (const char *)sqlite3_column_text(q, 3);
            if (strncmp(what, "SCAN", 4) == 0)
                fail_msg("%s: %s", queries[i], what);
        }
        sqlite3_finalize(q);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reopened, setup, teardown),
        cmocka_unit_test_setup_teardown(rows, setup, teardown),
        cmocka_unit_test_setup_teardown(many_names, setup, teardown),
        cmocka_unit_test_setup_teardown(logs, setup, teardown),
        cmocka_unit_test_setup_teardown(specs, setup, teardown),
        cmocka_unit_test_setup_teardown(full, setup, teardown),
        cmocka_unit_test_setup_teardown(collision, setup, teardown),
        cmocka_unit_test_setup_teardown(not_ours, setup, teardown),
        cmocka_unit_test_setup_teardown(first_version, setup, teardown),
        cmocka_unit_test_setup_teardown(recalled, setup, teardown),
        cmocka_unit_test_setup_teardown(plans, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
