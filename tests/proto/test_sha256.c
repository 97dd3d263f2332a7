/* test_sha256.c - FIPS 180-4's examples, and every split of a message. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "proto/sha256.h"

static void expect(const void *data, size_t bytes, const char *want)
{
    uint8_t d[SHA256_BYTES];
    char hex[SHA256_HEX];

    sha256_of(data, bytes, d);
    sha256_hex(d, hex);
    assert_string_equal(hex, want);
}

static void test_examples(void **state)
{
    (void)state;
    expect("", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    expect("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    expect("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
           "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *a = malloc(1000000);
    assert_non_null(a);
    memset(a, 'a', 1000000);
    expect(a, 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(a);
}

static void test_splits(void **state)
{
    (void)state;
    uint8_t data[200], whole[SHA256_BYTES], parts[SHA256_BYTES];

    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7);
    for (size_t n = 0; n <= sizeof data; n++) {
        sha256_of(data, n, whole);
        for (size_t cut = 0; cut <= n; cut++) {
            struct sha256 s;
            sha256_init(&s);
            sha256_add(&s, data, cut);
            sha256_add(&s, data + cut, n - cut);
            sha256_end(&s, parts);
            assert_memory_equal(whole, parts, sizeof whole);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_examples),
                                       cmocka_unit_test(test_splits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
