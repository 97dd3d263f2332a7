/* test_config.c - command line, alignd.json, reload, and whose the state folder is. */
#include "tests/support/test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/config.h"

static char dir[64];

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/alignd-config-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    char command[96];

    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

static void put(const char *text)
{
    char path[96];
    FILE *f;

    snprintf(path, sizeof path, "%s/alignd.json", dir);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int read_with(const char *option, const char *value, struct config **ret, struct err *err)
{
    char *argv[] = {"alignd", "--user", "--state", dir, (char *)option, (char *)value, NULL};
    int argc = 4 + (option != NULL) + (value != NULL);

    err->text[0] = 0;
    return config_read(argc, argv, ret, err);
}

static void options(void **state)
{
    static const char *const bad[][2] = {
        {"--cpu-slots", "0"},   {"--cpu-slots", "x"},    {"--cpu-slots", "1000"},
        {"--cpu-slots", NULL},  {"--log-level", "loud"}, {"--host", "tcp://127.0.0.1:1"},
        {"--no-such", "thing"}, {"rest", NULL},
    };
    struct config *c;
    struct err err;

    (void)state;
    assert_int_equal(read_with("--cpu-slots", "7", &c, &err), 0);
    assert_true(c->user);
    assert_int_equal(c->cpu_slots, 7);
    assert_string_equal(c->state, dir);
    assert_int_equal(c->log_level, LOG_INFO);
    config_free(c);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_int_equal(read_with(bad[i][0], bad[i][1], &c, &err), -EINVAL);
        assert_true(err.text[0] != 0);
    }
    assert_int_equal(read_with("--help", NULL, &c, &err), 0);
    assert_true(c->help);
    config_free(c);
}

static void file(void **state)
{
    static const char *const bad[] = {
        "{\"cpu_slots\": 0}",
        "{\"cpu_slots\": \"2\"}",
        "{\"cpu_slot\": 2}",
        "{\"operators\": [\"no such user\"]}",
        "{\"operators\": 5}",
        "{\"operators\": [-1]}",
        "{\"log_level\": \"loud\"}",
        "{\"memory_keep\": 7}",
        "{\"metrics_keep\": \"0d\"}",
        "{\"logs_keep\": null}",
        "{\"memory_keep\": \"7\"}",
        "[]",
        "{",
        "{\"cpu_slots\": 1, \"cpu_slots\": 2}",
    };
    struct config *c;
    struct err err;

    (void)state;
    put("{\"cpu_slots\": 3, \"log_level\": \"debug\", \"operators\": [0, \"root\", 1234]}");
    assert_int_equal(read_with(NULL, NULL, &c, &err), 0);
    assert_int_equal(c->cpu_slots, 3);
    assert_int_equal(c->log_level, LOG_DEBUG);
    assert_int_equal(c->n_operators, 3);
    assert_int_equal(c->operators[2], 1234);
    config_free(c);
    assert_int_equal(read_with("--cpu-slots", "5", &c, &err), 0); /* the command line wins */
    assert_int_equal(c->cpu_slots, 5);
    config_free(c);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        put(bad[i]);
        assert_int_equal(read_with(NULL, NULL, &c, &err), -EINVAL);
        assert_non_null(strstr(err.text, "alignd.json"));
    }
}

static void durations(void **state)
{
    static const struct {
        const char *text;
        int64_t seconds;
    } v[] = {{"1s", 1},           {"90s", 90},  {"5m", 300},  {"12h", 43200}, {"30d", 2592000},
             {"2w", 1209600},     {"0d", -1},   {"", -1},     {"30", -1},     {"30 d", -1},
             {"-1d", -1},         {"+1d", -1},  {"1dd", -1},  {"1y", -1},     {" 1d", -1},
             {"9999999999d", -1}, {"1e3s", -1}, {"ever", -1}, {"1.5d", -1}};
    int64_t s;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(v); i++) {
        assert_int_equal(config_duration(v[i].text, &s), v[i].seconds < 0 ? -EINVAL : 0);
        if (v[i].seconds > 0)
            assert_int_equal(s, v[i].seconds);
    }
    assert_int_equal(config_duration("forever", &s), 0);
    assert_int_equal(s, CONFIG_FOREVER);
}

