/* test_safetensors.c - headers that lie, files cut short, shards, and the writer. */
#include "tests/support/test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/temp_dir.h"
#include "worker/safetensors.h"

/* A file image: the header's length, the header, `data` zero bytes. */
static size_t image_of(const char *header, size_t data, uint8_t *buf, size_t size)
{
    const size_t n = strlen(header);

    assert_true(8 + n + data <= size);
    for (int i = 0; i < 8; i++)
        buf[i] = (uint8_t)((uint64_t)n >> (8 * i));
    memcpy(buf + 8, header, n);
    memset(buf + 8 + n, 0, data);
    return 8 + n + data;
}

static void expect_refused(const char *header, size_t data, const char *says)
{
    uint8_t buf[1024];
    struct safetensors *s = NULL;
    struct err err = {""};

    const size_t n = image_of(header, data, buf, sizeof buf);
    assert_int_equal(safetensors_parse(buf, n, "x.safetensors", &s, &err), -EINVAL);
    assert_null(s);
    if (!strstr(err.text, says) || !strstr(err.text, "x.safetensors"))
        fail_msg("\"%s\" should say \"%s\"", err.text, says);
}

static void test_refusals(void **state)
{
    static const struct {
        const char *header;
        size_t data;
        const char *says;
    } v[] = {
        {"[]", 0, "begin with {"},
        {"{", 0, "header: "},
        {"{} x", 0, "header: "},
        {"{\"a\":1}", 0, "\"a\": needs dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "\"a\": needs dtype"},
        {"{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "unknown dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "dimension"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4, "dimension"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "need 8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "begin <= end"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 3, "cut short"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,9223372036854775807]}}", 4,
         "header lies"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,18446744073709551616]}}", 4,
         "header: "},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}", 4,
         "overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, "duplicate"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
         4, "overlaps"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[5,9]}}",
         9, "hole"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "hole"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5, "after the last"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1,
         "dimensions"},
        {"{\"__metadata__\":[]}", 0, "__metadata__"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__"},
    };
    uint8_t big[16] = {0, 0, 0, 0, 1}; /* a header of 4 GiB */
    struct safetensors *s = NULL;
    struct err err;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(v); i++)
        expect_refused(v[i].header, v[i].data, v[i].says);
    assert_int_equal(safetensors_parse(big, sizeof big, "x", &s, &err), -EINVAL);
    assert_int_equal(safetensors_parse(big, 5, "x", &s, &err), -EINVAL);
    big[4] = 0;
    big[0] = 9; /* a header longer than the file */
    assert_int_equal(safetensors_parse(big, sizeof big, "x", &s, &err), -EINVAL);
    assert_non_null(strstr(err.text, "cut short"));
}

static void test_legal_oddities(void **state)
{
    uint8_t buf[512];
    struct safetensors *s = NULL;
    struct err err;

    (void)state;
    /* An empty tensor between two, a scalar, offsets out of name order, padding. */
    size_t n = image_of("{\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
                        "\"e\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[3,3]},"
                        "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[3,7]}}   ",
                        7, buf, sizeof buf);
    const float pi = 3.25f;
    memcpy(buf + n - 4, &pi, sizeof pi);
    assert_int_equal(safetensors_parse(buf, n, "x", &s, &err), 0);
    assert_int_equal(safetensors_count(s), 3);
    assert_string_equal(safetensors_at(s, 0)->name, "a");
    assert_int_equal(safetensors_find(s, "e")->bytes, 0);
    const struct safetensors_tensor *a = safetensors_find(s, "a");
    assert_int_equal((uintptr_t)a->data % 4, 0); /* though it lay unaligned */
    assert_true(*(const float *)a->data == pi);
    assert_null(safetensors_find(s, "c"));
    assert_null(safetensors_metadata(s, "format"));
    safetensors_close(s);

    n = image_of("{}", 0, buf, sizeof buf);
    assert_int_equal(safetensors_parse(buf, n, "x", &s, &err), 0);
    assert_int_equal(safetensors_count(s), 0);
    safetensors_close(s);
    safetensors_close(NULL);
}

static const float f32[6] = {1, 2, 3, 4, 5, 6};
static const uint16_t u16[3] = {7, 8, 9};
static const uint8_t u8[5] = {1, 2, 3, 4, 5};
static const struct safetensors_tensor some[] = {
    {.name = "z", .dtype = SAFETENSORS_U8, .n_dims = 1, .shape = {5}, .data = u8},
    {.name = "b", .dtype = SAFETENSORS_BF16, .n_dims = 2, .shape = {3, 1}, .data = u16},
    {.name = "y", .dtype = SAFETENSORS_F32, .n_dims = 2, .shape = {2, 2}, .data = f32},
    {.name = "a", .dtype = SAFETENSORS_F32, .n_dims = 1, .shape = {2}, .data = f32 + 4},
};

