/* Known answers: RFC 1321, RFC 3720, RFC 4231, RFC 4648, FIPS 180, and the two signatures that AWS and our sheet give.
 */
#include "upload_internal.h"

#include "text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static int setup(void **state)
{
    struct err err;
    (void)state;
    return digest_init(&err) == ERR_NONE ? 0 : -1;
}

static void crc32c_is_the_one_of_the_rfc(void **state)
{
    uint8_t data[32];
    (void)state;
    assert_int_equal(digest_crc32c(0, "", 0), 0);
    assert_int_equal(digest_crc32c(0, "123456789", 9), 0xE3069283);
    memset(data, 0, sizeof data);
    assert_int_equal(digest_crc32c(0, data, sizeof data), 0x8A9136AA);
    memset(data, 0xFF, sizeof data);
    assert_int_equal(digest_crc32c(0, data, sizeof data), 0x62A8AB43);
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)i;
    assert_int_equal(digest_crc32c(0, data, sizeof data), 0x46DD794E);
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(31 - i);
    assert_int_equal(digest_crc32c(0, data, sizeof data), 0x113FDB5C);
    char text[DIGEST_CRC32C_TEXT];
    digest_crc32c_text(0xE3069283, text);
    assert_string_equal(text, "4waSgw==");
}

static void crc32c_is_the_same_by_tables_and_in_pieces(void **state)
{
    enum { SIZE = 100000 };
    uint8_t *data = malloc(SIZE);
    (void)state;
    for (unsigned i = 0; i < SIZE; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 13);
    for (size_t size = 0; size < 300; size++)
        for (size_t at = 0; at < 9; at++)
            assert_int_equal(digest_crc32c(0, data + at, size), digest_crc32c_by_table(0, data + at, size));
    uint32_t whole = digest_crc32c(0, data, SIZE);
    assert_int_equal(digest_crc32c_by_table(0, data, SIZE), whole);
    for (size_t cut = 0; cut <= SIZE; cut += 997) {
        assert_int_equal(digest_crc32c(digest_crc32c(0, data, cut), data + cut, SIZE - cut), whole);
        assert_int_equal(digest_crc32c_by_table(digest_crc32c_by_table(0, data, cut), data + cut, SIZE - cut), whole);
    }
    free(data);
}