/* What is kept for how long may change, but memory_keep. */
static void keeps(void **state)
{
    struct config *c;
    struct err err;

    (void)state;
    put("{\"cpu_slots\": 3}");
    assert_int_equal(read_with(NULL, NULL, &c, &err), 0);
    assert_int_equal(c->memory_keep_s, 7 * 86400);
    assert_int_equal(c->metrics_keep_s, 30 * 86400);
    put("{\"cpu_slots\": 3, \"log_level\": \"warn\", \"metrics_keep\": \"2w\", \"logs_keep\": "
        "\"forever\"}");
    assert_int_equal(config_reload(c, &err), 0);
    assert_int_equal(c->metrics_keep_s, 14 * 86400);
    assert_true(c->logs_keep_s == CONFIG_FOREVER);
    put("{\"cpu_slots\": 3, \"log_level\": \"warn\"}"); /* no more: as if it had never been */
    assert_int_equal(config_reload(c, &err), 0);
    assert_int_equal(c->logs_keep_s, 30 * 86400);
    put("{\"cpu_slots\": 3, \"log_level\": \"warn\", \"memory_keep\": \"1d\"}");
    assert_int_equal(config_reload(c, &err), -EINVAL);
    assert_non_null(strstr(err.text, "memory_keep"));
    assert_int_equal(c->memory_keep_s, 7 * 86400);
    config_free(c);
}

static void reloaded(void **state)
{
    struct config *c;
    struct err err;

    (void)state;
    put("{\"cpu_slots\": 3}");
    assert_int_equal(read_with(NULL, NULL, &c, &err), 0);
    put("{\"cpu_slots\": 3, \"log_level\": \"warn\", \"operators\": [7]}");
    assert_int_equal(config_reload(c, &err), 0);
    assert_int_equal(c->log_level, LOG_WARN);
    assert_int_equal(c->n_operators, 1);
    put("{\"cpu_slots\": 4, \"log_level\": \"error\"}");
    assert_int_equal(config_reload(c, &err), -EINVAL);
    assert_non_null(strstr(err.text, "cpu_slots"));
    assert_int_equal(c->log_level, LOG_WARN); /* all or nothing */
    assert_int_equal(c->cpu_slots, 3);
    put("{broken");
    assert_int_equal(config_reload(c, &err), -EINVAL);
    assert_int_equal(c->n_operators, 1);
    put("{\"cpu_slots\": 3}"); /* what is gone has its default again */
    assert_int_equal(config_reload(c, &err), 0);
    assert_int_equal(c->n_operators, 0);
    assert_int_equal(c->log_level, LOG_INFO);
    put("{\"worker\": \"/bin/true\", \"cpu_slots\": 3}");
    assert_int_equal(config_reload(c, &err), -EINVAL);
    assert_non_null(strstr(err.text, "worker"));
    put("{}"); /* a key that goes away has changed too */
    assert_int_equal(config_reload(c, &err), -EINVAL);
    assert_non_null(strstr(err.text, "cpu_slots"));
    config_free(c);
}

/* The command line wins at a reload as it did at the start. */
static void reloaded_beside_options(void **state)
{
    struct config *c;
    struct err err;

    (void)state;
    put("{\"cpu_slots\": 3, \"log_level\": \"warn\"}");
    assert_int_equal(read_with("--cpu-slots", "5", &c, &err), 0);
    put("{\"cpu_slots\": 3, \"log_level\": \"error\", \"operators\": [7]}");
    assert_int_equal(config_reload(c, &err), 0);
    assert_int_equal(c->cpu_slots, 5);
    assert_int_equal(c->log_level, LOG_ERROR);
    assert_int_equal(c->n_operators, 1);
    config_free(c);
    assert_int_equal(read_with("--log-level", "debug", &c, &err), 0);
    assert_int_equal(config_reload(c, &err), 0);
    assert_int_equal(c->log_level, LOG_DEBUG);
    config_free(c);
}

static void state_folder(void **state)
{
    struct config c = {0};
    char note[512];
    struct err err = {""};
    struct stat st;

    (void)state;
    snprintf(c.state, sizeof c.state, "%s/a/b/c", dir);
    assert_int_equal(config_prepare(&c, note, sizeof note, &err), 0);
    assert_string_equal(c.local, c.state);
    assert_string_equal(note, "");
    assert_int_equal(stat(c.state, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    snprintf(c.state, sizeof c.state, "%s/file/x", dir);
    snprintf(note, sizeof note, "%s/file", dir);
    fclose(fopen(note, "w"));
    assert_int_equal(config_prepare(&c, note, sizeof note, &err), -ENOTDIR);
    if (geteuid() == 0) {
        snprintf(c.state, sizeof c.state, "%s/other", dir);
        assert_int_equal(mkdir(c.state, 0755), 0);
        assert_int_equal(chown(c.state, 12345, 12345), 0);
        assert_int_equal(config_prepare(&c, note, sizeof note, &err), -EACCES);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(options, setup, teardown),
        cmocka_unit_test_setup_teardown(file, setup, teardown),
        cmocka_unit_test(durations),
        cmocka_unit_test_setup_teardown(keeps, setup, teardown),
        cmocka_unit_test_setup_teardown(reloaded, setup, teardown),
        cmocka_unit_test_setup_teardown(reloaded_beside_options, setup, teardown),
        cmocka_unit_test_setup_teardown(state_folder, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
