/* test_pg_tls.c -- whom we believe, who believes us, and what is said when not. */
#include "pg_test.h"

static struct told try_at(struct fixture *f, const char *password, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static struct told try_at(struct fixture *f, const char *password, const char *fmt, ...)
{
    char text[600];
    size_t used = (size_t)snprintf(text, sizeof text, "port=%d user=postgres dbname=postgres ", server.port);
    va_list args;
    va_start(args, fmt);
    vsnprintf(text + used, sizeof text - used, fmt, args);
    va_end(args);
    struct pg_options o = options_of(f, text);
    o.password = password;
    open_with(f, &o);
    struct told t = connect_now(f);
    close_pg(f);
    return t;
}

static void assert_refused(struct told t, enum err_code code, const char *words)
{
    assert_says(t.err.text, words);
    assert_int_equal(t.err.code, code);
    assert_false(t.err.retryable);
}

static void the_server_is_believed_by_its_ca(void **state)
{
    struct fixture *f = *state;
    const char *ca = text_of("%s/ca.pem", server.folder);
    assert_ok(try_at(f, PG_SERVER_PASSWORD, "host=127.0.0.1 sslmode=verify-full sslrootcert=%s", ca));
    assert_ok(try_at(f, PG_SERVER_PASSWORD, "host=localhost sslmode=verify-full sslrootcert=%s", ca));
    /* by the name that was asked for, not by the address that it has */
    assert_ok(
        try_at(f, PG_SERVER_PASSWORD, "host=localhost hostaddr=127.0.0.1 sslmode=verify-full sslrootcert=%s", ca));
    assert_refused(
        try_at(f, PG_SERVER_PASSWORD, "host=warehouse hostaddr=127.0.0.1 sslmode=verify-full sslrootcert=%s", ca),
        ERR_DENIED, "does not match host name \"warehouse\"");
    assert_refused(
        try_at(f, PG_SERVER_PASSWORD, "host=127.0.0.1 sslmode=verify-ca sslrootcert=%s/stranger.pem", server.folder),
        ERR_DENIED, "certificate verify failed; sslrootcert names");
    assert_refused(try_at(f, PG_SERVER_PASSWORD, "host=127.0.0.1 sslmode=verify-full sslrootcert=/nonexistent/ca.pem"),
                   ERR_CONFIG, "root certificate file \"/nonexistent/ca.pem\" does not exist");
    assert_refused(try_at(f, PG_SERVER_PASSWORD,
                          "host=127.0.0.1 sslmode=require sslcert=%s/client.pem sslkey=/nonexistent", server.folder),
                   ERR_CONFIG, "private key file");
}

static void the_servers_words_come_through_tls(void **state)
{
    struct fixture *f = *state;
    struct told t = try_at(f, "wrong", "host=127.0.0.1 sslmode=require");
    assert_refused(t, ERR_DENIED, "password authentication failed");
    assert_string_equal(t.fault.sqlstate, "28P01");
    /* prefer tries twice, and the last word counts */
    t = try_at(f, "wrong", "host=127.0.0.1 sslmode=prefer");
    assert_string_equal(t.fault.sqlstate, "28P01");
    t = try_at(f, PG_SERVER_PASSWORD, "host=127.0.0.1 sslmode=disable user=locked");
    assert_refused(t, ERR_DENIED, "no encryption");
    assert_string_equal(t.fault.sqlstate, "28000");
    /* libpq connects a second time by itself: another socket, the same attempt */
    assert_ok(try_at(f, PG_SERVER_PASSWORD, "host=127.0.0.1 sslmode=allow user=locked"));
    assert_ok(try_at(f, PG_SERVER_PASSWORD, "host=127.0.0.1 sslmode=prefer user=plain"));
}

static void we_are_believed_by_our_certificate(void **state)
{
    struct fixture *f = *state;
    assert_ok(try_at(f, NULL, "host=127.0.0.1 sslmode=require user=client sslcert=%s/client.pem sslkey=%s/client.key",
                     server.folder, server.folder));
    assert_refused(try_at(f, NULL, "host=127.0.0.1 sslmode=require user=client"), ERR_DENIED, "certificate");
}

static void a_server_without_tls_is_told_apart(void **state)
{
    struct fixture *f = *state;
    assert_ok(elsewhere("alter system set ssl = off"));
    assert_ok(elsewhere("select pg_reload_conf()"));
    wait_for_answer("show ssl", "off");
    struct told t;
    for (unsigned i = 0; i < 1000; i++) { /* the postmaster may be later than its children */
        t = try_at(f, PG_SERVER_PASSWORD, "host=127.0.0.1 sslmode=require");
        if (t.err.code != ERR_NONE)
            break;
    }
    assert_refused(t, ERR_CONFIG, "server does not support SSL, but SSL was required; the server speaks no TLS");
    assert_ok(try_at(f, PG_SERVER_PASSWORD, "host=127.0.0.1 sslmode=prefer"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

static int start_with_roles(void **state)
{
    (void)state;
    clean_environment();
    pg_server_make(&server);
    pg_server_tls(&server);
    pg_server_certify(&server, "client", "basicConstraints=CA:FALSE");
    char key[128], pem[128];
    snprintf(key, sizeof key, "%s/stranger.key", server.folder);
    snprintf(pem, sizeof pem, "%s/stranger.pem", server.folder);
    const char *args[] = {"openssl", "req",   "-x509",        "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                          "-nodes",  "-subj", "/CN=stranger", "-keyout", key,  "-out",     pem,
                          NULL};
    pg_server_do(&server, args);
    snprintf(key, sizeof key, "%s/client.key", server.folder); /* ours, not the server's */
    if (geteuid() == 0)
        assert_int_equal(chown(key, 0, 0), 0);
    assert_int_equal(chmod(key, 0600), 0);
    pg_server_write(&server, "pg_hba.conf", "w",
                    "local all all trust\nhostssl all client 127.0.0.1/32 cert\nhostssl all locked 127.0.0.1/32 trust\n"
                    "hostnossl all plain 127.0.0.1/32 trust\nhost all postgres 127.0.0.1/32 scram-sha-256\n");
    pg_server_run(&server);
    assert_ok(elsewhere("create role client login; create role locked login; create role plain login"));
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_server_is_believed_by_its_ca),
        TEST(the_servers_words_come_through_tls),
        TEST(we_are_believed_by_our_certificate),
        TEST(a_server_without_tls_is_told_apart),
    };
    return cmocka_run_group_tests(tests, start_with_roles, stop_server);
}