static void md5_is_the_one_of_the_rfc(void **state)
{
    static const struct {
        const char *text, *hex;
    } cases[] = {
        {"", "d41d8cd98f00b204e9800998ecf8427e"},
        {"abc", "900150983cd24fb0d6963f7d28e17f72"},
        {"12345678901234567890123456789012345678901234567890123456789012345678901234567890",
         "57edf4a22be3c955ac49da2e2107b67a"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (size_t step = 1; step < 90; step += 8) {
            struct digest_md5 *m;
            struct err err;
            uint8_t sum[DIGEST_MD5_BYTES];
            char hex[33];
            size_t size = strlen(cases[i].text);
            assert_int_equal(digest_md5_new(&m, &err), ERR_NONE);
            for (size_t at = 0; at < size; at += step)
                digest_md5_add(m, cases[i].text + at, size - at < step ? size - at : step);
            assert_int_equal(digest_md5_end(m, sum, &err), ERR_NONE);
            text_hex(sum, sizeof sum, hex);
            assert_string_equal(hex, cases[i].hex);
        }
    digest_md5_free(NULL);
}

static void sha256_and_hmac_are_the_ones_of_the_standards(void **state)
{
    uint8_t sum[DIGEST_SHA256_BYTES], key[131];
    char hex[65];
    struct err err;
    (void)state;
    assert_int_equal(digest_sha256("", 0, sum, &err), ERR_NONE);
    text_hex(sum, sizeof sum, hex);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_int_equal(digest_sha256("\"id\",\"name\"\n\"1\",\"Praha\"\n", 24, sum, &err), ERR_NONE);
    text_hex(sum, sizeof sum, hex);
    assert_string_equal(hex, "628190ecc12ec8a68b5dedac62f29d1b14b4a6ffc42e601ca42aea1444a49848");
    assert_int_equal(digest_hmac_sha256("Jefe", 4, "what do ya want for nothing?", 28, sum, &err), ERR_NONE);
    text_hex(sum, sizeof sum, hex);
    assert_string_equal(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    memset(key, 0xAA, sizeof key); /* longer than a block */
    const char *text = "Test Using Larger Than Block-Size Key - Hash Key First";
    assert_int_equal(digest_hmac_sha256(key, sizeof key, text, strlen(text), sum, &err), ERR_NONE);
    text_hex(sum, sizeof sum, hex);
    assert_string_equal(hex, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

static void base64_is_the_one_of_the_rfc(void **state)
{
    static const char *const cases[][2] = {{"", ""},
                                           {"f", "Zg=="},
                                           {"fo", "Zm8="},
                                           {"foo", "Zm9v"},
                                           {"foob", "Zm9vYg=="},
                                           {"fooba", "Zm9vYmE="},
                                           {"foobar", "Zm9vYmFy"},
                                           {"\xFF\xEF\xBE", "/+++"}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[DIGEST_BASE64_SIZE(6)];
        digest_base64(cases[i][0], strlen(cases[i][0]), text);
        assert_string_equal(text, cases[i][1]);
        assert_true(strlen(text) + 1 <= DIGEST_BASE64_SIZE(strlen(cases[i][0])));
    }
}

static const char *signature_of(const struct sigv4_request *r, struct buf *b)
{
    struct err err;
    buf_init(b);
    assert_int_equal(sigv4_sign(r, b, &err), ERR_NONE);
    const char *at = strstr(b->data, "Signature=");
    assert_non_null(at);
    return at + strlen("Signature=");
}

static void the_example_of_aws_has_its_signature(void **state)
{
    const char *payload = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
    const struct sigv4_header headers[] = {
        {"date", "Fri, 24 May 2013 00:00:00 GMT"},
        {"host", "examplebucket.s3.amazonaws.com"},
        {"x-amz-content-sha256", payload},
        {"x-amz-date", "20130524T000000Z"},
        {"x-amz-storage-class", "REDUCED_REDUNDANCY"},
    };
    const struct sigv4_request r = {"PUT",
                                    "/test%24file.text",
                                    "",
                                    headers,
                                    5,
                                    payload,
                                    "20130524T000000Z",
                                    "us-east-1",
                                    "AKIAIOSFODNN7EXAMPLE",
                                    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"};
    struct buf b;
    (void)state;
    assert_string_equal(signature_of(&r, &b), "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
    assert_non_null(strstr(b.data, "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
                                   "SignedHeaders=date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class, "));
    buf_done(&b);
}

static void the_example_of_the_sheet_has_its_signatures(void **state)
{
    static const char *const payloads[] = {"628190ecc12ec8a68b5dedac62f29d1b14b4a6ffc42e601ca42aea1444a49848",
                                           "UNSIGNED-PAYLOAD"};
    static const char *const signatures[] = {"67b1d5b5a4c0e52f12ea63b1172efa228857bf704255062a5180e5817b8c5165",
                                             "c759f7c35e2e90f964d189b615f4256a88b3cf70f7fdb44d75ba2115dfbfb1f2"};
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        const struct sigv4_header headers[] = {
            {"host", "kbc-files-test.s3.eu-central-1.amazonaws.com"},
            {"x-amz-acl", "private"},
            {"x-amz-content-sha256", payloads[i]},
            {"x-amz-date", "20260301T101530Z"},
            {"x-amz-security-token", "FwoGZXIvYXdzEXAMPLE//token=="},
            {"x-amz-server-side-encryption", "AES256"},
        };
        const struct sigv4_request r = {"PUT",
                                        "/exp-15/4321/files/2026/03/01/1234567.cities.csv",
                                        "",
                                        headers,
                                        6,
                                        payloads[i],
                                        "20260301T101530Z",
                                        "eu-central-1",
                                        "ASIAEXAMPLEKEY000001",
                                        "exampleSecret/Key+0000000000000000000001"};
        struct buf b;
        assert_string_equal(signature_of(&r, &b), signatures[i]);
        buf_done(&b);
    }
}

static void a_secret_key_that_is_too_long_is_refused(void **state)
{
    char secret[400];
    struct buf b;
    struct err err;
    (void)state;
    memset(secret, 'x', sizeof secret);
    secret[sizeof secret - 1] = '\0';
    const struct sigv4_request r = {"PUT", "/", "", NULL, 0, "UNSIGNED-PAYLOAD", "20260301T101530Z", "r", "a", secret};
    buf_init(&b);
    assert_int_equal(sigv4_sign(&r, &b, &err), ERR_CONFIG);
    assert_null(strstr(err.text, "xxxx"));
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crc32c_is_the_one_of_the_rfc),
        cmocka_unit_test(crc32c_is_the_same_by_tables_and_in_pieces),
        cmocka_unit_test(md5_is_the_one_of_the_rfc),
        cmocka_unit_test(sha256_and_hmac_are_the_ones_of_the_standards),
        cmocka_unit_test(base64_is_the_one_of_the_rfc),
        cmocka_unit_test(the_example_of_aws_has_its_signature),
        cmocka_unit_test(the_example_of_the_sheet_has_its_signatures),
        cmocka_unit_test(a_secret_key_that_is_too_long_is_refused),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