/* The bytes safetensors 0.8 (Python) writes for the same tensors. */
static void test_writer_bytes(void **state)
{
    static const char want[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
        "\"y\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[8,24]},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[3,1],\"data_offsets\":[24,30]},"
        "\"z\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[30,35]}}";
    const struct safetensors_write w = {.tensors = some, .n = ARRAY_LEN(some)};
    const struct safetensors_tensor twice[2] = {some[0], some[0]};
    uint8_t *image;
    size_t bytes;
    void *p;

    (void)state;
    assert_int_equal(safetensors_build(&w, &p, &bytes), 0);
    image = p;
    const size_t padded = (strlen(want) + 7) / 8 * 8;
    assert_int_equal(bytes, 8 + padded + 35);
    assert_int_equal(image[0] | image[1] << 8, padded);
    assert_memory_equal(image + 8, want, strlen(want));
    assert_memory_equal(image + 8 + padded, f32 + 4, 8);
    assert_memory_equal(image + 8 + padded + 30, u8, 5);
    free(p);
    const struct safetensors_write again = {.tensors = twice, .n = 2};
    assert_int_equal(safetensors_build(&again, &p, &bytes), -EINVAL);
}

static void test_round_trip(void **state)
{
    const struct safetensors_pair meta = {"step", "7"};
    const struct safetensors_write w = {
        .tensors = some, .n = ARRAY_LEN(some), .metadata = &meta, .n_metadata = 1};
    struct temp_dir d;
    struct safetensors *s = NULL;
    struct err err;
    uint8_t digest[2][32];

    (void)state;
    temp_dir_make(&d);
    const int fd = open(d.path, O_RDONLY | O_DIRECTORY);
    assert_int_equal(safetensors_replace(fd, "m.safetensors", &w), 0);
    const int out = openat(fd, "n.safetensors", O_WRONLY | O_CREAT, 0600);
    assert_int_equal(safetensors_send(out, &w), 0);
    close(out);
    close(fd);
    for (int i = 0; i < 2; i++) {
        const char *path = temp_dir_path(&d, i ? "n.safetensors" : "m.safetensors");
        assert_int_equal(safetensors_open(path, &s, &err), 0);
        assert_int_equal(safetensors_count(s), ARRAY_LEN(some));
        for (size_t t = 0; t < ARRAY_LEN(some); t++) {
            const struct safetensors_tensor *x = safetensors_find(s, some[t].name);
            assert_non_null(x);
            assert_int_equal(x->dtype, some[t].dtype);
            assert_memory_equal(x->data, some[t].data, x->bytes);
        }
        assert_string_equal(safetensors_metadata(s, "format"), "pt");
        assert_string_equal(safetensors_metadata(s, "step"), "7");
        safetensors_digest(s, digest[i]);
        safetensors_close(s);
    }
    assert_memory_equal(digest[0], digest[1], 32);
    temp_dir_remove(&d);
}

static void write_index(const struct temp_dir *d, const char *text)
{
    FILE *f = fopen(temp_dir_path(d, "model.safetensors.index.json"), "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void expect_folder_refused(const struct temp_dir *d, const char *index, const char *says)
{
    struct safetensors *s = NULL;
    struct err err = {""};

    write_index(d, index);
    assert_true(safetensors_open_folder(d->path, &s, &err) < 0);
    assert_null(s);
    if (!strstr(err.text, says))
        fail_msg("\"%s\" should say \"%s\"", err.text, says);
}

static void test_shards(void **state)
{
    const struct safetensors_write one = {.tensors = some, .n = 2};
    const struct safetensors_write two = {.tensors = some + 2, .n = 2};
    struct temp_dir d;
    struct safetensors *s = NULL;
    struct err err;

    (void)state;
    temp_dir_make(&d);
    assert_int_equal(safetensors_open_folder(d.path, &s, &err), -ENOENT);
    const int fd = open(d.path, O_RDONLY | O_DIRECTORY);
    assert_int_equal(mkdirat(fd, "blobs", 0700), 0);
    const int blobs = openat(fd, "blobs", O_RDONLY | O_DIRECTORY);
    assert_int_equal(safetensors_replace(blobs, "one", &one), 0);
    close(blobs);
    assert_int_equal(symlinkat("blobs/one", fd, "m-1.safetensors"), 0);
    assert_int_equal(safetensors_replace(fd, "m-2.safetensors", &two), 0);
    write_index(&d, "{\"weight_map\": {\"z\": \"m-1.safetensors\", \"b\": \"m-1.safetensors\","
                    "\"y\": \"m-2.safetensors\", \"a\": \"m-2.safetensors\"}}");
    assert_int_equal(safetensors_open_folder(d.path, &s, &err), 0);
    assert_int_equal(safetensors_count(s), 4);
    assert_memory_equal(safetensors_find(s, "y")->data, f32, 16);
    safetensors_close(s);
    s = NULL;

    expect_folder_refused(&d, "{\"weight_map\": {\"q\": \"m-2.safetensors\"}}", "no tensor \"q\"");
    expect_folder_refused(&d, "{\"weight_map\": {\"z\": \"../m-2.safetensors\"}}", "weight_map");
    expect_folder_refused(&d, "{\"weight_map\": {\"z\": 1}}", "weight_map");
    expect_folder_refused(&d, "{\"weight_map\": {\"z\": \"m-3.safetensors\"}}", "m-3");
    expect_folder_refused(&d, "{\"weight_map\": []}", "weight_map");
    expect_folder_refused(&d, "{", "index.json:");
    /* A shard cut short names the file and the tensor. */
    assert_int_equal(truncate(temp_dir_path(&d, "m-2.safetensors"), 200), 0);
    expect_folder_refused(&d, "{\"weight_map\": {\"y\": \"m-2.safetensors\"}}", "m-2.safetensors");
    assert_int_equal(mkfifoat(fd, "model.safetensors", 0600), 0);
    assert_int_equal(safetensors_open_folder(d.path, &s, &err), -EINVAL); /* and no hang */
    close(fd);
    temp_dir_remove(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),     cmocka_unit_test(test_legal_oddities),
        cmocka_unit_test(test_writer_bytes), cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
