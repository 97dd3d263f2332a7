/* test_model_file.c - which files of a model folder are opened: in a snapshot of the Hugging
 * Face cache those of its repository alone, in a folder of one's own all that are there. */
#include "tests/support/test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/spec.h"
#include "tests/support/temp_dir.h"
#include "worker/model.h"
#include "worker/model_file.h"
#include "worker/safetensors.h"
#include "worker/tokenizer.h"

#define COMMIT "0123456789abcdef0123456789abcdef01234567"
#define REPO   "hub/models--org--name"
#define SNAP   REPO "/snapshots/" COMMIT

static struct temp_dir dir;

static void spill(const char *name, const char *text)
{
    FILE *f = fopen(temp_dir_path(&dir, name), "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    fclose(f);
}

static void folder(const char *name)
{
    assert_int_equal(mkdir(temp_dir_path(&dir, name), 0700), 0);
}

static void link_to(const char *target, const char *name)
{
    (void)unlink(temp_dir_path(&dir, name));
    assert_int_equal(symlink(target, temp_dir_path(&dir, name)), 0);
}

/* As huggingface_hub lays it out: blobs, refs, a snapshot of links. */
static int setup(void **state)
{
    (void)state;
    temp_dir_make(&dir);
    static const char *const folders[] = {"hub",
                                          REPO,
                                          REPO "/blobs",
                                          REPO "/refs",
                                          REPO "/snapshots",
                                          SNAP,
                                          "own",
                                          "hub/models--org--other",
                                          "hub/models--org--other/blobs"};
    for (size_t i = 0; i < ARRAY_LEN(folders); i++)
        folder(folders[i]);
    spill(REPO "/refs/main", COMMIT);
    spill(REPO "/blobs/aaa", "{\"model_type\": \"llama\"}");
    spill("hub/models--org--other/blobs/bbb", "other");
    spill("secret", "secret");
    link_to("../../blobs/aaa", SNAP "/config.json");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    temp_dir_remove(&dir);
    return 0;
}

static int read_it(const char *folder_name, const char *name, struct err *err)
{
    char *text = NULL;
    size_t n = 0;
    const int r = model_file_read(temp_dir_path(&dir, folder_name), name, 1 << 20, &text, &n, err);

    if (r == 0)
        assert_int_equal(strlen(text), n);
    free(text);
    return r;
}

static void refused(const char *folder_name, const char *name, const char *says)
{
    struct err err = {""};

    assert_int_equal(read_it(folder_name, name, &err), -EINVAL);
    if (!strstr(err.text, name) || !strstr(err.text, says))
        fail_msg("\"%s\" should say \"%s\"", err.text, says);
}

static void links_into_blobs(void **state)
{
    struct err err = {""};

    (void)state;
    assert_int_equal(read_it(SNAP, "config.json", &err), 0);
    spill(SNAP "/tokenizer.json", "{}"); /* where the file system has no links */
    assert_int_equal(read_it(SNAP, "tokenizer.json", &err), 0);
    assert_int_equal(read_it(SNAP, "merges.txt", &err), -ENOENT);
    /* the same links with absolute targets, and the snapshot by other names */
    link_to(temp_dir_path(&dir, REPO "/blobs/aaa"), SNAP "/vocab.json");
    assert_int_equal(read_it(SNAP, "vocab.json", &err), 0);
    assert_int_equal(read_it(SNAP "/", "config.json", &err), 0);
    link_to(SNAP, "short");
    assert_int_equal(read_it("short", "config.json", &err), 0);
    link_to("hub", "moved");
    assert_int_equal(read_it("moved/models--org--name/snapshots/" COMMIT, "config.json", &err), 0);
}

static void links_that_leave(void **state)
{
    (void)state;
    link_to("../../../../secret", SNAP "/tokenizer.json");
    refused(SNAP, "tokenizer.json", "/secret");
    refused(SNAP, "tokenizer.json", "hf download");
    link_to(temp_dir_path(&dir, "secret"), SNAP "/tokenizer.model");
    refused(SNAP, "tokenizer.model", "/blobs/");
    link_to("/etc/passwd", SNAP "/tokenizer.model");
    refused(SNAP, "tokenizer.model", "/etc/passwd");
    link_to("../../../models--org--other/blobs/bbb", SNAP "/model.safetensors");
    refused(SNAP, "model.safetensors", "models--org--other");
    link_to("../../refs/main", SNAP "/vocab.json");
    refused(SNAP, "vocab.json", "refs/main");
    link_to("config.json", SNAP "/added_tokens.json"); /* a link to a link into blobs/ */
    struct err err = {""};
    assert_int_equal(read_it(SNAP, "added_tokens.json", &err), 0);
    link_to("../../blobs/gone", SNAP "/merges.txt");
    refused(SNAP, "merges.txt", "unfinished download");
    link_to("tokenizer.json", SNAP "/special_tokens_map.json");
    refused(SNAP, "special_tokens_map.json", "/secret");
    /* through another name of the snapshot too */
    link_to(SNAP, "short");
    refused("short", "tokenizer.json", "/secret");
    /* blobs/ that is a link itself, and a snapshot that is one */
    link_to("../../own", REPO "/blobs2");
    spill("own/config.json", "{}");
    link_to("../../blobs2/config.json", SNAP "/chat_template.jinja");
    refused(SNAP, "chat_template.jinja", "own/config.json");
    link_to("../../../own", REPO "/snapshots/abcd");
    refused(REPO "/snapshots/abcd", "config.json", "own/config.json");
}

static void own_folder(void **state)
{
    struct err err = {""};

    (void)state;
    link_to("../secret", "own/config.json");
    assert_int_equal(read_it("own", "config.json", &err), 0);
    link_to("nowhere", "own/merges.txt");
    refused("own", "merges.txt", "nowhere");
    folder("own/vocab.json");
    refused("own", "vocab.json", "regular");
    assert_int_equal(mkfifo(temp_dir_path(&dir, "own/tokenizer.json"), 0600), 0);
    refused("own", "tokenizer.json", "regular"); /* and no hang */
    spill("own/added_tokens.json", "0123456789");
    char *text = NULL;
    size_t n;
    assert_int_equal(
        model_file_read(temp_dir_path(&dir, "own"), "added_tokens.json", 9, &text, &n, &err),
        -EINVAL);
    assert_int_equal(
        model_file_read(temp_dir_path(&dir, "own"), "added_tokens.json", 10, &text, &n, &err), 0);
    assert_int_equal(n, 10);
    free(text);
}

/* Every reader of a model folder goes this way. */
static void every_reader(void **state)
{
    struct model_config config;
    struct safetensors *s = NULL;
    struct tokenizer *tok = NULL;
    const char *snap = temp_dir_path(&dir, SNAP);
    struct err err = {""};
    char name[320];

    (void)state;
    snprintf(name, sizeof name, "%s", snap);
    link_to("/etc/passwd", SNAP "/config.json");
    assert_int_equal(model_config_read(name, &config, &err), -EINVAL);
    assert_non_null(strstr(err.text, "/etc/passwd"));
    static const char *const weights[] = {"model.safetensors", "model.safetensors.index.json"};
    for (size_t i = 0; i < ARRAY_LEN(weights); i++) {
        char at[160];
        snprintf(at, sizeof at, SNAP "/%s", weights[i]);
        link_to("/etc/passwd", at);
        assert_int_equal(safetensors_open_folder(name, &s, &err), -EINVAL);
        assert_non_null(strstr(err.text, "/etc/passwd"));
        unlink(temp_dir_path(&dir, at));
    }
    spill(SNAP "/model.safetensors.index.json", "{\"weight_map\": {\"x\": \"m-1.safetensors\"}}");
    link_to("/etc/passwd", SNAP "/m-1.safetensors");
    assert_int_equal(safetensors_open_folder(name, &s, &err), -EINVAL);
    assert_non_null(strstr(err.text, "/etc/passwd"));
    static const char *const words[] = {"tokenizer.json", "tokenizer.model"};
    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        char at[160];
        snprintf(at, sizeof at, SNAP "/%s", words[i]);
        link_to("/etc/passwd", at);
        assert_int_equal(tokenizer_open(name, &tok, &err), -EINVAL);
        assert_non_null(strstr(err.text, "/etc/passwd"));
        unlink(temp_dir_path(&dir, at));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(links_into_blobs, setup, teardown),
        cmocka_unit_test_setup_teardown(links_that_leave, setup, teardown),
        cmocka_unit_test_setup_teardown(own_folder, setup, teardown),
        cmocka_unit_test_setup_teardown(every_reader, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
